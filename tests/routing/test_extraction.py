"""Extraction of the direction: PyTorch autograd as oracle, invariances, the placebos' random direction."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.routing import oracle, torch_probe
from tests.routing.test_probe import varied
from vgrout_jax.arms.base import Readings
from vgrout_jax.arms.compose import make_arm
from vgrout_jax.model import lora2r
from vgrout_jax.routing import direction
from vgrout_jax.routing.extraction import Sides, build_extractor

PAIRS = 3
CALIBRATED = {"direction": {"unit_sides": True}, "gate": {"leave_one_out": True, "pool": "mean_then_band"}}
LITERAL = {"direction": {"unit_sides": False}, "gate": {"leave_one_out": False, "pool": "band_then_mean"}}
MODULES = 7 * tiny.model().num_layers


@pytest.fixture(scope="module")
def frozen():
    return varied(tiny.frozen(tiny.model()))


@pytest.fixture(scope="module")
def deltas(frozen):
    return tiny.moved(frozen.init, 0.1)


def sequences():
    """(prompt, completion) of each side, hack sides first; every length is another."""
    generator = np.random.default_rng(7)
    lengths = [(3, 6), (5, 2), (4, 4), (2, 5), (5, 3), (3, 1)]
    return [tuple(generator.integers(0, tiny.VOCAB, length).tolist() for length in pair) for pair in lengths]


def make_sides(rows=None, *, left=0, right=0):
    """The pairs as arrays, with more padding than is needed on either side."""
    rows = sequences() if rows is None else rows
    bucket = left + max(len(prompt) for prompt, _ in rows)
    length = right + max(len(completion) for _, completion in rows)
    tokens = np.full((len(rows), bucket + length), 1, np.int32)
    valid = np.zeros(tokens.shape, bool)
    for index, (prompt, completion) in enumerate(rows):
        window = slice(bucket - len(prompt), bucket + len(completion))
        tokens[index, window], valid[index, window] = prompt + completion, True
    return Sides(*map(jnp.asarray, (tokens, valid, valid[:, bucket:])))


EXTRACTORS = {}


def learn_with(source, gradients, features):
    return source.learn(Readings(gradients, features))


def extract(frozen, deltas, sides=None, **sections):
    """(routing, gradients) of a run with these settings; its program is compiled once for all tests."""
    key = repr(sections) if sides is None else None
    if key is None or key not in EXTRACTORS:
        sides = make_sides() if sides is None else sides
        config = tiny.config(**sections)
        source = make_arm(config).source
        learn = functools.partial(learn_with, source)
        EXTRACTORS[key] = build_extractor(config, tiny.model(), sides, tiny.mesh(), learn=learn)
    return EXTRACTORS[key](deltas, frozen)


def gradients_of(frozen, deltas, sides=None, **changes):
    """[2P, M, r], float32."""
    sections = {**CALIBRATED, "direction": {**CALIBRATED["direction"], **changes}}
    gradients = extract(frozen, deltas, sides, **sections)[1]
    assert gradients.dtype == jnp.float32
    return np.asarray(gradients)


@pytest.fixture(scope="module")
def torch_gradients(frozen, deltas):
    """grad_c of every side's -(mean over tokens of log pi), quarantine ablated, in float64."""
    model = torch_probe.Oracle(tiny.model(), frozen, deltas, blocks=1)
    rows = [model.gradient(-model.logprobs(*row).mean()) for row in sequences()]
    return np.stack(rows)[..., : tiny.RANK]


