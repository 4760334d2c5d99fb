"""The passes of a step over a batch of rollouts, in micro-batches (docs/method.md section 7).

A group's rollouts share their prompt, which is often most of their tokens. A pass reads it once under each policy
that its rollouts of one micro-batch may have, and the completions behind it; on the way back, what reaches the prompt
is added up over the rollouts first. The probe alone, which is asked for rollout by rollout, goes back through the
prompt for each.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from vgrout_jax import sharding
from vgrout_jax.config import Config
from vgrout_jax.model import lora2r, padding, policy, qwen3
from vgrout_jax.rl import grpo
from vgrout_jax.rl.state import Batch, Frozen, TrainState
from vgrout_jax.routing import gate, probe

_MOST_TOGETHER = 4  # rollouts of a pack, where completions are padded to one of several lengths


@struct.dataclass
class Row:
    """What the passes need of each rollout besides the batch itself."""

    batch: Batch
    advantages: jax.Array
    live: jax.Array


@dataclasses.dataclass(frozen=True)
class Variants:
    """The policies under which a pass runs its rollouts.

    Attributes:
        quarantine_on: [V] bool, m of each.
        detach_deployed: [V] bool, d of each, or None for nowhere.
        of_row: [n] int32, the policy of each rollout.
    """

    quarantine_on: Array
    detach_deployed: Array | None
    of_row: Array

    def route(self, chosen: Array) -> lora2r.Route:
        """The masks of the chosen policies."""
        detach = None if self.detach_deployed is None else self.detach_deployed[chosen]
        return lora2r.Route(self.quarantine_on[chosen], detach)


class Passes:
    """The forward and backward passes over a batch, as pure functions closed over the run's settings."""

    def __init__(self, config: Config, model: qwen3.Qwen3Config, mesh: Mesh):
        self.config, self.model, self.mesh = config, model, mesh
        self.rollouts = config.rollout.prompts * config.rollout.group_size
        self.probe_full = config.gate.probe_policy == "full"
        # Rollouts of one group that stand together in a micro-batch, and on one device: a pack. It is padded to its
        # longest completion, so where lengths differ a large pack would lose more than a shared prompt saves.
        here = max(1, config.train.micro_batch // sharding.batch_devices(mesh))
        self.pack = math.gcd(here, config.train.micro_batch, config.rollout.group_size)
        if len(padding.completion_lengths(config.rollout.max_new_tokens)) > 1:
            self.pack = math.gcd(self.pack, _MOST_TOGETHER)

    def logprobs(
        self, frozen: Frozen, deltas: lora2r.Factors | None, batch: Batch, variants: Variants, *, length: int
    ) -> Float[Array, "n T"]:
        """log pi of the completions; `deltas` None: the base with the adapter off.

        Of the first `length` tokens, and 0 for those behind, which no row may have.
        """
        adapter = None if deltas is None else lora2r.Adapter(frozen.init, deltas)
        route = variants.route(variants.of_row)
        caches = self._variants_read(frozen, adapter, batch, variants)
        return self.continue_prompts(frozen, adapter, batch, route, caches, length=length)

    def _variants_read(
        self, frozen: Frozen, adapter: lora2r.Adapter | None, batch: Batch, variants: Variants
    ) -> tuple[Array, Array]:
        """Every row's prompt under the row's policy, [L, n, B, K, E] keys and values."""
        count, packs = variants.quarantine_on.size, batch.rewards.size // self.pack
        if self.pack <= count:  # no fewer prompts to read than rows have
            return self.read_prompts(frozen, adapter, batch, variants.route(variants.of_row), every=1)
        tiled = jax.tree.map(lambda leaf: jnp.tile(leaf, (count,) + (1,) * (leaf.ndim - 1)), batch)
        route = variants.route(jnp.repeat(jnp.arange(count), packs))
        read = self.read_prompts(frozen, adapter, tiled, route, every=self.pack)
        by_pack = variants.of_row.reshape(packs, self.pack)

        def of_rows(leaf: Array) -> Array:
            """[L, V packs, ...] -> [L, n, ...]."""
            leaf = leaf.reshape(leaf.shape[0], count, packs, 1, *leaf.shape[2:])
            shape = (leaf.shape[0], packs, self.pack, *leaf.shape[4:])
            each = [jnp.broadcast_to(leaf[:, variant], shape) for variant in range(count)]
            chosen = jnp.broadcast_to(by_pack[None, :, :, None, None, None], shape)
            return jax.lax.select_n(chosen, *each).reshape(shape[0], -1, *shape[3:])

        return jax.tree.map(of_rows, read)

    def read_prompts(
        self,
        frozen: Frozen,
        adapter: lora2r.Adapter | None,
        batch: Batch,
        route: lora2r.Route,
        *,
        every: int,
        scale: Any = None,
    ) -> tuple[Array, Array]:
        """Keys and values of the prompt of one row of `every`, [L, n / every, B, K, E] each."""
        bucket = batch.tokens.shape[1] - batch.completion_mask.shape[1]
        tokens, valid = batch.tokens[::every, :bucket], batch.valid[::every, :bucket]
        options = {"adapter": adapter, "route": route, "scale": scale}
        return policy.prompt_caches(self.model, frozen.base, tokens, valid, **options)

    def continue_prompts(
        self,
        frozen: Frozen,
        adapter: lora2r.Adapter | None,
        batch: Batch,
        route: lora2r.Route,
        caches: tuple[Array, Array],
        *,
        length: int,
        scale: Any = None,
    ) -> Float[Array, "n T"]:
        """log pi of the completions behind the caches of every row's prompt."""
        whole = batch.completion_mask.shape[1]
        bucket = batch.tokens.shape[1] - whole
        lengths = jnp.sum(batch.valid[:, :bucket], axis=1)
        logprobs = policy.continued_logprobs(
            self.model,
            frozen.base,
            caches,
            lengths,
            batch.tokens[:, bucket - 1 : bucket + length],
            chunk=self.config.model.logprob_chunk,
            adapter=adapter,
            route=route,
            scale=scale,
        )
        return jnp.pad(logprobs, ((0, 0), (0, whole - length)))

    def over_rows(
        self, body: Callable, carry: Any, rows: Any, *, needed: Bool[Array, "N"], lengths: Array, skipped: Any
    ) -> tuple[Any, Any]:
        """Scans `body(carry, rows, length) -> (carry, outputs)` over micro-batches of the rows that need it.

        Rows of a group stand in packs; packs and the rows in them that need it come first, the short ones before the
        long, and a micro-batch is run at the smallest of `padding.completion_lengths` that holds its rows; `lengths`
        [N] are theirs. A micro-batch that nobody needs is not run: its outputs are `skipped`.

        Returns:
            The last carry, and the outputs in the rows' own order.
        """
        padded = padding.completion_lengths(self.config.rollout.max_new_tokens)
        size = self.config.train.micro_batch
        at_least = jnp.searchsorted(jnp.array(padded), lengths)  # the place of each row's padded length
        at_least = jnp.where(needed, at_least, len(padded))
        order = self._packed(at_least, needed)

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

    def _packed(self, place: Int[Array, "N"], needed: Bool[Array, "N"]) -> Int[Array, "N"]:
        """An order of the rows: inside of groups by place, then packs by the last place that one of them needs."""
        groups = place.reshape(-1, self.config.rollout.group_size)
        inside = jnp.argsort(groups, axis=1, stable=True) + jnp.arange(groups.shape[0])[:, None] * groups.shape[1]
        packs = inside.reshape(-1, self.pack)
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
            size = rows.live.shape[0]
            route = lora2r.full_route if self.probe_full else lora2r.ablated_route

            def read(scale: dict[str, Array]) -> tuple[Array, Array]:
                masks = route(size // self.pack)
                return self.read_prompts(frozen, adapter, rows.batch, masks, every=self.pack, scale=scale)

            def loss(scale: dict[str, Array], caches: tuple[Array, Array]) -> tuple[Array, Array]:
                options = {"length": length, "scale": scale}
                logprobs = self.continue_prompts(frozen, adapter, rows.batch, route(size), caches, **options)
                return grpo.probe_loss(logprobs, rows.advantages, rows.batch.completion_mask), logprobs

            ones = lora2r.probe_ones(self.model.num_layers, size // self.pack, self.config.adapter.rank)
            gradients, logprobs = probe.continued_gradients(read, loss, ones, self.pack)
            return None, (probe.deployed_half(gradients, lora2r.MODULES), logprobs)

        gradients = self._zeros(self.model.num_layers * len(lora2r.MODULES), self.config.adapter.rank)
        skipped = (gradients, self._zeros(row.batch.completion_mask.shape[1]))
        needed, lengths = row.advantages != 0, _lengths(row.batch)
        return self.over_rows(body, None, row, needed=needed, lengths=lengths, skipped=skipped)[1]

    @jax.named_scope("sampled")
    def sampled_logprobs(
        self, state: TrainState, frozen: Frozen, batch: Batch, needed: Bool[Array, "N"]
    ) -> Float[Array, "N T"]:
        """log pi of the policy that sampled each row, without gradient, for the rows that need it."""

        def body(carry: None, rows: Batch, length: int) -> tuple[None, Array]:
            variants = Variants(jnp.array([False, True]), None, rows.quarantine_sampled.astype(jnp.int32))
            return None, self.logprobs(frozen, state.deltas, rows, variants, length=length)

        skipped = self._zeros(batch.completion_mask.shape[1])
        return self.over_rows(body, None, batch, needed=needed, lengths=_lengths(batch), skipped=skipped)[1]

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
        lengths = _lengths(row.batch)
        (loss, gradients), stats = self.over_rows(
            body, start, rows, needed=row.live, lengths=lengths, skipped=skipped
        )
        return loss, gradients, stats

    def _losses(
        self, frozen: Frozen, deltas: lora2r.Factors, row: Row, labels: Array, old_logprobs: Array, *, length: int
    ) -> tuple[Float[Array, "n"], grpo.LossStats]:
        config, batch = self.config, row.batch
        quarantine_on, _ = gate.route_masks(labels)
        logprobs = self.logprobs(frozen, deltas, batch, self._label_variants(labels), length=length)
        same_policy = self.trains_as_sampled(batch, quarantine_on)
        old = jnp.where(same_policy[:, None], jax.lax.stop_gradient(logprobs), old_logprobs)
        reference = None
        if config.loss.kl_coefficient > 0:
            with jax.named_scope("reference"):
                base = Variants(jnp.array([False]), None, jnp.zeros_like(labels))
                reference = jax.lax.stop_gradient(self.logprobs(frozen, None, batch, base, length=length))
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


def _lengths(batch: Batch) -> Int[Array, "n"]:
    """Completion tokens of every row."""
    return jnp.sum(batch.completion_mask, axis=1)
