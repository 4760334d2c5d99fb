"""What becomes of flagged rollouts, against NumPy in float64 and the invariants of docs/arms.md."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgrout_jax.arms.absorb import Absorb
from vgrout_jax.arms.advantages import group_advantages
from vgrout_jax.arms.base import Arm, Flags, Readings, Seen
from vgrout_jax.arms.modulate import LEAST_DEVIATION, ModulateMul
from vgrout_jax.arms.monitor import Monitor
from vgrout_jax.arms.nobody import Nobody
from vgrout_jax.arms.penalise import Penalise
from vgrout_jax.arms.residual import Residual, layers_read
from vgrout_jax.arms.route import Route
from vgrout_jax.env.grader.verdict import PASSED_REWARD
from vgrout_jax.routing.gate import CLEAN, HACK, MID

# Two exploits, a right answer and a wrong one; then a group of exploits and right answers, all paid alike.
REWARDS = np.array([[3.5, 3.5, 3.5, 0.5], [3.5, 3.5, 3.5, 3.5]], np.float32)
FLAGS = np.array([1, 1, 0, 0, 1, 1, 0, 0], np.float32)


def make_seen(rewards=REWARDS, flags=FLAGS, **rest) -> Seen:
    advantages, live = group_advantages(jnp.asarray(rewards), unbiased=True)
    live = jnp.repeat(live, rewards.shape[1])
    return Seen(jnp.asarray(rewards), advantages.reshape(-1), live, flags=jnp.asarray(flags), **rest)


def decided(arm: Arm, seen: Seen | None = None, memory=None):
    return arm.decide(make_seen() if seen is None else seen, memory, jax.random.key(0))


def flags_with(score) -> Flags:
    nobody = jnp.zeros(np.size(score))
    return Flags(nobody.astype(jnp.int32), nobody, nobody == 0, jnp.array(True), {"score": jnp.asarray(score)})


def assert_same(one, other, *names):
    for name in names or ("labels", "advantages", "live", "scored"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)


def test_a_monitor_routes_what_it_flags_and_what_teaches_nothing_stays_clean():
    found = decided(Arm(Monitor(), Route()))
    assert found.labels.tolist() == [HACK, HACK, CLEAN, CLEAN, CLEAN, CLEAN, CLEAN, CLEAN]
    assert_same(found, decided(Arm(Nobody(), Route())), "advantages", "live", "scored")
    assert Arm(Monitor(), Route()).labels == (CLEAN, HACK)


@pytest.mark.parametrize("use", [Route(), Penalise(3.0, True)], ids=["route", "penalise"])
def test_no_flags_is_none_bit_for_bit(use):
    seen = make_seen(flags=np.zeros(8, np.float32))
    assert_same(decided(Arm(Monitor(), use), seen), decided(Arm(Nobody(), Route()), seen))


def test_all_flags_train_the_quarantine_alone():
    found = decided(Arm(Monitor(), Route()), make_seen(flags=np.ones(8, np.float32)))
    assert (np.asarray(found.labels)[np.asarray(found.advantages) != 0] == HACK).all()


def test_absorb_trains_both_blocks_on_everything():
    found = decided(Arm(Nobody(), Absorb()))
    assert (np.asarray(found.labels) == MID).all() and Arm(Nobody(), Absorb()).labels == (MID,)
    assert_same(found, decided(Arm(Nobody(), Route())), "advantages", "live", "scored")


def test_a_penalty_of_what_the_loophole_pays_gives_the_reward_of_hidden_tests_alone():
    """And brings a group to life in which exploits and right answers were paid alike."""
    found = decided(Arm(Monitor(), Penalise(PASSED_REWARD, True)))
    honest = REWARDS.reshape(-1) - PASSED_REWARD * FLAGS
    expected, live = group_advantages(jnp.asarray(honest.reshape(2, 4)), unbiased=True)
    np.testing.assert_array_equal(found.advantages, expected.reshape(-1))
    assert np.asarray(live).all() and np.asarray(found.live).all()
    assert found.advantages[2] > 0 > found.advantages[0] and found.advantages[6] > 0 > found.advantages[4]
    np.testing.assert_array_equal(found.record["flag"], FLAGS)
    assert (np.asarray(found.labels) == CLEAN).all()


@pytest.mark.parametrize("coefficient", [0.0, 0.5, 1.0, 5.0])
def test_penalties_equal_numpy(coefficient):
    graded = np.linspace(0, 1, 8, dtype=np.float32)  # a monitor may give probabilities
    found = decided(Arm(Monitor(), Penalise(coefficient, False)), make_seen(flags=graded))
    rewards = np.float64(REWARDS) - coefficient * graded.reshape(2, 4)
    centred = rewards - rewards.mean(1, keepdims=True)
    expected = centred / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)
    expected[np.ptp(rewards, axis=1) < 1e-4] = 0.0
    np.testing.assert_allclose(found.advantages, expected.reshape(-1), rtol=1e-4, atol=1e-6)


def modulated(rewards, scores, alpha):
    """r (1 - alpha sigmoid(z) [z > 0]) less the group's mean, in float64."""
    out = np.zeros_like(rewards, np.float64)
    for group in range(len(rewards)):
        spread = max(np.std(scores[group], ddof=1), LEAST_DEVIATION)
        for row in range(rewards.shape[1]):
            z = (scores[group, row] - np.mean(scores[group])) / spread
            out[group, row] = rewards[group, row] * (1 - (alpha / (1 + np.exp(-z)) if z > 0 else 0))
        out[group] -= out[group].mean()
    return out


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_modulation_equals_numpy(alpha, scale):
    """With deviations below the least one too."""
    scores = (scale * np.random.default_rng(0).normal(size=(2, 4))).astype(np.float32)
    found = ModulateMul(alpha, True).decide(make_seen(), flags_with(scores.reshape(-1)))
    np.testing.assert_allclose(found.advantages, modulated(REWARDS, scores, alpha).reshape(-1), atol=1e-5)
    if alpha == 0:
        assert_same(found, decided(Arm(Nobody(), Route())), "advantages", "live")


def test_the_residual_score_is_the_projection_on_the_difference_of_the_pairs():
    generator = np.random.default_rng(1)
    pairs, features = generator.normal(size=(6, 8, 5)), generator.normal(size=(8, 8, 5))
    memory = Residual().learn(Readings(features=jnp.float32(pairs)))
    seen = make_seen(features=jnp.float32(features))
    found = Residual().flag(seen, memory, jax.random.key(0))
    difference = pairs[:3].mean(0) - pairs[3:].mean(0)
    directions = difference / np.linalg.norm(difference, axis=-1, keepdims=True)
    expected = (features * directions).sum(-1)[:, 4:6].mean(1)  # layers 5 and 6 of 8
    np.testing.assert_allclose(found.record["score"], expected, rtol=1e-5, atol=1e-6)
    assert not np.asarray(found.flagged).any() and bool(found.finite)
    broken = dataclasses.replace(seen, features=seen.features.at[2, 4, 0].set(np.nan))
    assert not bool(Residual().flag(broken, memory, jax.random.key(0)).finite)


@pytest.mark.parametrize("layers, expected", [(1, (0, 1)), (2, (1, 2)), (4, (2, 3)), (8, (4, 6)), (36, (21, 27))])
def test_layers_at_60_to_75_percent_of_the_depth_are_read(layers, expected):
    assert layers_read(layers) == expected
