"""The passes of a step over a batch of rollouts, block by block (docs/method.md section 7)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from vgrout_jax.config import Config
from vgrout_jax.model import lora2r, qwen3
from vgrout_jax.rl import grpo
from vgrout_jax.rl.blocks import AtLength, Block, Cutter
from vgrout_jax.rl.reading import Caches, Reader, Variants
from vgrout_jax.rl.state import Batch, Frozen, TrainState
from vgrout_jax.routing import gate, probe


@struct.dataclass
class Row:
    """What the passes need of each rollout besides the batch itself."""

    batch: Batch
    advantages: jax.Array
    live: jax.Array


class Passes:
    """The forward and backward passes over a batch, as pure functions closed over the run's settings."""

    def __init__(self, config: Config, model: qwen3.Qwen3Config, mesh: Mesh):
        self.config, self.model = config, model
        self.rollouts = config.rollout.prompts * config.rollout.group_size
        self.probe_full = config.gate.probe_policy == "full"
        self.reader, self.cutter = Reader(config, model), Cutter(config, mesh)

    @jax.named_scope("probe")
    def read_probe(
        self, state: TrainState, frozen: Frozen, row: Row
    ) -> tuple[Float[Array, "N M r"], Float[Array, "N T"]]:
        """Pass 1: every rollout's probe gradient, and log pi of the policy that the probe reads."""
        tokens, rank = row.batch.completion_mask.shape[1], self.config.adapter.rank
        variants, layers = Variants(jnp.array([self.probe_full])), self.model.num_layers

        def visit(_: None, block: Block) -> tuple[None, tuple[Array, Array]]:
            def read(scale: dict[str, Array]) -> Caches:
                return self._prompts(frozen, state.deltas, block, variants, scale)

            size, groups = block.places.shape[1], block.prompts.shape[0]
            caches, pull = jax.vjp(read, lora2r.probe_ones(layers, groups, rank))
            repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, size // groups, axis=2), caches)

            def at(row: Row, length: int) -> tuple[Any, Array]:
                def loss(scale: dict[str, Array], caches: Caches) -> tuple[Array, Array]:
                    policies = jnp.zeros(size, jnp.int32)
                    given = (frozen, state.deltas, row.batch, variants, policies, caches)
                    logprobs = self.reader.logprobs(*given, length=length, scale=scale)
                    return grpo.probe_loss(logprobs, row.advantages, row.batch.completion_mask), logprobs

                ones = lora2r.probe_ones(layers, size, rank)
                return jax.grad(loss, argnums=(0, 1), has_aux=True)(ones, repeated)

            def body(_: None, row: Row, at_length: AtLength) -> tuple[None, tuple[Array, Array]]:
                (gradients, of_caches), logprobs = at_length(at, row)
                if caches:
                    gradients = probe.through_prompts(gradients, of_caches, pull, size // groups)
                return None, (probe.deployed_half(gradients, lora2r.MODULES), logprobs)

            return block.scan(body, None)

        def skipped(rows: int) -> tuple[Array, Array]:
            return jnp.zeros((rows, layers * len(lora2r.MODULES), rank)), jnp.zeros((rows, tokens))

        needed = row.advantages != 0
        return self.cutter.over_blocks(visit, None, row, batch=row.batch, needed=needed, skipped=skipped)[1]

    @jax.named_scope("sampled")
    def sampled_logprobs(
        self, state: TrainState, frozen: Frozen, batch: Batch, needed: Bool[Array, "N"]
    ) -> Float[Array, "N T"]:
        """log pi of the policy that sampled each row, without gradient, for the rows that need it."""
        variants, tokens = Variants(jnp.array([False, True])), batch.completion_mask.shape[1]

        def visit(_: None, block: Block) -> tuple[None, Array]:
            caches = self._prompts(frozen, state.deltas, block, variants)

            def at(rows: Batch, length: int) -> Array:
                policies = rows.quarantine_sampled.astype(jnp.int32)
                return self.reader.logprobs(frozen, state.deltas, rows, variants, policies, caches, length=length)

            return block.scan(lambda _, rows, at_length: (None, at_length(at, rows)), None)

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

            def at(rows: tuple[Row, Array, Array], length: int) -> tuple[Any, Any]:
                def loss(deltas: lora2r.Factors, caches: Caches) -> tuple[Array, grpo.LossStats]:
                    losses, stats = self._losses(frozen, deltas, *rows, caches, reference, length=length)
                    return jnp.sum(losses), stats

                return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(state.deltas, caches)

            def body(sums: Any, rows: Any, at_length: AtLength) -> tuple[Any, grpo.LossStats]:
                (value, stats), gradients = at_length(at, rows)
                return jax.tree.map(jnp.add, sums, (value, *gradients)), stats

            nothing = jax.tree.map(jnp.zeros_like, caches)
            (total, gradient, of_caches), stats = block.scan(body, (*carry, nothing))
            if caches:
                gradient = jax.tree.map(jnp.add, gradient, *pull(of_caches))
            return (total, gradient), stats

        def skipped(rows: int) -> grpo.LossStats:
            zeros = jnp.zeros(rows)
            kl = zeros if has_reference else None
            return grpo.LossStats(ratio=zeros, clip_fraction=zeros, kl=kl, tokens=jnp.zeros(rows, jnp.int32))

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
        caches: Caches,
        reference_caches: Caches | None,
        *,
        length: int,
    ) -> tuple[Float[Array, "n"], grpo.LossStats]:
        config, batch = self.config, row.batch
        quarantine_on, _ = gate.route_masks(labels)
        variants = self._variants()
        # Pinned arms have one policy, whatever the label.
        policies = labels if variants.quarantine_on.size > 1 else jnp.zeros_like(labels)
        logprobs = self.reader.logprobs(frozen, deltas, batch, variants, policies, caches, length=length)
        same_policy = self.trains_as_sampled(batch, quarantine_on)
        old = jnp.where(same_policy[:, None], jax.lax.stop_gradient(logprobs), old_logprobs)
        reference = None
        if reference_caches is not None:
            with jax.named_scope("reference"):
                base = (Variants(jnp.array([False])), jnp.zeros_like(labels), reference_caches)
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
        """The policies of the labels; pinned arms have one, and nothing is detached there."""
        kind = self.config.gate.kind
        if kind != "route":
            return Variants(jnp.array([kind == "mid"]))
        return Variants(*gate.route_masks(jnp.array([gate.CLEAN, gate.MID, gate.HACK])))

    def trains_as_sampled(self, batch: Batch, quarantine_on: Bool[Array, "n"]) -> Bool[Array, "n"]:
        """Rows whose training policy is the one that sampled them, where the ratio is 1 by definition.

        Pinned clean, the quarantine never moves from its init, where its output is exactly 0: the policy with
        it and the one without are the same function, bit for bit.
        """
        if self.config.gate.kind == "clean":
            return jnp.ones_like(quarantine_on)
        return batch.quarantine_sampled == quarantine_on
