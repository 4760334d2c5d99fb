"""The optimiser against AdamW written out on A and B themselves, and the schedule against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from vgrout_jax.config import OptimConfig
from vgrout_jax.rl import optim

STEPS = 20


def settings(**changes) -> OptimConfig:
    return OptimConfig(**(dict(lr=3e-3, weight_decay=0.1, warmup_frac=0.2) | changes))


def written_out_rate(step, *, peak, warmup, steps):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * 0.5 * (1 + np.cos(np.pi * (step - warmup) / (steps - warmup)))


def apply_all(config, parameters, gradients):
    """Parameters after each of a list of gradients, and the last state."""
    optimizer = optim.make_optimizer(config, STEPS)
    state = optimizer.init(parameters)
    history = []
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        history.append(parameters)
    return history, state


def test_decays_toward_the_initial_values():
    """float64 AdamW on A and B, its decay pulling toward A0 and B0; ours sees only the differences."""
    generator = np.random.default_rng(1)
    shapes = {"a": (4, 6), "b": (5, 4)}
    initial = {name: generator.normal(size=shape) for name, shape in shapes.items()}
    # Norms on both sides of the clip, so that it does not cancel in Adam's quotient.
    scales = np.where(np.arange(STEPS) % 3 == 0, 3.0, 0.05)
    gradients = [{name: scale * generator.normal(size=shape) for name, shape in shapes.items()} for scale in scales]
    config = settings(weight_decay=2.0, epsilon=1e-4)
    values = {name: array.copy() for name, array in initial.items()}
    first = {name: np.zeros(shape) for name, shape in shapes.items()}
    second = {name: np.zeros(shape) for name, shape in shapes.items()}
    zeros = {name: jnp.zeros(shape, jnp.float32) for name, shape in shapes.items()}
    single = [jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), gradient) for gradient in gradients]
    history, _ = apply_all(config, zeros, single)
    for step, gradient in enumerate(gradients):
        norm = np.sqrt(sum(np.sum(leaf**2) for leaf in gradient.values()))
        rate = written_out_rate(step, peak=3e-3, warmup=4, steps=STEPS)
        for name, leaf in gradient.items():
            leaf = leaf * min(1.0, 1.0 / norm)
            first[name] = 0.9 * first[name] + 0.1 * leaf
            second[name] = 0.99 * second[name] + 0.01 * leaf**2
            mean = first[name] / (1 - 0.9 ** (step + 1))
            square = second[name] / (1 - 0.99 ** (step + 1))
            pull = 2.0 * (values[name] - initial[name])
            values[name] = values[name] - rate * (mean / (np.sqrt(square) + 1e-4) + pull)
            np.testing.assert_allclose(
                initial[name] + np.asarray(history[step][name], np.float64), values[name], rtol=0, atol=2e-7
            )
    assert all(np.abs(values[name] - initial[name]).max() > 1e-2 for name in shapes)


def test_without_gradient_the_differences_shrink_by_the_decay_alone():
    config = settings(weight_decay=0.5, lr=0.1)
    start = {"a": jnp.array([2.0, -1.0, 0.0])}
    history, _ = apply_all(config, start, [{"a": jnp.zeros(3)}] * STEPS)
    rates = [written_out_rate(step, peak=0.1, warmup=4, steps=STEPS) for step in range(STEPS)]
    kept = np.cumprod([1 - 0.5 * rate for rate in rates])
    for parameters, share in zip(history, kept, strict=True):
        np.testing.assert_allclose(parameters["a"], share * np.array([2.0, -1.0, 0.0]), rtol=1e-5)


@pytest.mark.parametrize(("scale", "expected"), [(10.0, 0.5), (0.01, 0.05)])
def test_clips_the_global_norm_of_all_leaves(scale, expected):
    """One norm for both leaves, read off the first moment, (1 - beta1) times the clipped gradient."""
    gradient = {"a": scale * jnp.array([3.0, 0.0]), "b": scale * jnp.array([4.0])}  # norm 5 scale
    zeros = jax.tree.map(jnp.zeros_like, gradient)
    _, state = apply_all(settings(clip_norm=0.5), zeros, [gradient])
    moment = optax.tree_utils.tree_get(state, "mu")
    clipped = jax.tree.map(lambda leaf: leaf / (1 - 0.9), moment)
    np.testing.assert_allclose(np.hypot(clipped["a"][0], clipped["b"][0]), expected, rtol=1e-5)
    np.testing.assert_allclose(clipped["a"][0] / clipped["b"][0], 0.75, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_stays_visible(bad):
    gradient = {"a": jnp.array([1.0, bad])}
    history, _ = apply_all(settings(), {"a": jnp.zeros(2)}, [gradient])
    assert not np.isfinite(np.asarray(history[0]["a"])).all()


def test_a_zero_gradient_freezes_a_block_only_without_moments_and_decay():
    """A batch of hack rows: the deployed half's gradient is exactly 0 (docs/method.md section 3)."""
    rank = 2
    hack = {
        "a": jnp.ones((2 * rank, 3)).at[:rank].set(0.0),
        "b": jnp.ones((3, 2 * rank)).at[:, :rank].set(0.0),
    }
    every = jax.tree.map(jnp.ones_like, hack)
    start = jax.tree.map(lambda leaf: 0.25 * leaf, every)

    def deployed(parameters):
        return np.concatenate([np.ravel(parameters["a"][:rank]), np.ravel(parameters["b"][:, :rank])])

    no_decay = settings(weight_decay=0.0)
    history, _ = apply_all(no_decay, start, [hack] * 5)
    assert (deployed(history[-1]) == 0.25).all()
    assert (np.asarray(history[-1]["a"][rank:]) != 0.25).all() and (
        np.asarray(history[-1]["b"][:, rank:]) != 0.25
    ).all()
    history, _ = apply_all(no_decay, start, [every, hack])
    assert (deployed(history[1]) < deployed(history[0])).all()  # the moments of the first step
    history, _ = apply_all(settings(weight_decay=0.1), start, [hack])
    assert (deployed(history[0]) < 0.25).all()  # decay
    zeros = jax.tree.map(jnp.zeros_like, start)
    history, _ = apply_all(settings(weight_decay=0.1), zeros, [hack] * 5)
    assert (deployed(history[-1]) == 0.0).all()  # nothing to decay: still exactly at init


