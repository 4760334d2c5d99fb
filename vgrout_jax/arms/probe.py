"""The probe's gradient flags: the source of routeV (docs/method.md sections 4 to 6)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from vgrout_jax.arms.base import Flags, Readings, Seen, Source
from vgrout_jax.routing import direction, gate
from vgrout_jax.routing.direction import Routing


@struct.dataclass
class Scored:
    """Scores of a step's rollouts.

    Attributes:
        score: [N] float32, z; 0 where `scored` is False.
        scored: [N] bool: an advantage other than zero, and a direction with a usable module.
        finite: [] bool.
        other: [N] float32, z along another direction, where a placebo has one; else None.
    """

    score: jax.Array
    scored: jax.Array
    finite: jax.Array
    other: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Probe(Source):
    """z of each rollout's gradient against the direction of the pairs: clean, mid or hack.

    Attributes:
        low, high: z <= low is clean, z >= high hack.
        pool, band_floor: of `direction.make_bands`.
        unit_sides: of `direction.directions_from_pairs`.
        leave_one_out: whether a pair's cosines are taken against the direction of the others.
    """

    low: float
    high: float
    pool: str
    band_floor: float
    unit_sides: bool
    leave_one_out: bool

    zones = (gate.CLEAN, gate.MID, gate.HACK)
    reads_probe = learns = True
    needs_module = True  # a run without a usable module stops; for a placebo that is an event to count

    def learn(self, pairs: Readings) -> Routing:
        hack, clean = jnp.split(pairs.gradients, 2)
        v = direction.directions_from_pairs(hack, clean, unit_sides=self.unit_sides)
        against = v
        if self.leave_one_out:
            against = direction.leave_one_out_directions(hack, clean, unit_sides=self.unit_sides)
        return self.with_bands(v, hack, clean, against=against)

    def with_bands(
        self, v: Float[Array, "M R"], hack: Float[Array, "P M R"], clean: Float[Array, "P M R"], *, against: Array
    ) -> Routing:
        """The direction `v` with bands from the pairs' cosines with `against`, one direction or one a pair."""
        cosines = direction.pair_cosines(hack, clean, against)
        return Routing(v, direction.make_bands(*cosines, v, pool=self.pool, band_floor=self.band_floor))

    def check(self, memory: Routing) -> None:
        direction.check_routing(memory, needs_module=self.needs_module)

    def describe(self, memory: Routing) -> dict[str, float | int | None]:
        usable = np.asarray(memory.bands.usable)

        def pooled(leaf: jax.Array) -> float | None:
            return float(np.mean([float(value) for value in np.asarray(leaf)[usable]])) if usable.any() else None

        modules = self.usable_modules(memory)
        return {
            "gate/band_low": pooled(memory.bands.low_edge),
            "gate/band_width": pooled(memory.bands.width),
            "gate/modules": modules,
            "gate/no_usable_module": int(modules == 0),
        }

    def usable_modules(self, memory: Routing) -> int:
        """Modules in the pool, of two directions the fewer."""
        return int(memory.bands.usable_modules)

    def score(self, gradients: Float[Array, "N M R"], memory: Routing, asked: Bool[Array, "N"]) -> Scored:
        """z of every rollout that is asked about."""
        z = direction.scores(gradients, memory.v, memory.bands)
        finite = jnp.all(jnp.isfinite(gradients)) & jnp.all(jnp.isfinite(z))
        scored = asked & (memory.bands.usable_modules > 0)
        return Scored(jnp.where(scored, z, 0.0), scored, finite)

    def zone(self, found: Scored, key: Array) -> Int[Array, "N"]:
        """The zones that scores give."""
        return gate.labels_from_scores(found.score, found.scored, low=self.low, high=self.high)

    def flag(self, seen: Seen, memory: Routing, key: Array) -> Flags:
        found = self.score(seen.gradients, memory, seen.advantages != 0)
        zones = self.zone(found, key)
        record = {"score": found.score} | ({} if found.other is None else {"placebo_score": found.other})
        return Flags(zones, (zones == gate.HACK).astype(jnp.float32), found.scored, found.finite, record)
