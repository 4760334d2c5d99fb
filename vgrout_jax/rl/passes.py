"""The passes of a step over a batch of rollouts, in micro-batches (docs/method.md section 7)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from vgrout_jax import sharding
from vgrout_jax.config import Config
from vgrout_jax.model import lora2r, padding, qwen3
from vgrout_jax.rl import grpo
from vgrout_jax.rl.reading import Reader, Variants
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
        self.config, self.model, self.mesh = config, model, mesh
        self.rollouts = config.rollout.prompts * config.rollout.group_size
        self.probe_full = config.gate.probe_policy == "full"
        self.reader = Reader(config, model, mesh)

    def over_rows(
        self, body: Callable, carry: Any, rows: Any, *, batch: Batch, needed: Bool[Array, "N"], skipped: Any
    ) -> tuple[Any, Any]:
        """Scans `body(carry, rows, length) -> (carry, outputs)` over micro-batches of the rows that need it.

        Rows of a group stand in packs; packs and the rows in them that need it come first, the short ones before the
        long, and a micro-batch is run at the smallest of `padding.completion_lengths` that holds its rows; `batch` is
        all of them. A micro-batch that nobody needs is not run: its outputs are `skipped`.

        Returns:
            The last carry, and the outputs in the rows' own order.
        """
        padded = padding.completion_lengths(self.config.rollout.max_new_tokens)
        size = self.config.train.micro_batch
        lengths = jnp.sum(batch.completion_mask, axis=1)
        at_least = jnp.searchsorted(jnp.array(padded), lengths)  # the place of each row's padded length
        at_least = jnp.where(needed, at_least, len(padded))
        order = self._packed(at_least, needed, self.reader.together(batch))

        def split(leaf: Array) -> Array:
            chunks = leaf[order].reshape(-1, size, *leaf.shape[1:])
            axes = (None, "batch") + (None,) * (leaf.ndim - 1)
            return jax.lax.with_sharding_constraint(chunks, sharding.sharding_of(self.mesh, axes, chunks.shape))

        programs = [functools.partial(body, length=length) for length in padded]
        programs.append(lambda carry, _: (carry, skipped))

        def visit(carry: Any, inputs: tuple[Any, Array]) -> tuple[Any, Any]:
            chunk, places = inputs
            # Rows that nobody needs fill up the last micro-batch: what it holds is needed up to the longest other.
            place = jnp.max(jnp.where(places < len(padded), places, -1))
            return jax.lax.switch(jnp.where(place < 0, len(padded), place), programs, carry, chunk)

        carry, outputs = jax.lax.scan(visit, carry, jax.tree.map(split, (rows, at_least)))
        inverse = jnp.argsort(order)
        return carry, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[inverse], outputs)

    def _packed(self, place: Int[Array, "N"], needed: Bool[Array, "N"], pack: int) -> Int[Array, "N"]:
        """An order of the rows: inside of groups by place, then packs by the last place that one of them needs."""
        groups = place.reshape(-1, self.config.rollout.group_size)
        inside = jnp.argsort(groups, axis=1, stable=True) + jnp.arange(groups.shape[0])[:, None] * groups.shape[1]
        packs = inside.reshape(-1, pack)
        last = jnp.max(jnp.where(needed, place, -1)[packs], axis=1)
        last = jnp.where(last < 0, jnp.max(place) + 1, last)
        return packs[jnp.argsort(last, stable=True)].reshape(-1)

    def _zeros(self, *shape: int) -> Array:
        """What a skipped micro-batch puts out: float32 zeros [n, *shape]."""
        return jnp.zeros((self.config.train.micro_batch, *shape), jnp.float32)

    @jax.named_scope("probe")
    def read_probe(
        self, state: TrainState, frozen: Frozen, row: Row
    ) -> tuple[Float[Array, "N M r"], Float[Array, "N T"]]:
        """Pass 1: every rollout's probe gradient, and log pi of the policy that the probe reads."""

        adapter = lora2r.Adapter(frozen.init, state.deltas)

        def body(carry: None, rows: Row, length: int) -> tuple[None, tuple[Array, Array]]:
            size, pack = rows.live.shape[0], self.reader.together(rows.batch)
            route = lora2r.full_route if self.probe_full else lora2r.ablated_route
            ones = lora2r.probe_ones(self.model.num_layers, size // pack, self.config.adapter.rank)

            def scored(logprobs: Array) -> tuple[Array, Array]:
                return grpo.probe_loss(logprobs, rows.advantages, rows.batch.completion_mask), logprobs

            def whole(scale: dict[str, Array]) -> tuple[Array, Array]:
                return scored(
                    self.reader.read_whole(frozen, adapter, rows.batch, route(size), length=length, scale=scale)
                )

            def read(scale: dict[str, Array]) -> tuple[Array, Array]:
                masks = route(size // pack)
                return self.reader.read_prompts(frozen, adapter, rows.batch, masks, every=pack, scale=scale)

            def behind(scale: dict[str, Array], caches: tuple[Array, Array]) -> tuple[Array, Array]:
                options = {"length": length, "scale": scale}
                return scored(
                    self.reader.continue_prompts(frozen, adapter, rows.batch, route(size), caches, **options)
                )

            if pack == 1:
                gradients, logprobs = probe.probe_gradients(whole, ones)
            else:
                gradients, logprobs = probe.continued_gradients(read, behind, ones, pack)
            return None, (probe.deployed_half(gradients, lora2r.MODULES), logprobs)

        gradients = self._zeros(self.model.num_layers * len(lora2r.MODULES), self.config.adapter.rank)
        skipped = (gradients, self._zeros(row.batch.completion_mask.shape[1]))
        needed = row.advantages != 0
        return self.over_rows(body, None, row, batch=row.batch, needed=needed, skipped=skipped)[1]

    @jax.named_scope("sampled")
    def sampled_logprobs(
        self, state: TrainState, frozen: Frozen, batch: Batch, needed: Bool[Array, "N"]
    ) -> Float[Array, "N T"]:
        """log pi of the policy that sampled each row, without gradient, for the rows that need it."""

        def body(carry: None, rows: Batch, length: int) -> tuple[None, Array]:
            variants = Variants(jnp.array([False, True]), None, rows.quarantine_sampled.astype(jnp.int32))
            return None, self.reader.logprobs(frozen, state.deltas, rows, variants, length=length)

        skipped = self._zeros(batch.completion_mask.shape[1])
        return self.over_rows(body, None, batch, batch=batch, needed=needed, skipped=skipped)[1]

    @jax.named_scope("masked")
    def masked_gradient(
        self, state: TrainState, frozen: Frozen, row: Row, labels: Int[Array, "N"], old_logprobs: Float[Array, "N T"]
    ) -> tuple[Array, lora2r.Factors, grpo.LossStats]:
        """Pass 2: the loss, its gradient with respect to dA and dB under the labels' masks, and diagnostics."""

        def body(carry: Any, rows: tuple[Row, Array, Array], length: int) -> tuple[Any, grpo.LossStats]:
            total, gradients = carry

            def loss(deltas: lora2r.Factors) -> tuple[Array, grpo.LossStats]:
                losses, stats = self._losses(frozen, deltas, *rows, length=length)
                return jnp.sum(losses), stats

            (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(state.deltas)
            return (total + value, jax.tree.map(jnp.add, gradients, gradient)), stats

        start = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.deltas))
        nothing = self._zeros()
        kl = nothing if self.config.loss.kl_coefficient > 0 else None
        skipped = grpo.LossStats(ratio=nothing, clip_fraction=nothing, kl=kl, tokens=nothing.astype(jnp.int32))
        rows = (row, labels, old_logprobs)
        (loss, gradients), stats = self.over_rows(
            body, start, rows, batch=row.batch, needed=row.live, skipped=skipped
        )
        return loss, gradients, stats

    def _losses(
        self, frozen: Frozen, deltas: lora2r.Factors, row: Row, labels: Array, old_logprobs: Array, *, length: int
    ) -> tuple[Float[Array, "n"], grpo.LossStats]:
        config, batch = self.config, row.batch
        quarantine_on, _ = gate.route_masks(labels)
        logprobs = self.reader.logprobs(frozen, deltas, batch, self._label_variants(labels), length=length)
        same_policy = self.trains_as_sampled(batch, quarantine_on)
        old = jnp.where(same_policy[:, None], jax.lax.stop_gradient(logprobs), old_logprobs)
        reference = None
        if config.loss.kl_coefficient > 0:
            with jax.named_scope("reference"):
                base = Variants(jnp.array([False]), None, jnp.zeros_like(labels))
                reference = jax.lax.stop_gradient(self.reader.logprobs(frozen, None, batch, base, length=length))
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

    def _label_variants(self, labels: Int[Array, "n"]) -> Variants:
        """The policies of the labels; pinned arms have one label, and nothing is detached there."""
        kind = self.config.gate.kind
        if kind != "route":
            return Variants(jnp.array([kind == "mid"]), None, jnp.zeros_like(labels))
        return Variants(*gate.route_masks(jnp.array([gate.CLEAN, gate.MID, gate.HACK])), labels)

    def trains_as_sampled(self, batch: Batch, quarantine_on: Bool[Array, "n"]) -> Bool[Array, "n"]:
        """Rows whose training policy is the one that sampled them, where the ratio is 1 by definition.

        Pinned clean, the quarantine never moves from its init, where its output is exactly 0: the policy with
        it and the one without are the same function, bit for bit.
        """
        if self.config.gate.kind == "clean":
            return jnp.ones_like(quarantine_on)
        return batch.quarantine_sampled == quarantine_on