def test_side_gradients_equal_torch_autograd(frozen, deltas, torch_gradients):
    ours = gradients_of(frozen, deltas)
    assert ours.shape == (2 * PAIRS, MODULES, tiny.RANK)
    for row, expected in zip(ours, torch_gradients, strict=True):
        np.testing.assert_allclose(row, expected, rtol=1e-3, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("unit_sides", [True, False])
def test_direction_equals_torch_autograd(frozen, deltas, torch_gradients, unit_sides):
    routing, gradients = extract(frozen, deltas, **(CALIBRATED if unit_sides else LITERAL))
    hack, clean = torch_gradients[:PAIRS], torch_gradients[PAIRS:]
    expected = oracle.direction(hack, clean, unit_sides)
    other = oracle.direction(hack, clean, not unit_sides)
    np.testing.assert_allclose(routing.v, expected, atol=2e-4)
    np.testing.assert_allclose(gradients[:PAIRS], hack, rtol=1e-3, atol=2e-5 * np.abs(hack).max())
    assert np.abs(np.asarray(other) - np.asarray(expected)).max() > 0.05  # the switch makes a difference here


@pytest.mark.parametrize("literal", [False, True])
def test_bands_follow_the_settings(frozen, deltas, torch_gradients, literal):
    """Leave-one-out, pool and floor reach the bands: scores of made-up rollouts equal the oracle's."""
    pool = "band_then_mean" if literal else "mean_then_band"
    routing, _ = extract(frozen, deltas, **(LITERAL if literal else CALIBRATED))
    g = np.random.default_rng(3).normal(size=(5, MODULES, tiny.RANK)).astype(np.float32)
    z = direction.scores(jnp.asarray(g), routing.v, routing.bands)
    hack, clean = torch_gradients[:PAIRS], torch_gradients[PAIRS:]
    expected, usable = oracle.real_scores(g, hack, clean, not literal, not literal, pool, 0.05)
    assert int(routing.bands.usable_modules) == usable
    np.testing.assert_allclose(z, expected, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("pairs_per_batch", [1, 5])
def test_batches_of_any_size_give_the_same(frozen, deltas, pairs_per_batch):
    """Neither eight nor five divides the six sides: what fills the last batch must not show."""
    expected = gradients_of(frozen, deltas)
    ours = gradients_of(frozen, deltas, pairs_per_batch=pairs_per_batch)
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_padding_changes_nothing(frozen, deltas):
    expected = gradients_of(frozen, deltas)
    ours = gradients_of(frozen, deltas, make_sides(left=3, right=5))
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=2e-5 * np.abs(expected).max())


def test_quarantine_is_ablated(frozen, deltas):
    """The direction is that of the deployed policy, whatever the quarantine has learnt."""
    np.testing.assert_array_equal(gradients_of(frozen, deltas), gradients_of(frozen, lora2r.ablate(deltas)))


def test_random_direction_is_drawn_once(frozen, deltas):
    """It changes with its seed and with nothing else; its bands come from the same pairs, in-sample."""
    moved = tiny.moved(frozen.init, 0.1, seed=8)
    section = {"placebo": {"kind": "direction", "seed": 3}}
    first, gradients = extract(frozen, deltas, **section)
    later, _ = extract(frozen, moved, **section)
    reseeded = extract(frozen, deltas, placebo={"kind": "direction", "seed": 4})[0].v
    np.testing.assert_array_equal(first.v, later.v)
    assert np.abs(np.asarray(first.v) - np.asarray(reseeded)).max() > 0.1
    np.testing.assert_allclose(np.linalg.norm(first.v, axis=-1), 1.0, atol=1e-6)
    real, _ = extract(frozen, deltas, **CALIBRATED)
    assert np.abs(np.asarray(first.v) - np.asarray(real.v)).max() > 0.1
    hack, clean = np.asarray(gradients[:PAIRS]), np.asarray(gradients[PAIRS:])
    expected, _ = oracle.random_scores(hack, hack, clean, np.asarray(first.v), "mean_then_band", 0.05)
    z = direction.scores(gradients[:PAIRS], first.v, first.bands)
    np.testing.assert_allclose(z, expected, rtol=1e-3, atol=1e-3)


def test_matched_placebo_keeps_the_real_direction_beside_the_random_one(frozen, deltas):
    moved = tiny.moved(frozen.init, 0.1, seed=8)
    real, _ = extract(frozen, deltas, **CALIBRATED)
    random, _ = extract(frozen, deltas, placebo={"kind": "direction", "seed": 3})
    matched, _ = extract(frozen, deltas, placebo={"kind": "direction_matched", "seed": 3})
    later, _ = extract(frozen, moved, placebo={"kind": "direction_matched", "seed": 3})
    np.testing.assert_allclose(matched.v, real.v, atol=1e-6)
    np.testing.assert_array_equal(matched.random.v, random.v)
    np.testing.assert_array_equal(matched.random.v, later.random.v)
    assert np.abs(np.asarray(matched.v) - np.asarray(later.v)).max() > 0.01  # the real one follows the adapter


def test_permuted_labels_use_the_real_direction(frozen, deltas):
    real, _ = extract(frozen, deltas, **CALIBRATED)
    placebo, _ = extract(frozen, deltas, placebo={"kind": "labels"})
    assert placebo.random is None
    for ours, expected in zip(jax.tree.leaves(placebo), jax.tree.leaves(real), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-6)
