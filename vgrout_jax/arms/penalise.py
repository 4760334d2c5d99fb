"""A flagged rollout is paid less, before its group is compared."""

import dataclasses

from vgrout_jax.arms.advantages import reweighted
from vgrout_jax.arms.base import Decision, Flags, Seen
from vgrout_jax.routing.gate import CLEAN


@dataclasses.dataclass(frozen=True)
class Penalise:
    """r_i - coefficient f_i, then the group's statistics; one block trains.

    Attributes:
        coefficient: what a certain hack costs, in units of reward.
        unbiased: of `advantages.group_advantages`.
    """

    coefficient: float
    unbiased: bool

    def labels(self, zones: tuple[int, ...]) -> tuple[int, ...]:
        return (CLEAN,)

    def decide(self, seen: Seen, flags: Flags) -> Decision:
        rewards = seen.rewards - self.coefficient * flags.flagged.reshape(seen.rewards.shape)
        return reweighted(rewards, flags, unbiased=self.unbiased, label=CLEAN)
