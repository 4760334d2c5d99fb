"""The probe's sources called as functions: what they learn from pairs, and how they label rollouts."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vgrout_jax.arms import placebos
from vgrout_jax.arms.base import Readings
from vgrout_jax.arms.probe import Probe
from vgrout_jax.routing.direction import Routing

SETTINGS = {
    "literal": {"unit_sides": False, "leave_one_out": False, "pool": "band_then_mean", "band_floor": 0.05},
    "calibrated": {"unit_sides": True, "leave_one_out": True, "pool": "mean_then_band", "band_floor": 0.05},
}
KINDS = {
    "direction": placebos.RandomDirection,
    "direction_matched": placebos.MatchedDirection,
    "labels": placebos.PermutedLabels,
    "lazy_pairs": placebos.LazyPairs,
}
SEEDED = ("direction", "direction_matched")


class Gated(NamedTuple):
    """Labels of a step's rollouts and what led to them."""

    labels: Any
    scores: Any
    scored: Any
    finite: Any
    usable_modules: int
    placebo_scores: Any


@functools.cache
def _programs(placebo: str | None, seed: int, settings: tuple) -> tuple:
    options = dict(settings) | ({"seed": seed} if placebo in SEEDED else {})
    source = KINDS.get(placebo, Probe)(**options)
    return source, jax.jit(source.learn), jax.jit(source.score), jax.jit(source.zone)


def make_source(
    placebo: str | None = None, *, seed: int = 0, low: float = 0.0, high: float = 0.3, **changes
) -> tuple:
    """(source, jitted learn, score and zone) of the calibrated setting with changes."""
    options = {**SETTINGS["calibrated"], **changes, "low": low, "high": high}
    return _programs(placebo, seed, tuple(sorted(options.items())))


def build(hack, clean, placebo: str | None = None, *, seed: int = 0, **changes) -> Routing:
    """What a source learns from the sides' gradients; `seed`: of a random direction."""
    _, learn, _, _ = make_source(placebo, seed=seed, **changes)
    return learn(Readings(jnp.concatenate([jnp.asarray(hack), jnp.asarray(clean)])))


def gated(g, routing: Routing, scored, *, key: int = 0, placebo: str | None = None, **changes) -> Gated:
    """Labels of rollouts; `key`: seed of the step's key."""
    source, _, score, zone = make_source(placebo, **changes)
    found = score(jnp.asarray(g), routing, jnp.asarray(scored))
    labels = zone(found, jax.random.key(key))
    modules = source.usable_modules(routing)
    return Gated(labels, found.score, np.asarray(found.scored), found.finite, modules, found.other)