def test_config_reaches_every_constant():
    """Each field changes the second update of gradients whose size and sign change."""
    gradients = [{"a": jnp.array([3.0, -0.2])}, {"a": jnp.array([-0.1, -0.3])}]
    start = {"a": jnp.array([0.5, -0.5])}

    def final(**changes):
        return np.asarray(apply_all(settings(**changes), start, gradients)[0][-1]["a"])

    changes = dict(lr=1e-3, warmup_frac=0.5, weight_decay=0.0, beta1=0.5, beta2=0.9, epsilon=1e-2, clip_norm=0.1)
    for name, value in changes.items():
        assert (final(**{name: value}) != final()).any(), name


@pytest.mark.parametrize(
    ("steps", "warmup_frac", "warmup"),
    [(60, 0.2, 12), (7, 0.2, 2), (50, 0.14, 7), (5, 0.0, 0), (1, 0.2, 1), (4, 1.0, 4)],
)
def test_schedule_is_linear_then_cosine(steps, warmup_frac, warmup):
    schedule = optim.learning_rate(settings(lr=2.0, warmup_frac=warmup_frac), steps)
    rates = np.array([schedule(step) for step in range(steps)])
    expected = [written_out_rate(step, peak=2.0, warmup=warmup, steps=steps) for step in range(steps)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    assert (rates > 0).all() and (rates <= 2.0).all()
    if warmup < steps:
        assert rates[warmup] == 2.0 and rates.argmax() == warmup
        np.testing.assert_allclose([schedule(steps), schedule(steps + 5)], 0.0, atol=1e-6)
    assert (np.diff(rates[: warmup + 1]) > 0).all() and (np.diff(rates[warmup:]) < 0).all()


def test_schedule_equals_pytorch():
    steps, warmup = 60, 12
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=3e-4)
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps - warmup)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, decay], milestones=[warmup])
    schedule = optim.learning_rate(OptimConfig(), steps)
    for step in range(steps):
        np.testing.assert_allclose(schedule(step), optimizer.param_groups[0]["lr"], rtol=1e-4, atol=1e-10)
        optimizer.step()
        scheduler.step()


def test_the_first_update_uses_the_first_rate():
    """Adam's first step moves each element by the rate: an off-by-one in the count would show here."""
    start = {"a": jnp.zeros(2)}
    history, _ = apply_all(settings(weight_decay=0.0), start, [{"a": jnp.array([0.3, -0.4])}])
    np.testing.assert_allclose(history[0]["a"], np.array([-1, 1]) * 3e-3 / 5, rtol=1e-5)


def test_settings_out_of_range_are_errors():
    with pytest.raises(ValueError, match="train.steps must be >= 1, got 0"):
        optim.make_optimizer(OptimConfig(), 0)
    with pytest.raises(ValueError, match="optim.warmup_frac must be between 0 and 1, got 1.5"):
        optim.learning_rate(OptimConfig(warmup_frac=1.5), 10)
