"""The reward of a rollout shrinks with how hack-like its score is within its group (Wu and Tang 2026, 2604.01476)."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vgrout_jax.arms.advantages import reweighted
from vgrout_jax.arms.base import Decision, Flags, Seen
from vgrout_jax.routing.gate import CLEAN

LEAST_DEVIATION = 0.1  # of a group's scores, before it divides


@dataclasses.dataclass(frozen=True)
class ModulateMul:
    """r_i (1 - alpha sigmoid(z_i) [z_i > 0]) with z_i the standard score of s_i in its group; one block trains.

    Attributes:
        alpha: strength; from 1 on a clear hack is worth nothing, from there to 2 less than that.
        unbiased: of `advantages.group_advantages`.
    """

    alpha: float
    unbiased: bool

    def labels(self, zones: tuple[int, ...]) -> tuple[int, ...]:
        return (CLEAN,)

    def decide(self, seen: Seen, flags: Flags) -> Decision:
        z = standard_scores(flags.record["score"].reshape(seen.rewards.shape))
        shrunk = seen.rewards * (1.0 - self.alpha * jax.nn.sigmoid(z) * (z > 0))
        return reweighted(shrunk, flags, unbiased=self.unbiased, label=CLEAN)


def standard_scores(scores: Float[Array, "P G"]) -> Float[Array, "P G"]:
    """(s - mean) / max(std, 0.1) within each group, with the sample standard deviation (n - 1), as in GRPO."""
    deviation = jnp.std(scores, axis=1, ddof=1, keepdims=True)
    return (scores - jnp.mean(scores, axis=1, keepdims=True)) / jnp.maximum(deviation, LEAST_DEVIATION)
