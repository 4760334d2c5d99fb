"""What an arm is: a source of flags and a use of flags, and all that either may look at.

A step shows the arm a `Seen`, in which is `None` whatever the arm did not declare that it reads. That is what makes
"no verdict reaches the gate" a matter of types: the compiled step of an arm whose source does not say `reads_monitor`
has no input through which a verdict could come.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
from flax import struct
from jaxtyping import Array

Memory = Any  # a pytree that only the source knows: what it has learnt from the pairs


@struct.dataclass
class Seen:
    """All that an arm may look at in a step of P groups of G rollouts, N = P G.

    Attributes:
        rewards: [P, G] float32.
        advantages: [N] float32, of `advantages.group_advantages`.
        live: [N] bool, False for rows of groups whose rewards are equal.
        gradients: [N, M, r] float32 of the probe, the advantage's sign in them; None unless `reads_probe`.
        features: [N, L, D] float32, mean residual stream of the completion after each layer, deployed policy; None
            unless `reads_features`.
        flags: [N] float32 in [0, 1] of a monitor; None unless `reads_monitor`.
    """

    rewards: jax.Array
    advantages: jax.Array
    live: jax.Array
    gradients: jax.Array | None = None
    features: jax.Array | None = None
    flags: jax.Array | None = None


@struct.dataclass
class Readings:
    """What is read of both sides of the pairs: of the hack sides first, then of the clean ones in the same order.

    Attributes:
        gradients: [2P, M, r] float32 of the probe, or None.
        features: [2P, L, D] float32, or None.
    """

    gradients: jax.Array | None = None
    features: jax.Array | None = None


@struct.dataclass
class Flags:
    """What a source says of a step's rollouts.

    Attributes:
        zones: [N] int32, `gate.CLEAN`, `MID` or `HACK`.
        flagged: [N] float32 in [0, 1], how surely the rollout is a hack.
        scored: [N] bool, rollouts that the zone shares speak of.
        finite: [] bool; False: something read was not finite, nothing here means anything, and the run stops.
        record: name -> [N], what diagnostics keep of every rollout, such as `score`.
    """

    zones: jax.Array
    flagged: jax.Array
    scored: jax.Array
    finite: jax.Array
    record: dict[str, jax.Array]


@struct.dataclass
class Decision:
    """What becomes of a step's rollouts.

    Attributes:
        labels: [N] int32, `gate.CLEAN`, `MID` or `HACK`: which block a rollout trains.
        advantages, live: [N], what the loss is weighted with.
        scored, finite, record: of `Flags`.
    """

    labels: jax.Array
    advantages: jax.Array
    live: jax.Array
    scored: jax.Array
    finite: jax.Array
    record: dict[str, jax.Array]


class Source:
    """Who flags a rollout. The defaults are those of a source that reads nothing and learns nothing.

    Attributes:
        zones: the zones that can come out.
        reads_probe, reads_features, reads_monitor: what of `Seen` it is given.
        learns: whether it is shown the pairs, at the start and at every refresh.
        learns_once: whether the first time is enough.
    """

    zones: tuple[int, ...]
    reads_probe = reads_features = reads_monitor = False
    learns = learns_once = False

    def learn(self, pairs: Readings) -> Memory:
        """What the pairs teach, read on the current adapter."""
        raise TypeError(f"{type(self).__name__} learns nothing from pairs")

    def renew(self, before: Memory, fresh: Memory) -> Memory:
        """The memory after a refresh: what of the earlier one stays."""
        return fresh

    def check(self, memory: Memory) -> None:
        """Raises ValueError, on the host, where a memory cannot be used."""

    def describe(self, memory: Memory) -> dict[str, float | int | None]:
        """What the step's record says of the memory, by the keys of `METRIC_KEYS`; on the host."""
        return {}

    def flag(self, seen: Seen, memory: Memory, key: Array) -> Flags:
        """Flags of a step's rollouts; `memory` is None for a source that learns nothing, `key` the step's own."""
        raise TypeError(f"{type(self).__name__} must say how it flags")


@runtime_checkable
class Use(Protocol):
    """What happens to a flagged rollout."""

    def labels(self, zones: tuple[int, ...]) -> tuple[int, ...]:
        """The labels that can come out for a source's zones."""

    def decide(self, seen: Seen, flags: Flags) -> Decision:
        """Labels, and what the loss is weighted with."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """A source and a use. Everything that the rest of a run asks of an arm follows from these.

    Attributes:
        source: who flags.
        use: what becomes of the flagged.
    """

    source: Source
    use: Use

    @property
    def labels(self) -> tuple[int, ...]:
        """Those that can come out, ascending: the policies of the update, and of the prompts that it reads."""
        return self.use.labels(self.source.zones)

    def decide(self, seen: Seen, memory: Memory, key: Array) -> Decision:
        """What becomes of a step's rollouts."""
        return self.use.decide(seen, self.source.flag(seen, memory, key))
