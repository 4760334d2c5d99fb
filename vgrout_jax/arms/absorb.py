"""Both blocks train on everything, whatever is flagged."""

import jax.numpy as jnp

from vgrout_jax.arms.base import Decision, Flags, Seen
from vgrout_jax.routing.gate import MID


class Absorb:
    """One label for every rollout."""

    def labels(self, zones: tuple[int, ...]) -> tuple[int, ...]:
        return (MID,)

    def decide(self, seen: Seen, flags: Flags) -> Decision:
        labels = jnp.full_like(flags.zones, MID)
        return Decision(labels, seen.advantages, seen.live, flags.scored, flags.finite, flags.record)
