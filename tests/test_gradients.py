"""Stored probe gradients come back as they were, so that a gate can be replayed offline."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.rl.test_diagnostics import make_metrics
from vgrout_jax import gradients
from vgrout_jax.routing import direction


@pytest.fixture
def probe():
    return jax.random.normal(jax.random.key(0), (8, 3, 2)).astype(jnp.bfloat16)


def test_step_round_trip(tmp_path, probe):
    metrics = make_metrics(probe=jax.device_get(probe))
    gradients.save_step(tmp_path, 12, metrics)
    stored = np.load(tmp_path / "gradients" / "step_000012.npz")
    np.testing.assert_array_equal(gradients.from_bits(stored["probe"]), np.asarray(probe, np.float32))
    for name, leaf in (
        ("score", metrics.gate.scores),
        ("scored", metrics.gate.scored),
        ("label", metrics.gate.labels),
        ("advantage", metrics.advantages),
    ):
        np.testing.assert_array_equal(stored[name], leaf)


@pytest.mark.parametrize("unit_sides", [True, False])
def test_any_direction_can_be_made_anew_from_a_stored_refresh(tmp_path, unit_sides):
    sides = jax.random.normal(jax.random.key(1), (8, 14, tiny.RANK)).astype(jnp.bfloat16).astype(jnp.float32)
    settings = {"placebo": None, "leave_one_out": True, "pool": "mean_then_band", "band_floor": 0.05}
    routing = direction.build_routing(sides[:4], sides[4:], None, unit_sides=unit_sides, **settings)
    gradients.save_direction(tmp_path, 5, routing, sides)
    stored = np.load(tmp_path / "gradients" / "direction_000005.npz")
    bands = direction.Bands(*(jnp.asarray(stored[n]) for n in ("low_edge", "high_edge", "width", "usable")), 14)
    g = jax.random.normal(jax.random.key(2), (5, 14, tiny.RANK))
    expected = direction.scores(g, routing.v, routing.bands)
    np.testing.assert_array_equal(direction.scores(g, jnp.asarray(stored["v"]), bands), expected)
    again = jnp.asarray(gradients.from_bits(stored["sides"]))
    remade = direction.build_routing(again[:4], again[4:], None, unit_sides=unit_sides, **settings)
    np.testing.assert_allclose(direction.scores(g, remade.v, remade.bands), expected, atol=1e-5)
