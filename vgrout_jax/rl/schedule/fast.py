"""The passes of a step over a batch of rollouts, block by block: what `rl/plain.py` says, fast."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from vgrout_jax.config import Config
from vgrout_jax.model import lora2r, qwen3
from vgrout_jax.model.policy import Frozen, Policy
from vgrout_jax.rl import grpo
from vgrout_jax.rl.schedule.blocks import Block, Chunk, Cutter
from vgrout_jax.rl.schedule.prefix import Caches, Reader, Variants, gather_rows
from vgrout_jax.rl.schedule.prompt_gradients import PromptGradients, backward_through_prompts
from vgrout_jax.rl.scorer import ProbeLoss, RowLosses, Rows
from vgrout_jax.rl.state import Batch, TrainState
from vgrout_jax.routing import gate, probe


class FastScorer:
    """`scorer.Scorer`, as pure functions closed over the run's settings."""

    def __init__(self, config: Config, model: qwen3.Qwen3Config, mesh: Mesh, *, labels: tuple[int, ...]):
        """`labels`: those that can come out, of `Arm.labels`; prompts are read under their policies alone."""
        self.model, self.labels, self.rank = model, labels, config.adapter.rank
        self.probe_full = config.gate.probe_policy == "full"
        self.has_reference = config.loss.kl_coefficient > 0
        self.cutter = Cutter(config, mesh, model.attention)
        self.reader = Reader(config, model, self.cutter.positions)

    @jax.named_scope("probe")
    def each(
        self, loss: ProbeLoss, state: TrainState, frozen: Frozen, rows: Rows
    ) -> tuple[Float[Array, "N M r"], Float[Array, "N T"]]:
        """Pass 1: every rollout's probe gradient, and log pi of the policy that the probe reads."""
        tokens, rank = rows.batch.completion_mask.shape[1], self.rank

        def visit(_: None, block: Block) -> tuple[None, tuple[Array, Array]]:
            return None, self._probe_block(loss, state, frozen, block)

        def skipped(rows: int) -> tuple[Array, Array]:
            return jnp.zeros((rows, self.model.num_layers * len(lora2r.MODULES), rank)), jnp.zeros((rows, tokens))

        needed = rows.advantages != 0
        return self.cutter.over_blocks(visit, None, rows, batch=rows.batch, needed=needed, skipped=skipped)[1]

    def _probe_block(self, loss: ProbeLoss, state: TrainState, frozen: Frozen, block: Block) -> tuple[Array, Array]:
        """`each` of a block: [chunks, n, M, r] and [chunks, n, T].

        Gradients go back through the prompts chunk by chunk where a chunk has as many rollouts of every prompt, and
        at the end of the block where completions are packed.
        """
        cut, groups = block.cut, block.prompts.shape[0]
        variants, size = Variants(jnp.array([self.probe_full])), (self.model.num_layers, self.rank)
        first = jnp.zeros(cut.rows, jnp.int32)  # the one policy of all rollouts

        def read(scale: dict[str, Array]) -> Caches:
            return self._prompts(frozen, state.deltas, block, variants, scale)

        def at(rows: Rows, prefix: Caches, length: int) -> tuple[Any, Array]:
            def of_scale(scale: dict[str, Array], prefix: Caches) -> tuple[Array, Array]:
                policy = frozen.policy(state.deltas, variants.route(first), scale)
                logprobs = self.reader.logprobs(policy, rows.batch, prefix, length=length)
                return loss(logprobs, rows), logprobs

            ones = lora2r.probe_ones(size[0], cut.rows, size[1])
            return jax.grad(of_scale, argnums=(0, 1), has_aux=True)(ones, prefix)

        def body(back: PromptGradients | None, chunk: Chunk) -> tuple[Any, tuple[Array, Array]]:
            prefix = gather_rows(caches, chunk.groups, first)
            (gradients, grad_prefix), logprobs = chunk.at_length(at, chunk.rows, prefix)
            if back is not None:
                back = back.with_rows(chunk.numbers, grad_prefix)
            elif cut.shares:
                through = backward_through_prompts(grad_prefix, pull, cut.together)
                gradients = jax.tree.map(jnp.add, gradients, through)
            return back, (probe.deployed_half(gradients, lora2r.MODULES), logprobs)

        caches, pull = jax.vjp(read, lora2r.probe_ones(size[0], groups, size[1]))
        if cut.positions is None:
            return block.scan(body, None)[1]
        back, (own, logprobs) = block.scan(body, PromptGradients.zeros(caches, cut.size))
        through = back.pull_back(pull, block.needed.reshape(groups, cut.size), cut.together)
        through = through.reshape(-1, *own.shape[2:]).at[block.numbers].get(mode="fill", fill_value=0)
        return own + through, logprobs

    @jax.named_scope("sampled")
    def forward(
        self,
        state: TrainState,
        frozen: Frozen,
        rows: Rows,
        needed: Bool[Array, "N"],
        samplers: tuple[bool, ...] = (False, True),
    ) -> Float[Array, "N T"]:
        """log pi of the policy that sampled each row, without gradient; prompts are read under `samplers` alone."""
        batch = rows.batch
        variants, tokens = Variants(jnp.array(samplers)), batch.completion_mask.shape[1]

        def of(rows: Batch) -> Int[Array, " n"]:
            chosen = rows.quarantine_sampled.astype(jnp.int32)
            return chosen if len(samplers) == 2 else jnp.zeros_like(chosen)

        def visit(_: None, block: Block) -> tuple[None, Array]:
            caches = self._prompts(frozen, state.deltas, block, variants)

            def at(rows: Batch, prefix: Caches, length: int) -> Array:
                policy = frozen.policy(state.deltas, variants.route(of(rows)))
                return self.reader.logprobs(policy, rows, prefix, length=length)

            def body(_: None, chunk: Chunk) -> tuple[None, Array]:
                prefix = gather_rows(caches, chunk.groups, of(chunk.rows))
                return None, chunk.at_length(at, chunk.rows, prefix)

            return block.scan(body, None)

        def skipped(rows: int) -> Array:
            return jnp.zeros((rows, tokens))

        return self.cutter.over_blocks(visit, None, batch, batch=batch, needed=needed, skipped=skipped)[1]

    @jax.named_scope("masked")
    def total(
        self, loss: RowLosses, state: TrainState, frozen: Frozen, rows: Rows
    ) -> tuple[Array, lora2r.Factors, grpo.LossStats]:
        """Pass 2: the loss, its gradient with respect to dA and dB under the labels' masks, and diagnostics."""

        def visit(carry: tuple[Array, lora2r.Factors], block: Block) -> tuple[Any, grpo.LossStats]:
            reference = self._reference_prompts(frozen, block) if self.has_reference else None
            caches, pull = jax.vjp(
                lambda deltas: self._prompts(frozen, deltas, block, self._variants()), state.deltas
            )

            def at(rows: Rows, groups: Array, length: int) -> tuple[Any, Any]:
                def of_deltas(deltas: lora2r.Factors, caches: Caches) -> tuple[Array, grpo.LossStats]:
                    read = {"groups": groups, "caches": caches, "reference_caches": reference, "length": length}
                    losses, stats = loss(*self._logprobs(frozen, deltas, rows, **read), rows)
                    return jnp.sum(losses), stats

                return jax.value_and_grad(of_deltas, argnums=(0, 1), has_aux=True)(state.deltas, caches)

            def body(sums: Any, chunk: Chunk) -> tuple[Any, grpo.LossStats]:
                (value, stats), gradients = chunk.at_length(at, chunk.rows, chunk.groups)
                return jax.tree.map(jnp.add, sums, (value, *gradients)), stats

            nothing = jax.tree.map(jnp.zeros_like, caches)
            (total, gradient, of_caches), stats = block.scan(body, (*carry, nothing))
            if caches:
                gradient = jax.tree.map(jnp.add, gradient, *pull(of_caches))
            return (total, gradient), stats

        def skipped(count: int) -> grpo.LossStats:
            return grpo.LossStats.of_nothing(count, rows.batch.completion_mask.shape[1], kl=self.has_reference)

        start = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.deltas))
        (value, gradients), stats = self.cutter.over_blocks(
            visit, start, rows, batch=rows.batch, needed=rows.live, skipped=skipped
        )
        return value, gradients, stats

    def _prompts(
        self,
        frozen: Frozen,
        deltas: lora2r.Factors | None,
        block: Block,
        variants: Variants,
        scale: dict[str, Array] | None = None,
    ) -> Caches:
        """The block's prompts under each policy; () where its rows read their own."""
        if not self.cutter.cut(block.prompts.shape[1]).shares:
            return ()
        return self.reader.prompts(frozen, deltas, block.prompts, block.prompts_valid, variants, scale)

    def _reference_prompts(self, frozen: Frozen, block: Block) -> Caches:
        with jax.named_scope("reference"):
            return self._prompts(frozen, None, block, Variants(jnp.array([False])))

    def _logprobs(
        self,
        frozen: Frozen,
        deltas: lora2r.Factors,
        rows: Rows,
        *,
        groups: Array,
        caches: Caches,
        reference_caches: Caches | None,
        length: int,
    ) -> tuple[Float[Array, "n T"], Float[Array, "n T"] | None]:
        """log pi of a chunk's rows under their labels' masks, and of the base with the adapter off."""
        batch, labels = rows.batch, rows.labels
        policies = self._policies(labels)
        policy = frozen.policy(deltas, self._variants().route(policies))
        logprobs = self.reader.logprobs(policy, batch, gather_rows(caches, groups, policies), length=length)
        if reference_caches is None:
            return logprobs, None
        with jax.named_scope("reference"):
            prefix = gather_rows(reference_caches, groups, jnp.zeros_like(labels))
            reference = self.reader.logprobs(Policy(frozen.base), batch, prefix, length=length)
        return logprobs, jax.lax.stop_gradient(reference)

    def _variants(self) -> Variants:
        """The policies of the labels; nothing is detached where no label asks for it."""
        quarantine_on, detach_deployed = gate.route_masks(jnp.array(self.labels))
        return Variants(quarantine_on, detach_deployed if gate.HACK in self.labels else None)

    def _policies(self, labels: Int[Array, "n"]) -> Int[Array, "n"]:
        """Every row's place among `_variants`."""
        if self.labels == tuple(range(len(self.labels))):
            return labels
        return jnp.searchsorted(jnp.array(self.labels), labels).astype(labels.dtype)
