"""The passes of a step as docs/method.md section 7 has them: whole rollouts, some at a time, and `jax.grad`.

Nothing is shared, packed or skipped here. `train.schedule=plain` trains with it; what is new is tried here first, and
`rl/schedule/` is held against it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vgrout_jax.model import lora2r, qwen3
from vgrout_jax.model.logprobs import completion_logprobs
from vgrout_jax.model.policy import Frozen, Policy
from vgrout_jax.rl.grpo import LossStats
from vgrout_jax.rl.scorer import ProbeLoss, RowLosses, Rows
from vgrout_jax.rl.state import Batch, TrainState
from vgrout_jax.routing import gate, probe


@dataclasses.dataclass(frozen=True)
class PlainScorer:
    """`scorer.Scorer`.

    Attributes:
        model: shape and dtype.
        rank: r, per block.
        micro_batch: rollouts of one forward and backward pass; divides N.
        logprob_chunk: tokens whose logits exist at one time.
        probe_full: whether the probe reads the policy with both blocks; else the quarantine is ablated.
        has_reference: whether the loss has a KL term, which reads the base with the adapter off.
    """

    model: qwen3.Qwen3Config
    rank: int
    micro_batch: int
    logprob_chunk: int
    probe_full: bool
    has_reference: bool

    def forward(
        self, state: TrainState, frozen: Frozen, rows: Rows, needed: Bool[Array, "N"], samplers: tuple[bool, ...]
    ) -> Float[Array, "N T"]:
        def read(rows: Rows) -> Array:
            policy = frozen.policy(state.deltas, lora2r.Route(rows.batch.quarantine_sampled))
            return self._logprobs(policy, rows.batch)

        return self._some_at_a_time(read, rows)

    def each(
        self, loss: ProbeLoss, state: TrainState, frozen: Frozen, rows: Rows
    ) -> tuple[Float[Array, "N M r"], Float[Array, "N T"]]:
        route = lora2r.Route(jnp.full(self.micro_batch, self.probe_full))
        ones = lora2r.probe_ones(self.model.num_layers, self.micro_batch, self.rank)

        def read(rows: Rows) -> tuple[Array, Array]:
            def of_scale(scale: dict[str, Array]) -> tuple[Array, Array]:
                logprobs = self._logprobs(frozen.policy(state.deltas, route, scale), rows.batch)
                return loss(logprobs, rows), logprobs

            gradients, logprobs = probe.probe_gradients(of_scale, ones)
            return probe.deployed_half(gradients, lora2r.MODULES), logprobs

        return self._some_at_a_time(read, rows)

    def total(
        self, loss: RowLosses, state: TrainState, frozen: Frozen, rows: Rows
    ) -> tuple[Float[Array, ""], lora2r.Factors, LossStats]:
        def read(rows: Rows) -> tuple[Array, lora2r.Factors, LossStats]:
            def of_deltas(deltas: lora2r.Factors) -> tuple[Array, LossStats]:
                route = lora2r.Route(*gate.route_masks(rows.labels))
                losses, stats = loss(self._logprobs(frozen.policy(deltas, route), rows.batch), reference, rows)
                return jnp.sum(losses), stats

            reference = None
            if self.has_reference:
                reference = jax.lax.stop_gradient(self._logprobs(Policy(frozen.base), rows.batch))
            (value, stats), gradient = jax.value_and_grad(of_deltas, has_aux=True)(state.deltas)
            return value, gradient, stats

        def add(sums: tuple[Array, lora2r.Factors], rows: Rows) -> tuple[Any, LossStats]:
            value, gradient, stats = read(rows)
            return jax.tree.map(jnp.add, sums, (value, gradient)), stats

        nothing = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.deltas))
        (value, gradient), stats = jax.lax.scan(add, nothing, self._split(rows))
        return value, gradient, _joined(stats)

    def _logprobs(self, policy: Policy, batch: Batch) -> Float[Array, "n T"]:
        """log pi of every completion token, behind its whole prompt."""
        return completion_logprobs(
            self.model,
            policy,
            batch.tokens,
            batch.valid,
            completion_length=batch.completion_mask.shape[1],
            chunk=self.logprob_chunk,
        )

    def _some_at_a_time(self, read: Callable[[Rows], Any], rows: Rows) -> Any:
        """`read` of `micro_batch` rows at a time, joined."""
        return _joined(jax.lax.map(read, self._split(rows)))

    def _split(self, rows: Rows) -> Rows:
        return jax.tree.map(lambda leaf: leaf.reshape(-1, self.micro_batch, *leaf.shape[1:]), rows)


def _joined(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)
