"""The passes of a step over a batch of rollouts, block by block (docs/method.md section 7)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from vgrout_jax.arms.base import Arm
from vgrout_jax.config import Config
from vgrout_jax.model import lora2r, qwen3
from vgrout_jax.model.policy import Frozen
from vgrout_jax.rl import grpo
from vgrout_jax.rl.schedule.blocks import Block, Chunk, Cutter
from vgrout_jax.rl.schedule.prefix import Caches, Reader, Variants, spread
from vgrout_jax.rl.state import Batch, TrainState
from vgrout_jax.routing import gate, probe


@struct.dataclass
class Row:
    """What the passes need of each rollout besides the batch itself."""

    batch: Batch
    advantages: jax.Array
    live: jax.Array


class Passes:
    """The forward and backward passes over a batch, as pure functions closed over the run's settings."""

    def __init__(self, config: Config, model: qwen3.Qwen3Config, mesh: Mesh, *, arm: Arm):
        self.config, self.model = config, model
        self.labels, self.reads_probe = arm.labels, arm.source.reads_probe
        self.rollouts = config.rollout.prompts * config.rollout.group_size
        self.probe_full = config.gate.probe_policy == "full"
        self.sampler_serves = sampler_serves(config, model)
        self.cutter = Cutter(config, mesh, model.attention)
        self.reader = Reader(config, model, self.cutter.positions)

    @jax.named_scope("probe")
    def read_probe(
        self, state: TrainState, frozen: Frozen, row: Row
    ) -> tuple[Float[Array, "N M r"], Float[Array, "N T"]]:
        """Pass 1: every rollout's probe gradient, and log pi of the policy that the probe reads."""
        tokens, rank = row.batch.completion_mask.shape[1], self.config.adapter.rank

        def visit(_: None, block: Block) -> tuple[None, tuple[Array, Array]]:
            return None, self._probe_block(state, frozen, block)

        def skipped(rows: int) -> tuple[Array, Array]:
            return jnp.zeros((rows, self.model.num_layers * len(lora2r.MODULES), rank)), jnp.zeros((rows, tokens))

        needed = row.advantages != 0
        return self.cutter.over_blocks(visit, None, row, batch=row.batch, needed=needed, skipped=skipped)[1]

    def _probe_block(self, state: TrainState, frozen: Frozen, block: Block) -> tuple[Array, Array]:
        """`read_probe` of a block: [chunks, n, M, r] and [chunks, n, T].

        Gradients go back through the prompts chunk by chunk where a chunk has as many rollouts of every prompt, and
        at the end of the block where completions are packed.
        """
        cut, groups = block.cut, block.prompts.shape[0]
        variants, size = Variants(jnp.array([self.probe_full])), (self.model.num_layers, self.config.adapter.rank)
        first = jnp.zeros(cut.rows, jnp.int32)  # the one policy of all rollouts

        def read(scale: dict[str, Array]) -> Caches:
            return self._prompts(frozen, state.deltas, block, variants, scale)

        def at(row: Row, behind: Caches, length: int) -> tuple[Any, Array]:
            def loss(scale: dict[str, Array], behind: Caches) -> tuple[Array, Array]:
                given = (frozen, state.deltas, row.batch, variants.route(first), behind)
                logprobs = self.reader.logprobs(*given, length=length, scale=scale)
                return grpo.probe_loss(logprobs, row.advantages, row.batch.completion_mask), logprobs

            ones = lora2r.probe_ones(size[0], cut.rows, size[1])
            return jax.grad(loss, argnums=(0, 1), has_aux=True)(ones, behind)

        def body(back: probe.WayBack | None, chunk: Chunk) -> tuple[Any, tuple[Array, Array]]:
            behind = spread(caches, chunk.groups, first)
            (gradients, of_behind), logprobs = chunk.at_length(at, chunk.rows, behind)
            if back is not None:
                back = back.noted(chunk.numbers, of_behind)
            elif cut.shares:
                through = probe.through_prompts(of_behind, pull, cut.together)
                gradients = jax.tree.map(jnp.add, gradients, through)
            return back, (probe.deployed_half(gradients, lora2r.MODULES), logprobs)

        caches, pull = jax.vjp(read, lora2r.probe_ones(size[0], groups, size[1]))
        if cut.positions is None:
            return block.scan(body, None)[1]
        back, (own, logprobs) = block.scan(body, probe.WayBack.of(caches, cut.size))
        through = back.through(pull, block.needed.reshape(groups, cut.size), cut.together)
        through = through.reshape(-1, *own.shape[2:]).at[block.numbers].get(mode="fill", fill_value=0)
        return own + through, logprobs

    @jax.named_scope("sampled")
    def sampled_logprobs(
        self,
        state: TrainState,
        frozen: Frozen,
        batch: Batch,
        needed: Bool[Array, "N"],
        samplers: tuple[bool, ...] = (False, True),
    ) -> Float[Array, "N T"]:
        """log pi of the policy that sampled each row, without gradient, for the rows that need it.

        `samplers`: the policies, by m, that such rows can have been sampled by. Prompts are read under these alone.
        """
        variants, tokens = Variants(jnp.array(samplers)), batch.completion_mask.shape[1]

        def of(rows: Batch) -> Int[Array, " n"]:
            chosen = rows.quarantine_sampled.astype(jnp.int32)
            return chosen if len(samplers) == 2 else jnp.zeros_like(chosen)

        def visit(_: None, block: Block) -> tuple[None, Array]:
            caches = self._prompts(frozen, state.deltas, block, variants)

            def at(rows: Batch, behind: Caches, length: int) -> Array:
                route = variants.route(of(rows))
                return self.reader.logprobs(frozen, state.deltas, rows, route, behind, length=length)

            def body(_: None, chunk: Chunk) -> tuple[None, Array]:
                behind = spread(caches, chunk.groups, of(chunk.rows))
                return None, chunk.at_length(at, chunk.rows, behind)

            return block.scan(body, None)

        def skipped(rows: int) -> Array:
            return jnp.zeros((rows, tokens))

        return self.cutter.over_blocks(visit, None, batch, batch=batch, needed=needed, skipped=skipped)[1]

    @jax.named_scope("masked")
    def masked_gradient(
        self, state: TrainState, frozen: Frozen, row: Row, labels: Int[Array, "N"], old_logprobs: Float[Array, "N T"]
    ) -> tuple[Array, lora2r.Factors, grpo.LossStats]:
        """Pass 2: the loss, its gradient with respect to dA and dB under the labels' masks, and diagnostics."""
        has_reference = self.config.loss.kl_coefficient > 0

        def visit(carry: tuple[Array, lora2r.Factors], block: Block) -> tuple[Any, grpo.LossStats]:
            reference = self._reference_prompts(frozen, block) if has_reference else None
            caches, pull = jax.vjp(
                lambda deltas: self._prompts(frozen, deltas, block, self._variants()), state.deltas
            )

            def at(rows: tuple[Row, Array, Array], groups: Array, length: int) -> tuple[Any, Any]:
                def loss(deltas: lora2r.Factors, caches: Caches) -> tuple[Array, grpo.LossStats]:
                    losses, stats = self._losses(frozen, deltas, *rows, groups, caches, reference, length=length)
                    return jnp.sum(losses), stats

                return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(state.deltas, caches)

            def body(sums: Any, chunk: Chunk) -> tuple[Any, grpo.LossStats]:
                (value, stats), gradients = chunk.at_length(at, chunk.rows, chunk.groups)
                return jax.tree.map(jnp.add, sums, (value, *gradients)), stats

            nothing = jax.tree.map(jnp.zeros_like, caches)
            (total, gradient, of_caches), stats = block.scan(body, (*carry, nothing))
            if caches:
                gradient = jax.tree.map(jnp.add, gradient, *pull(of_caches))
            return (total, gradient), stats

        def skipped(rows: int) -> grpo.LossStats:
            return grpo.LossStats.of_nothing(rows, row.batch.completion_mask.shape[1], kl=has_reference)

        start = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.deltas))
        rows = (row, labels, old_logprobs)
        (loss, gradients), stats = self.cutter.over_blocks(
            visit, start, rows, batch=row.batch, needed=row.live, skipped=skipped
        )
        return loss, gradients, stats

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

    def _losses(
        self,
        frozen: Frozen,
        deltas: lora2r.Factors,
        row: Row,
        labels: Array,
        old_logprobs: Array,
        groups: Array,
        caches: Caches,
        reference_caches: Caches | None,
        *,
        length: int,
    ) -> tuple[Float[Array, "n"], grpo.LossStats]:
        config, batch = self.config, row.batch
        quarantine_on, _ = gate.route_masks(labels)
        variants = self._variants()
        policies = self._policies(labels)
        behind = spread(caches, groups, policies)
        logprobs = self.reader.logprobs(frozen, deltas, batch, variants.route(policies), behind, length=length)
        same_policy = self.trains_as_sampled(batch, quarantine_on)
        old = jnp.where(same_policy[:, None], jax.lax.stop_gradient(logprobs), old_logprobs)
        reference = None
        if reference_caches is not None:
            with jax.named_scope("reference"):
                base = (lora2r.ablated_route(labels.size), spread(reference_caches, groups, jnp.zeros_like(labels)))
                reference = jax.lax.stop_gradient(self.reader.logprobs(frozen, None, batch, *base, length=length))
        return grpo.row_losses(
            logprobs,
            old,
            reference,
            batch.completion_mask,
            row.advantages,
            live=row.live,
            rollouts=self.rollouts,
            max_new_tokens=config.rollout.max_new_tokens,
            unbiased=config.grpo.unbiased,
            ratio=config.loss.ratio,
            clip_epsilon=config.loss.clip_epsilon,
            kl_coefficient=config.loss.kl_coefficient,
        )

    def _variants(self) -> Variants:
        """The policies of the labels; nothing is detached where no label asks for it."""
        quarantine_on, detach_deployed = gate.route_masks(np.array(self.labels))
        return Variants(jnp.array(quarantine_on), jnp.array(detach_deployed) if detach_deployed.any() else None)

    def _policies(self, labels: Int[Array, "n"]) -> Int[Array, "n"]:
        """Every row's place among `_variants`."""
        if self.labels == tuple(range(len(self.labels))):
            return labels
        return jnp.searchsorted(jnp.array(self.labels), labels).astype(labels.dtype)

    def unread_samplers(self) -> tuple[bool, ...]:
        """The policies, by m, under which a forward pass has to read rows for their log pi_old; () for none."""
        if self.labels == (gate.CLEAN,):
            return ()
        if self.sampler_serves:  # but of the teacher's rows, which count as the full policy's
            return (True,) if gate.CLEAN in self.labels and self.config.teacher.per_prompt else ()
        if self.labels == (gate.MID,):
            return (False,)
        if not self.reads_probe:
            return (False, True)
        # A row without advantage trains the deployed policy, and the probe does not run it.
        return (False, True) if self.probe_full else (True,)

    def trains_as_sampled(self, batch: Batch, quarantine_on: Bool[Array, "n"]) -> Bool[Array, "n"]:
        """Rows whose training policy is the one that sampled them, where the ratio is 1 by definition.

        Pinned clean, the quarantine never moves from its init, where its output is exactly 0: the policy with
        it and the one without are the same function, bit for bit.
        """
        if self.labels == (gate.CLEAN,):
            return jnp.ones_like(quarantine_on)
        return batch.quarantine_sampled == quarantine_on


def sampler_serves(config: Config, model: qwen3.Qwen3Config) -> bool:
    """Whether the sampler's own log-probabilities stand for those of a pass: sampled at temperature 1, untruncated.

    In bfloat16 a pass rounds otherwise than the decode loop, which would be noise in every ratio.
    """
    rollout = config.rollout
    untruncated = rollout.temperature == 1.0 and rollout.top_k == 0 and rollout.top_p >= 1.0
    return untruncated and model.dtype == jnp.float32
