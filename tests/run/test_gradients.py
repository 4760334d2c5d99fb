"""Stored probe gradients come back as they were, so that a gate can be replayed offline."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.arms.sources import build
from tests.run.test_step_record import make_metrics
from vgrout_jax.routing import direction
from vgrout_jax.run import gradients


@pytest.fixture
def probe():
    return jax.random.normal(jax.random.key(0), (8, 3, 2)).astype(jnp.bfloat16)


def test_step_round_trip(tmp_path, probe):
    metrics = make_metrics(probe=jax.device_get(probe))
    gradients.save_step(tmp_path, 12, metrics)
    stored = np.load(tmp_path / "gradients" / "step_000012.npz")
    np.testing.assert_array_equal(gradients.from_bits(stored["probe"]), np.asarray(probe, np.float32))
    for name, leaf in (
        ("score", metrics.decision.record["score"]),
        ("scored", metrics.decision.scored),
        ("label", metrics.decision.labels),
        ("advantage", metrics.decision.advantages),
    ):
        np.testing.assert_array_equal(stored[name], leaf)


def test_loading_gives_back_what_was_saved(tmp_path, probe):
    random_scores = np.arange(8, dtype=np.float32)
    decision = make_metrics().decision
    matching = decision.replace(record=decision.record | {"placebo_score": random_scores})
    for step, metrics in ((3, make_metrics(probe=jax.device_get(probe))), (12, None)):
        gradients.save_step(tmp_path, step, metrics or make_metrics(probe=jax.device_get(probe), decision=matching))
    assert gradients.stored_steps(tmp_path) == [3, 12] and gradients.stored_directions(tmp_path) == []
    plain, matched = (gradients.load_step(tmp_path, step) for step in (3, 12))
    np.testing.assert_array_equal(plain.probe, np.asarray(probe, np.float32))
    np.testing.assert_array_equal(plain.score, decision.record["score"])
    np.testing.assert_array_equal(plain.label, decision.labels)
    assert plain.placebo_score is None
    np.testing.assert_array_equal(matched.placebo_score, random_scores)


@pytest.mark.parametrize("placebo", [None, "direction_matched"])
def test_loading_a_direction_gives_back_its_routing(tmp_path, placebo):
    sides = jax.random.normal(jax.random.key(1), (8, 14, tiny.RANK)).astype(jnp.bfloat16).astype(jnp.float32)
    routing = build(sides[:4], sides[4:], placebo, seed=2, pool="band_then_mean")
    gradients.save_direction(tmp_path, 5, routing, sides)
    assert gradients.stored_directions(tmp_path) == [5]
    loaded, loaded_sides = gradients.load_direction(tmp_path, 5)
    np.testing.assert_array_equal(loaded_sides, sides)
    assert jax.tree.structure(loaded) == jax.tree.structure(routing)
    jax.tree.map(np.testing.assert_array_equal, loaded, routing)


def test_missing_and_damaged_files_are_named(tmp_path, probe):
    with pytest.raises(ValueError, match="step_000001.npz is missing.*log.gradients=true"):
        gradients.load_step(tmp_path, 1)
    gradients.save_step(tmp_path, 1, make_metrics(probe=jax.device_get(probe)))
    path = tmp_path / "gradients" / "step_000001.npz"
    for content in (path.read_bytes()[:100], b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="step_000001.npz is damaged"):
            gradients.load_step(tmp_path, 1)


@pytest.mark.parametrize("unit_sides", [True, False])
def test_any_direction_can_be_made_anew_from_a_stored_refresh(tmp_path, unit_sides):
    sides = jax.random.normal(jax.random.key(1), (8, 14, tiny.RANK)).astype(jnp.bfloat16).astype(jnp.float32)
    routing = build(sides[:4], sides[4:], unit_sides=unit_sides)
    gradients.save_direction(tmp_path, 5, routing, sides)
    stored = np.load(tmp_path / "gradients" / "direction_000005.npz")
    bands = direction.Bands(*(jnp.asarray(stored[n]) for n in ("low_edge", "high_edge", "width", "usable")), 14)
    g = jax.random.normal(jax.random.key(2), (5, 14, tiny.RANK))
    expected = direction.scores(g, routing.v, routing.bands)
    np.testing.assert_array_equal(direction.scores(g, jnp.asarray(stored["v"]), bands), expected)
    again = jnp.asarray(gradients.from_bits(stored["sides"]))
    remade = build(again[:4], again[4:], unit_sides=unit_sides)
    np.testing.assert_allclose(direction.scores(g, remade.v, remade.bands), expected, atol=1e-5)
