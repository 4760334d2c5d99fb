"""The two-pass step: masks per rollout, ratios, invariances, and what the compiled program holds."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import tiny
from tests.rl.stepping import CONFIGS, compiled, key, make_config, make_rows, routing_for, run_step
from vgrout_jax.arms.compose import make_arm
from vgrout_jax.model import lora2r, padding, sharding
from vgrout_jax.model.logprobs import completion_logprobs
from vgrout_jax.model.policy import Policy
from vgrout_jax.rl import grpo, optim
from vgrout_jax.rl.schedule import prefix
from vgrout_jax.rl.state import initial_state
from vgrout_jax.rl.step import build_step
from vgrout_jax.routing import direction, gate

LABELS = jnp.array(
    [gate.CLEAN, gate.MID, gate.HACK, gate.HACK, gate.MID, gate.CLEAN, gate.HACK, gate.CLEAN], jnp.int32
)


def gradient_of(config, frozen, deltas, labels, batch=None, old=None):
    """Pass 2's loss, gradient and statistics for given labels."""
    batch = tiny.batch() if batch is None else batch
    state = tiny.state(deltas, optax.identity())
    old = jnp.full(batch.completion_mask.shape, -2.0) if old is None else old
    return compiled(key(config))[0](state, frozen, make_rows(config, batch, labels, old))


@functools.cache
def solo_gradient(settings: str):
    """Jitted gradient of one rollout's share of the loss under its own masks, written without the step."""
    config = CONFIGS[settings]

    def loss(values, frozen, row, route, old):
        def logprobs(adapter, route):
            return completion_logprobs(
                tiny.model(),
                Policy(frozen.base, adapter, route),
                row.batch.tokens,
                row.batch.valid,
                completion_length=tiny.NEW_TOKENS,
                chunk=7,
            )

        current = logprobs(lora2r.Adapter(frozen.init, values), route)
        same = row.batch.quarantine_sampled == route.quarantine_on
        losses, _ = grpo.row_losses(
            current,
            jnp.where(same[:, None], jax.lax.stop_gradient(current), old),
            logprobs(None, None),
            row.batch.completion_mask,
            row.advantages,
            live=row.live,
            settings=grpo.LossSettings.of(config),
        )
        return losses.sum()

    return jax.jit(jax.grad(loss))


def blocks(factors):
    """(deployed, quarantine) leaves of a gradient."""
    r = tiny.RANK
    deployed = [leaf[:, :r] for leaf in factors.a.values()] + [leaf[..., :r] for leaf in factors.b.values()]
    quarantine = [leaf[:, r:] for leaf in factors.a.values()] + [leaf[..., r:] for leaf in factors.b.values()]
    return deployed, quarantine


@pytest.mark.parametrize("schedule", ["fast", "plain"])
def test_mixed_gradient_is_sum_of_solo_gradients_per_block(frozen, deltas, schedule):
    config = make_config(train={"schedule": schedule})
    old = jnp.full((tiny.ROWS, tiny.NEW_TOKENS), -2.0)
    _, mixed, _ = gradient_of(config, frozen, deltas, LABELS, old=old)
    row, route = make_rows(config, tiny.batch()), lora2r.Route(*gate.route_masks(LABELS))
    one_by_one = [tiny.row((row, route, old), index) for index in range(tiny.ROWS)]
    solos = [solo_gradient(key(config))(deltas, frozen, *one) for one in one_by_one]
    total = jax.tree.map(lambda *leaves: sum(leaves), *solos)
    for ours, theirs in zip(jax.tree.leaves(mixed), jax.tree.leaves(total), strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * scale + 1e-9, rtol=1e-4)
    for index, solo in enumerate(solos):
        deployed, quarantine = (max(float(jnp.abs(leaf).max()) for leaf in block) for block in blocks(solo))
        expected = {gate.CLEAN: (True, False), gate.MID: (True, True), gate.HACK: (False, True)}
        assert (deployed > 0, quarantine > 0) == expected[int(LABELS[index])]


@pytest.mark.parametrize("label,frozen_block", [(gate.CLEAN, 1), (gate.HACK, 0)])
def test_forbidden_block_gets_exactly_zero(frozen, deltas, label, frozen_block):
    labels = jnp.full(tiny.ROWS, label, jnp.int32)
    _, gradient, _ = gradient_of(make_config(), frozen, deltas, labels)
    for leaf in blocks(gradient)[frozen_block]:
        assert float(jnp.abs(leaf).max()) == 0.0
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in blocks(gradient)[1 - frozen_block])


