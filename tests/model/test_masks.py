"""Routing masks through a whole tiny model: whose gradient lands where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgrout_jax.model import lora2r, parameters, qwen3
from vgrout_jax.model.logprobs import completion_logprobs
from vgrout_jax.model.policy import Policy

RANK = 2
CONFIG = qwen3.Qwen3Config(64, 16, 24, 2, 4, 2, 6)
CLEAN, MID, HACK = (False, False), (True, False), (True, True)
LABELS = (CLEAN, MID, HACK, HACK, CLEAN)
ROWS, BUCKET, LENGTH = len(LABELS), 4, 6


@pytest.fixture(scope="module")
def model():
    """Base parameters, large enough to matter, and an adapter that has moved."""
    generator = np.random.default_rng(0)
    # Ten times the usual spread, so that attention is not flat. Norms stay ones.
    initial = parameters.init_parameters(CONFIG, 0)
    base = jax.tree.map(lambda leaf: jnp.asarray(leaf + 9 * (leaf - leaf.mean())), initial)
    init = jax.tree.map(jnp.asarray, lora2r.init_factors(CONFIG.module_shapes(), 2, RANK, seed=0))
    deltas = jax.tree.map(lambda leaf: jnp.float32(0.1 * generator.normal(size=leaf.shape)), init)
    return base, lora2r.Adapter(init=init, deltas=deltas)


def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, valid and a weight for every completion token's log-probability, negative ones among them."""
    generator = np.random.default_rng(1)
    tokens = generator.integers(0, 64, (ROWS, BUCKET + LENGTH))
    valid = np.ones(tokens.shape, bool)
    valid[1, :2] = valid[3, -3:] = False
    weights = generator.normal(size=(ROWS, LENGTH)).astype(np.float32) * valid[:, BUCKET:]
    return tokens, valid, weights


def route_of(labels) -> lora2r.Route:
    on, detached = np.array(labels).T
    return lora2r.Route(jnp.asarray(on), jnp.asarray(detached))


@jax.jit
def loss(model, deltas, route, weights):
    base, adapter = model
    tokens, valid, _ = batch()
    logprobs = completion_logprobs(
        CONFIG,
        Policy(base, adapter.replace(deltas=deltas), route),
        jnp.asarray(tokens),
        jnp.asarray(valid),
        completion_length=LENGTH,
        chunk=16,
    )
    return jnp.sum(weights * logprobs)


gradient = jax.jit(jax.grad(loss, argnums=1))


@jax.jit
def solo_gradient(model, tokens, valid, weights, route):
    """The gradient of one rollout in a batch of its own."""

    def loss(deltas):
        base, adapter = model
        changed = adapter.replace(deltas=deltas)
        logprobs = completion_logprobs(
            CONFIG, Policy(base, changed, route), tokens, valid, completion_length=LENGTH, chunk=4
        )
        return jnp.sum(weights * logprobs)

    return jax.grad(loss)(model[1].deltas)


def halves(factors: lora2r.Factors) -> dict[str, lora2r.Factors]:
    """The parts of a tree of factors that belong to each block."""
    return {
        "deployed": lora2r.Factors(
            a={n: leaf[:, :RANK] for n, leaf in factors.a.items()},
            b={n: leaf[:, :, :RANK] for n, leaf in factors.b.items()},
        ),
        "quarantine": lora2r.Factors(
            a={n: leaf[:, RANK:] for n, leaf in factors.a.items()},
            b={n: leaf[:, :, RANK:] for n, leaf in factors.b.items()},
        ),
    }


@pytest.mark.parametrize(
    "label, trained",
    [(CLEAN, {"deployed"}), (MID, {"deployed", "quarantine"}), (HACK, {"quarantine"})],
    ids=["clean", "mid", "hack"],
)
def test_a_block_that_must_not_train_gets_exactly_zero(model, label, trained):
    blocks = halves(gradient(model, model[1].deltas, route_of([label] * ROWS), batch()[2]))
    for block, factors in blocks.items():
        for leaf in jax.tree.leaves(factors):
            assert np.all(leaf != 0.0) if block in trained else np.all(leaf == 0.0)


def test_mixed_batch_equals_the_sum_of_solo_rollouts(model):
    tokens, valid, weights = batch()
    mixed = halves(gradient(model, model[1].deltas, route_of(LABELS), weights))
    solos = [
        halves(solo_gradient(model, tokens[i : i + 1], valid[i : i + 1], weights[i : i + 1], route_of([label])))
        for i, label in enumerate(LABELS)
    ]
    for block, actual in mixed.items():
        expected = jax.tree.map(lambda *leaves: sum(leaves), *(solo[block] for solo in solos))
        for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            assert np.linalg.norm(ours - theirs) < 1e-4 * np.linalg.norm(theirs)


def test_a_rollout_lands_only_where_its_own_label_says(model):
    """In a mixed batch where one row alone has a loss, the other rows' labels open no door for it."""
    weights = batch()[2]
    for row, label in enumerate(LABELS[:3]):
        alone = np.where(np.arange(ROWS)[:, None] == row, weights, 0.0)
        blocks = halves(gradient(model, model[1].deltas, route_of(LABELS), alone))
        trains = {"deployed": not label[1], "quarantine": label[0]}
        for block, factors in blocks.items():
            for leaf in jax.tree.leaves(factors):
                assert np.all(leaf != 0.0) if trains[block] else np.all(leaf == 0.0)


@pytest.mark.parametrize("label", [CLEAN, MID], ids=["clean", "mid"])
def test_gradient_equals_finite_differences(model, label):
    """Not for hack rows: their stop_gradient also cuts the path to the input, by design."""
    route, weights, deltas = route_of([label] * ROWS), batch()[2], model[1].deltas
    analytic = gradient(model, deltas, route, weights)
    generator = np.random.default_rng(2)
    for name in lora2r.MODULES:
        for factor in ("a", "b"):
            slope = np.asarray(getattr(analytic, factor)[name], np.float64)
            direction = generator.normal(size=slope.shape) + np.sign(slope)  # so that the slope is well away from 0
            direction *= 3e-3 / np.sqrt(np.mean(direction**2))

            def shifted(sign, name=name, factor=factor, direction=direction):
                leaves = getattr(deltas, factor)
                moved = {**leaves, name: leaves[name] + jnp.float32(sign * direction)}
                return float(loss(model, deltas.replace(**{factor: moved}), route, weights))

            expected = (shifted(1.0) - shifted(-1.0)) / 2
            assert expected == pytest.approx(np.sum(slope * direction), rel=2e-2), (name, factor)


def test_masks_act_on_the_values_as_ablation_does(model):
    """A clean row reads the deployed policy, mid and hack rows the policy as trained, whatever their neighbours."""
    base, adapter = model
    tokens, valid, _ = batch()

    @jax.jit
    def logprobs(deltas, route):
        return completion_logprobs(
            CONFIG,
            Policy(base, adapter.replace(deltas=deltas), route),
            jnp.asarray(tokens),
            jnp.asarray(valid),
            completion_length=LENGTH,
            chunk=16,
        )

    deployed = logprobs(lora2r.ablate(adapter.deltas), route_of([HACK] * ROWS))
    trained = logprobs(adapter.deltas, route_of([MID] * ROWS))
    assert np.abs(deployed - trained).max() > 1e-2
    expected = np.where([[label == CLEAN] for label in LABELS], deployed, trained)
    np.testing.assert_allclose(logprobs(adapter.deltas, route_of(LABELS)), expected, atol=1e-5)
