"""What a step asks of whoever reads the log-probabilities of its rollouts, plainly or fast."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
from flax import struct
from jaxtyping import Array, Bool, Float

from vgrout_jax.model import lora2r
from vgrout_jax.model.policy import Frozen
from vgrout_jax.rl.grpo import LossStats
from vgrout_jax.rl.state import Batch, TrainState


@struct.dataclass
class Rows:
    """The rollouts of a step, or some of them, with what their losses need.

    Attributes:
        batch: what was sampled.
        advantages: [n] float32.
        live: [n] bool, False for rows that contribute nothing.
        labels: [n] int32, `gate.CLEAN`, `MID` or `HACK`; None before the arm has decided.
        old_logprobs: [n, T] float32, of the policy that sampled, where the ratio needs them; None as long.
    """

    batch: Batch
    advantages: jax.Array
    live: jax.Array
    labels: jax.Array | None = None
    old_logprobs: jax.Array | None = None


# (logprobs [n, T], rows) -> the sum of the rows' losses.
ProbeLoss = Callable[[Array, Rows], Array]
# (logprobs [n, T], reference's [n, T] or None, rows) -> (losses [n], statistics).
RowLosses = Callable[[Array, Array | None, Rows], tuple[Array, LossStats]]


@runtime_checkable
class Scorer(Protocol):
    """Forward and backward passes over a batch. `rl/plain.py` says what they are, `rl/schedule/` does them fast.

    Losses are functions of log-probabilities alone. The adapter's masks follow from what a pass is for: the policy
    that sampled, the probe's policy, or the policy of each row's label. Token log-probabilities are float32, in nats;
    on padding and in rows that nobody needs they mean nothing.
    """

    def forward(
        self, state: TrainState, frozen: Frozen, rows: Rows, needed: Bool[Array, "N"], samplers: tuple[bool, ...]
    ) -> Float[Array, "N T"]:
        """log pi of the policy that sampled each row, without gradient, for the rows that need it.

        `samplers`: the policies, by m, that such rows can have been sampled by.
        """

    def each(
        self, loss: ProbeLoss, state: TrainState, frozen: Frozen, rows: Rows
    ) -> tuple[Float[Array, "N M r"], Float[Array, "N T"]]:
        """Pass 1: every rollout's gradient in the probe's scale, and log pi of the policy that the probe reads.

        Rows without advantage need neither; their gradient is 0.
        """

    def total(
        self, loss: RowLosses, state: TrainState, frozen: Frozen, rows: Rows
    ) -> tuple[Float[Array, ""], lora2r.Factors, LossStats]:
        """Pass 2: the sum of the rows' losses under their labels' masks, its gradient in dA and dB, statistics."""
