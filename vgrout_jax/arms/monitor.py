"""A monitor flags: the only source that verdicts reach (docs/arms.md)."""

import jax.numpy as jnp
from jaxtyping import Array

from vgrout_jax.arms.base import Flags, Memory, Seen, Source
from vgrout_jax.routing.gate import CLEAN, HACK


class Monitor(Source):
    """Flags what the monitor flags; a rollout without advantage teaches nothing and stays clean."""

    zones = (CLEAN, HACK)
    reads_monitor = True

    def flag(self, seen: Seen, memory: Memory, key: Array) -> Flags:
        scored = seen.advantages != 0
        zones = jnp.where(scored & (seen.flags >= 0.5), HACK, CLEAN).astype(jnp.int32)
        return Flags(zones, seen.flags, scored, jnp.isfinite(seen.flags).all(), {})
