"""How the log-probabilities of a micro-batch are read: every rollout whole, or first the prompt that a group shares.

The prompt is often most of a rollout's tokens. Where it is shared it is read once under each policy that the rollouts
of a micro-batch may have, and the completions behind it; on the way back, what reaches the prompt is added up over
the rollouts first. The probe alone, which is asked for rollout by rollout, goes back through the prompt for each.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from vgrout_jax import sharding
from vgrout_jax.config import Config
from vgrout_jax.model import lora2r, padding, policy, qwen3
from vgrout_jax.rl.state import Batch, Frozen

_LEAST_SHARED = 192  # tokens that a pack's prompts have by themselves, to be worth sharing
_MOST_TOGETHER = 4  # rollouts of a pack, where completions are padded to one of several lengths


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


class Reader:
    """Forward passes over the rollouts of a micro-batch, as pure functions closed over the run's settings."""

    def __init__(self, config: Config, model: qwen3.Qwen3Config, mesh: Mesh):
        self.config, self.model, self.mesh = config, model, mesh

    def together(self, batch: Batch) -> int:
        """R, the rollouts of one group that stand together in a micro-batch, and on one device: a pack.

        A pack is padded to its longest completion, so where lengths differ a large one would lose more than a shared
        prompt saves; and what is saved of a short prompt does not earn the programs' compilation back.
        """
        micro_batch = self.config.train.micro_batch
        here = max(1, micro_batch // sharding.batch_devices(self.mesh))
        pack = math.gcd(here, micro_batch, self.config.rollout.group_size)
        several = len(padding.completion_lengths(self.config.rollout.max_new_tokens)) > 1
        pack = math.gcd(pack, _MOST_TOGETHER) if several else pack
        return pack if pack * _bucket(batch) >= _LEAST_SHARED else 1

    def logprobs(
        self, frozen: Frozen, deltas: lora2r.Factors | None, batch: Batch, variants: Variants, *, length: int
    ) -> Float[Array, "n T"]:
        """log pi of the completions; `deltas` None: the base with the adapter off.

        Of the first `length` tokens, and 0 for those behind, which no row may have.
        """
        adapter = None if deltas is None else lora2r.Adapter(frozen.init, deltas)
        route = variants.route(variants.of_row)
        pack = self.together(batch)
        if pack == 1:
            return self.read_whole(frozen, adapter, batch, route, length=length)
        caches = self._variants_read(frozen, adapter, batch, variants, pack)
        return self.continue_prompts(frozen, adapter, batch, route, caches, length=length)

    def read_whole(
        self,
        frozen: Frozen,
        adapter: lora2r.Adapter | None,
        batch: Batch,
        route: lora2r.Route,
        *,
        length: int,
        scale: Any = None,
    ) -> Float[Array, "n T"]:
        """log pi of the completions, every row with its own prompt."""
        behind = batch.completion_mask.shape[1] - length
        whole = batch.tokens.shape[1] - behind
        logprobs = policy.completion_logprobs(
            self.model,
            frozen.base,
            batch.tokens[:, :whole],
            batch.valid[:, :whole],
            completion_length=length,
            chunk=self.config.model.logprob_chunk,
            adapter=adapter,
            route=route,
            scale=scale,
        )
        return jnp.pad(logprobs, ((0, 0), (0, behind)))

    def _variants_read(
        self, frozen: Frozen, adapter: lora2r.Adapter | None, batch: Batch, variants: Variants, pack: int
    ) -> tuple[Array, Array]:
        """Every row's prompt under the row's policy, [L, n, B, K, E] keys and values."""
        count, packs = variants.quarantine_on.size, batch.rewards.size // pack
        if pack <= count:  # no fewer prompts to read than rows have
            return self.read_prompts(frozen, adapter, batch, variants.route(variants.of_row), every=1)
        tiled = jax.tree.map(lambda leaf: jnp.tile(leaf, (count,) + (1,) * (leaf.ndim - 1)), batch)
        route = variants.route(jnp.repeat(jnp.arange(count), packs))
        read = self.read_prompts(frozen, adapter, tiled, route, every=pack)
        by_pack = variants.of_row.reshape(packs, pack)

        def of_rows(leaf: Array) -> Array:
            """[L, V packs, ...] -> [L, n, ...]."""
            leaf = leaf.reshape(leaf.shape[0], count, packs, 1, *leaf.shape[2:])
            shape = (leaf.shape[0], packs, pack, *leaf.shape[4:])
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
        bucket = _bucket(batch)
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
        whole, bucket = batch.completion_mask.shape[1], _bucket(batch)
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


def _bucket(batch: Batch) -> int:
    """B, what the prompts are padded to."""
    return batch.tokens.shape[1] - batch.completion_mask.shape[1]
