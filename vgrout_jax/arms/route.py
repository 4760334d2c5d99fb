"""The update of a flagged rollout goes into the quarantine (docs/method.md section 3)."""

from vgrout_jax.arms.base import Decision, Flags, Seen


class Route:
    """Labels are the source's zones, advantages stay as they are."""

    def labels(self, zones: tuple[int, ...]) -> tuple[int, ...]:
        return zones

    def decide(self, seen: Seen, flags: Flags) -> Decision:
        return Decision(flags.zones, seen.advantages, seen.live, flags.scored, flags.finite, flags.record)
