"""The residual stream scores: its projection on the pairs' mean difference (docs/arms.md)."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from vgrout_jax.arms.base import Flags, Memory, Readings, Seen, Source
from vgrout_jax.routing.direction import unit
from vgrout_jax.routing.gate import CLEAN

DEPTH = (0.60, 0.75)  # share of the layers that are read


class Residual(Source):
    """s_i: mean over layers at 60 to 75% of depth of <h_i, unit(mean h(hack) - mean h(clean))>; it flags nobody.

    Published with the last prompt token, which is the same for a whole group and cannot tell its rollouts apart; here
    h is the mean over the completion's tokens.
    """

    zones = (CLEAN,)
    reads_features = learns = True

    def learn(self, pairs: Readings) -> Float[Array, "L D"]:
        hack, clean = jnp.split(pairs.features, 2)
        return unit(jnp.mean(hack, axis=0) - jnp.mean(clean, axis=0))

    def flag(self, seen: Seen, memory: Memory, key: Array) -> Flags:
        layers = slice(*layers_read(memory.shape[0]))
        projections = jnp.sum(seen.features[:, layers] * memory[layers], axis=-1)  # [N, layers]
        score, nobody = jnp.mean(projections, axis=1), jnp.zeros(seen.advantages.shape)
        finite = jnp.isfinite(score).all()
        return Flags(nobody.astype(jnp.int32), nobody, seen.advantages != 0, finite, {"score": score})


def layers_read(layers: int) -> tuple[int, int]:
    """First and end of the layers whose output stands at 60 to 75% of the depth, at least one."""
    first = min(math.ceil(DEPTH[0] * layers), layers) - 1
    return first, max(math.floor(DEPTH[1] * layers), first + 1)
