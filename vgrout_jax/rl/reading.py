"""How log-probabilities of rollouts are read: each rollout whole, or behind the prompt that a group shares.

The prompt is often most of a rollout's tokens. Where it is shared it is read once under each policy that the rollouts
of a block may have, and the completions behind it; on the way back, what reaches the prompt is added up over the
rollouts first. The probe alone, which is asked for rollout by rollout, goes back through the prompt for each.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vgrout_jax.config import Config
from vgrout_jax.model import lora2r, policy, qwen3
from vgrout_jax.rl.state import Batch, Frozen

# Keys and values of prompts under each of some policies, [L, V, K, B, heads, E] each; (): prompts are not shared.
Caches = tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class Variants:
    """The policies under which a pass runs its rollouts.

    Attributes:
        quarantine_on: [V] bool, m of each.
        detach_deployed: [V] bool, d of each, or None for nowhere.
    """

    quarantine_on: Array
    detach_deployed: Array | None = None

    def route(self, chosen: Int[Array, " n"]) -> lora2r.Route:
        """The masks of the chosen policies."""
        detach = None if self.detach_deployed is None else self.detach_deployed[chosen]
        return lora2r.Route(self.quarantine_on[chosen], detach)


class Reader:
    """Forward passes over the rollouts of a chunk, as pure functions closed over the run's settings."""

    def __init__(self, config: Config, model: qwen3.Qwen3Config):
        self.chunk, self.model = config.model.logprob_chunk, model

    def prompts(
        self,
        frozen: Frozen,
        deltas: lora2r.Factors | None,
        tokens: Int[Array, "K B"],
        valid: Bool[Array, "K B"],
        variants: Variants,
        scale: dict[str, Array] | None = None,
    ) -> Caches:
        """Reads prompts under each of the policies; `deltas` None: the base with the adapter off."""
        count = variants.quarantine_on.size
        route = variants.route(jnp.repeat(jnp.arange(count), tokens.shape[0]))
        tiled = (jnp.tile(leaf, (count, 1)) for leaf in (tokens, valid))
        adapter = None if deltas is None else lora2r.Adapter(frozen.init, deltas)
        options = {"adapter": adapter, "route": route, "scale": scale}
        caches = policy.prompt_caches(self.model, frozen.base, *tiled, **options)
        return tuple(leaf.reshape(leaf.shape[0], count, -1, *leaf.shape[2:]) for leaf in caches)

    def logprobs(
        self,
        frozen: Frozen,
        deltas: lora2r.Factors | None,
        batch: Batch,
        variants: Variants,
        of_row: Int[Array, " n"],
        caches: Caches,
        *,
        length: int,
        scale: dict[str, Array] | None = None,
    ) -> Float[Array, "n T"]:
        """log pi of the first `length` tokens of completions, and 0 for those behind, which no row may have.

        Args:
            frozen, deltas: as in `prompts`.
            batch: the rows, those of a group together where their prompts are shared.
            variants, of_row: the policies, and which of them each row has.
            caches: of `prompts`, or () where every row reads its own.
            length: tokens of a completion.
            scale: c of the probe, module -> [L, n, 2r], or None.
        """
        whole = batch.completion_mask.shape[1]
        bucket = batch.tokens.shape[1] - whole
        adapter = None if deltas is None else lora2r.Adapter(frozen.init, deltas)
        options = {"adapter": adapter, "route": variants.route(of_row), "scale": scale, "chunk": self.chunk}
        if caches:
            lengths, tokens = jnp.sum(batch.valid[:, :bucket], axis=1), batch.tokens[:, bucket - 1 : bucket + length]
            behind = spread(caches, of_row)
            found = policy.continued_logprobs(self.model, frozen.base, behind, lengths, tokens, **options)
        else:
            tokens, valid = batch.tokens[:, : bucket + length], batch.valid[:, : bucket + length]
            options["completion_length"] = length
            found = policy.completion_logprobs(self.model, frozen.base, tokens, valid, **options)
        return jnp.pad(found, ((0, 0), (0, whole - length)))


def spread(caches: Caches, of_row: Int[Array, " n"]) -> tuple[Any, ...]:
    """Every row's prompt under the row's policy, [L, n, B, heads, E]: rows stand by group, n / K to each."""

    def of_rows(leaf: Float[Array, "L V K B heads E"]) -> Float[Array, "L n B heads E"]:
        layers, count, groups, *rest = leaf.shape
        shape = (layers, groups, of_row.size // groups, *rest)
        each = [jnp.broadcast_to(leaf[:, variant, :, None], shape) for variant in range(count)]
        chosen = jnp.broadcast_to(of_row.reshape(1, groups, -1, 1, 1, 1), shape)
        picked = each[0] if count == 1 else jax.lax.select_n(chosen, *each)
        return picked.reshape(layers, -1, *rest)

    return tuple(map(of_rows, caches))
