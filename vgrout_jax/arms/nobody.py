"""Nobody flags: the source of `none` and `absorb`."""

import jax.numpy as jnp
from jaxtyping import Array

from vgrout_jax.arms.base import Flags, Memory, Seen, Source
from vgrout_jax.routing.gate import CLEAN


class Nobody(Source):
    """Every rollout is clean, whatever it is."""

    zones = (CLEAN,)

    def flag(self, seen: Seen, memory: Memory, key: Array) -> Flags:
        zeros = jnp.zeros(seen.advantages.shape)
        return Flags(zeros.astype(jnp.int32), zeros, seen.advantages != 0, jnp.array(True), {})
