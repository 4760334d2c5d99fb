"""Group advantages against PyTorch, and the rewards that leave nothing to learn."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from vgrout_jax.arms.advantages import group_advantages

REWARDS = np.array(
    [
        [0.0, 0.5, 3.5, 0.5],
        [3.5, 3.5, 3.5, 3.5],  # equal rewards: dead
        [0.0, 0.0002, 0.0, 0.0],  # spread 2e-4: live
        [0.5, 0.50005, 0.5, 0.5],  # spread 5e-5: dead
    ],
    np.float32,
)


@pytest.mark.parametrize("unbiased", [True, False])
def test_advantages_equal_pytorch(unbiased):
    advantages, live = group_advantages(jnp.asarray(REWARDS), unbiased=unbiased)
    assert live.tolist() == [True, False, True, False]
    for group in (0, 2):
        rewards = torch.tensor(REWARDS[group], dtype=torch.float64)
        expected = rewards - rewards.mean()
        if not unbiased:
            expected = expected / (torch.std(rewards, correction=1) + 1e-4)
        np.testing.assert_allclose(advantages[group], expected, rtol=1e-5)
    assert (np.asarray(advantages)[[1, 3]] == 0.0).all()


def test_a_reward_at_the_group_mean_has_advantage_exactly_zero():
    """In float32 the mean of these is off by a rounding error, which must not pass for a small advantage."""
    rewards = np.array([[0.2, 0.3, 0.7, 0.4, 0.4, 0.4]], np.float32)
    assert (rewards - jnp.mean(jnp.asarray(rewards), axis=1))[0, 3] != 0.0
    for unbiased in (True, False):
        advantages, live = group_advantages(jnp.asarray(rewards), unbiased=unbiased)
        assert bool(live[0]) and (np.asarray(advantages)[0, 3:] == 0.0).all()
        assert (np.asarray(advantages)[0, :3] != 0.0).all()


def test_small_differences_of_large_rewards_survive():
    advantages, live = group_advantages(jnp.array([[3.5, 3.5, 3.5, 3.5002]]), unbiased=True)
    assert bool(live[0])
    np.testing.assert_allclose(advantages[0], [-5e-5, -5e-5, -5e-5, 1.5e-4], atol=1e-6)


@pytest.mark.parametrize("unbiased", [True, False])
def test_a_reward_that_is_not_finite_stays_visible(unbiased):
    for bad in (jnp.nan, jnp.inf):
        rewards = jnp.array([[0.5, bad, 3.5], [0.5, 0.5, 3.5]])
        advantages, live = group_advantages(rewards, unbiased=unbiased)
        assert bool(live[0]) and not np.isfinite(np.asarray(advantages[0])).all()
        assert np.isfinite(np.asarray(advantages[1])).all()


def test_a_group_of_one_is_dead():
    advantages, live = group_advantages(jnp.array([[3.5]]), unbiased=False)
    assert not live[0] and advantages[0, 0] == 0.0