@pytest.mark.parametrize("schedule", ["fast", "plain"])
def test_clean_gradient_equals_finite_differences(frozen, deltas, schedule):
    labels = jnp.full(tiny.ROWS, gate.CLEAN, jnp.int32)
    # With every row sampled by the deployed policy and ratio 1 the surrogate is not the loss; `clip` with a fixed
    # old policy is, wherever no ratio is near the clip's edges.
    config = make_config(loss={"ratio": "clip", "clip_epsilon": 1e6}, train={"schedule": schedule})
    batch = tiny.batch().replace(quarantine_sampled=jnp.ones(tiny.ROWS, bool))
    _, gradient, _ = gradient_of(config, frozen, deltas, labels, batch=batch)
    towards = tiny.moved(frozen.init, 1.0, seed=5)
    slope = sum(
        float(jnp.vdot(g, t)) for g, t in zip(jax.tree.leaves(gradient), jax.tree.leaves(towards), strict=True)
    )
    step = 1e-3
    ends = [jax.tree.map(lambda d, t, s=sign: d + s * step * t, deltas, towards) for sign in (1, -1)]
    upper, lower = (float(gradient_of(config, frozen, end, labels, batch=batch)[0]) for end in ends)
    assert (upper - lower) / (2 * step) == pytest.approx(slope, rel=2e-2)


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_micro_batches_change_nothing(frozen, deltas, micro_batch):
    outputs = []
    for size in (tiny.ROWS, micro_batch):
        config = make_config(train={"micro_batch": size})
        outputs.append(run_step(config, frozen, deltas))
    (state, metrics), (split_state, split_metrics) = outputs
    np.testing.assert_allclose(metrics.decision.record["score"], split_metrics.decision.record["score"], atol=1e-5)
    np.testing.assert_array_equal(metrics.decision.labels, split_metrics.decision.labels)
    np.testing.assert_allclose(metrics.loss, split_metrics.loss, rtol=1e-5, atol=1e-7)
    for ours, theirs in zip(jax.tree.leaves(state.deltas), jax.tree.leaves(split_state.deltas), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_short_completions_are_run_at_a_short_length_and_that_changes_nothing(frozen, deltas, monkeypatch):
    """Completions of 2 to 6 tokens at the lengths 2, 4 and 6, two rows at a time, against all at 6."""
    config = make_config(train={"micro_batch": 2})
    expected_state, expected = run_step(config, frozen, deltas)
    monkeypatch.setattr(padding, "_SHORTEST", 2)
    assert padding.completion_lengths(tiny.NEW_TOKENS) == [2, 4, tiny.NEW_TOKENS]
    traced, logprobs = [], prefix.Reader.logprobs
    monkeypatch.setattr(
        prefix.Reader,
        "logprobs",
        lambda *given, length, **more: (traced.append(length), logprobs(*given, length=length, **more))[1],
    )
    step = build_step(config, tiny.model(), compiled(key(config))[2], tiny.mesh(), arm=make_arm(config))
    start = tiny.state(jax.tree.map(jnp.copy, deltas), compiled(key(config))[2])
    state, metrics = step(start, frozen, routing_for(frozen), tiny.batch(), jax.random.key(0))
    assert set(traced) == {2, 4, 6}
    np.testing.assert_allclose(metrics.decision.record["score"], expected.decision.record["score"], atol=1e-5)
    np.testing.assert_array_equal(metrics.decision.labels, expected.decision.labels)
    np.testing.assert_allclose(metrics.loss, expected.loss, rtol=1e-5, atol=1e-7)
    needed = metrics.recomputed[:, None] & tiny.batch().completion_mask
    np.testing.assert_allclose(
        jnp.where(needed, metrics.logprobs, 0), jnp.where(needed, expected.logprobs, 0), atol=1e-5
    )
    for ours, theirs in zip(jax.tree.leaves(state.deltas), jax.tree.leaves(expected_state.deltas), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_padding_changes_nothing(frozen, deltas):
    config = make_config()
    batch = tiny.batch()
    wider = batch.replace(
        tokens=jnp.pad(batch.tokens, ((0, 0), (4, 0)), constant_values=7),
        valid=jnp.pad(batch.valid, ((0, 0), (4, 0))),
    )
    _, metrics = run_step(config, frozen, deltas, batch)
    _, padded = run_step(config, frozen, deltas, wider)
    np.testing.assert_allclose(metrics.decision.record["score"], padded.decision.record["score"], atol=1e-5)
    np.testing.assert_allclose(metrics.loss, padded.loss, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(metrics.gradient_norm, padded.gradient_norm, rtol=1e-4)


def test_step_labels_all_zones_and_follows_the_gate(frozen, deltas):
    config = make_config(gate={"probe_policy": "full"})
    _, metrics = run_step(config, frozen, deltas)
    g = metrics.probe.astype(jnp.float32)
    z = direction.scores(g, routing_for(frozen).v, routing_for(frozen).bands)
    np.testing.assert_allclose(metrics.decision.record["score"], z, atol=0.1)
    assert set(np.asarray(metrics.decision.labels).tolist()) == {gate.CLEAN, gate.MID, gate.HACK}


def test_one_compilation_serves_a_run(frozen):
    """As `train` calls it: everything placed on the mesh, the state handed from call to call."""
    config, mesh = make_config(), tiny.mesh()
    optimizer = optim.make_optimizer(config.optim, config.train.steps)
    step = build_step(config, tiny.model(), optimizer, mesh, arm=make_arm(config))
    state = initial_state(frozen.init, optimizer, mesh)
    everywhere = sharding.replicated(mesh)
    placed, routing = jax.device_put((frozen, routing_for(frozen)), everywhere)
    calls = []
    for seed in range(4):
        batch = tiny.batch(seed, np.zeros(tiny.ROWS) if seed == 1 else None)
        batch = jax.device_put(batch, sharding.batch_shardings(mesh, batch))
        calls.append((batch, jax.device_put(jax.random.key(seed), everywhere)))
    compilations = []
    with count_compilations(compilations):
        for batch, step_key in calls:
            state, _ = step(state, placed, routing, batch, step_key)
    assert len(compilations) == 1 and int(state.step) == 4


@contextlib.contextmanager
def count_compilations(events: list):
    """Appends to `events` at every run of the XLA compiler."""

    def listen(event: str, *_, **__) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        jax.monitoring.clear_event_listeners()


def test_state_is_donated(frozen, deltas):
    _, step, optimizer = compiled(key(make_config()))
    state = tiny.state(jax.tree.map(jnp.copy, deltas), optimizer)
    step(state, frozen, routing_for(frozen), tiny.batch(), jax.random.key(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.deltas))


def test_compiled_step_never_talks_to_the_host(frozen, deltas):
    _, step, optimizer = compiled(key(make_config()))
    state = tiny.state(deltas, optimizer)
    lowered = step.lower(state, frozen, routing_for(frozen), tiny.batch(), jax.random.key(0))
    text = lowered.as_text() + lowered.compile().as_text()
    for word in ("callback", "infeed", "outfeed", "send", "recv"):
        assert not [line for line in text.splitlines() if f"{word}(" in line or f"xla_python_cpu_{word}" in line]
    assert "is_host_transfer=true" not in text


def test_host_transfer_check_can_fail():
    def talks(x):
        jax.debug.callback(lambda value: None, x)
        return x

    text = jax.jit(talks).lower(jnp.ones(2)).as_text()
    assert "callback" in text


def test_equal_rewards_move_nothing(frozen, deltas):
    config = make_config()
    state, metrics = run_step(config, frozen, deltas, tiny.batch(rewards=np.full(tiny.ROWS, 3.5)))
    assert not metrics.decision.live.any() and float(metrics.loss) == 0.0 and float(metrics.gradient_norm) == 0.0
    # Only the decay toward A0, B0 is left: every difference shrinks by the same factor.
    factor = 1 - config.optim.weight_decay * float(optim.learning_rate(config.optim, config.train.steps)(0))
    for ours, theirs in zip(jax.tree.leaves(state.deltas), jax.tree.leaves(deltas), strict=True):
        np.testing.assert_allclose(ours, factor * theirs, rtol=1e-6)


def test_zero_advantage_row_trains_as_clean_through_kl(frozen, deltas):
    rewards = [1.0, 0.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]  # rows 0 and 3 are at their group's mean
    config = make_config()
    _, metrics = run_step(config, frozen, deltas, tiny.batch(rewards=rewards))
    labels, scored = np.asarray(metrics.decision.labels), np.asarray(metrics.decision.scored)
    assert not scored[[0, 3]].any() and (labels[[0, 3]] == gate.CLEAN).all() and scored[[1, 2]].all()
    assert np.asarray(metrics.decision.live)[:4].all() and not np.asarray(metrics.decision.live)[4:].any()


def test_pinned_clean_never_touches_the_quarantine(frozen):
    config = make_config("none")
    deltas = jax.tree.map(jnp.zeros_like, frozen.init)
    state, metrics = run_step(config, frozen, deltas)
    deployed, quarantine = blocks(state.deltas)
    assert all(float(jnp.abs(leaf).max()) == 0.0 for leaf in quarantine)
    assert max(float(jnp.abs(leaf).max()) for leaf in deployed) > 0
    assert float(metrics.qmass) == 0.0
    np.testing.assert_array_equal(metrics.recomputed, metrics.decision.live)


@pytest.mark.parametrize("poison", ["reward", "probe", "state"])
def test_non_finite_values_are_named_and_not_applied(frozen, deltas, poison):
    config = make_config()
    batch, given = tiny.batch(), deltas
    if poison == "reward":
        batch = batch.replace(rewards=batch.rewards.at[1].set(jnp.nan))
    frozen_poisoned = frozen
    if poison == "probe":
        frozen_poisoned = frozen.replace(base={**frozen.base, "final_norm": frozen.base["final_norm"] * jnp.nan})
    if poison == "state":
        given = deltas.replace(a={**deltas.a, "q_proj": deltas.a["q_proj"] * jnp.nan})
    state, metrics = run_step(config, frozen_poisoned, given, batch)
    named = {name for name, finite in metrics.finite.items() if not bool(finite)}
    assert ("rewards" in named) == (poison == "reward")
    assert {"loss", "gradient"} <= named and int(state.step) == 0
    for ours, theirs in zip(jax.tree.leaves(state.deltas), jax.tree.leaves(given), strict=True):
        np.testing.assert_array_equal(ours, theirs)
