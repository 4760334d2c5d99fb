"""The prefix cache: prompts that a group shares are read once, and completions after them.

The prompt is often most of a rollout's tokens. Where it is shared it is read once under each policy that the rollouts
of a block may have; in the backward pass, what reaches the prompt is summed over the rollouts first. The probe alone,
whose gradient is wanted for every rollout, runs the prompt's backward pass for each.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vgrout_jax.config import Config
from vgrout_jax.model import lora2r, qwen3
from vgrout_jax.model.logprobs import completion_logprobs, continued_logprobs, packed_logprobs, prompt_caches
from vgrout_jax.model.policy import Frozen, Policy
from vgrout_jax.rl.state import Batch

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

    def __init__(self, config: Config, model: qwen3.Qwen3Config, positions: int | None = None):
        """`positions`: of a chunk where completions stand end to end; None: they are padded."""
        self.chunk, self.model, self.positions = config.model.logprob_chunk, model, positions

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
        caches = prompt_caches(self.model, frozen.policy(deltas, route, scale), *tiled)
        return tuple(leaf.reshape(leaf.shape[0], count, -1, *leaf.shape[2:]) for leaf in caches)

    def logprobs(self, policy: Policy, batch: Batch, prefix: Caches, *, length: int) -> Float[Array, "n T"]:
        """log pi of the first `length` tokens of completions, and 0 for those after them, which no row may have.

        Args:
            policy: weights, and the masks and scale of every row.
            batch: the rows.
            prefix: of `gather_rows`, or () where every row reads its own prompt.
            length: tokens of a completion.
        """
        whole, chunk = batch.completion_mask.shape[1], self.chunk
        bucket = batch.tokens.shape[1] - whole
        if not prefix:
            tokens, valid = batch.tokens[:, : bucket + length], batch.valid[:, : bucket + length]
            found = completion_logprobs(self.model, policy, tokens, valid, completion_length=length, chunk=chunk)
            return jnp.pad(found, ((0, 0), (0, whole - length)))
        tokens = batch.tokens[:, bucket - 1 : bucket + length]
        read = (self.model, policy, prefix, jnp.sum(batch.valid[:, :bucket], axis=1), tokens)
        if self.positions is None:
            found = continued_logprobs(*read, chunk=chunk)
        else:
            lengths = jnp.sum(batch.completion_mask, axis=1)
            found = packed_logprobs(*read, lengths, positions=self.positions, chunk=chunk)
        return jnp.pad(found, ((0, 0), (0, whole - length)))


def gather_rows(caches: Caches, groups: Int[Array, " n"], policies: Int[Array, " n"]) -> tuple[Any, ...]:
    """Every row's prompt under the row's policy, [L, n, B, heads, E]; () where prompts are not shared."""

    def of_rows(leaf: Float[Array, "L V K B heads E"]) -> Float[Array, "L n B heads E"]:
        layers, count, size, *rest = leaf.shape
        return _taken(leaf.reshape(layers, count * size, *rest), policies * size + groups, count * size)

    return tuple(map(of_rows, caches))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _taken(leaf: Array, index: Array, count: int) -> Array:
    """`leaf[:, index]` of `count` places; its gradient is summed in the same order every time, in float32."""
    return leaf[:, index]


def _taken_forward(leaf: Array, index: Array, count: int) -> tuple[Array, Array]:
    return leaf[:, index], index


def _taken_backward(count: int, index: Array, gradient: Array) -> tuple[Array, None]:
    layers, rows, *rest = gradient.shape
    chosen = jnp.broadcast_to(jax.nn.one_hot(index, count, dtype=gradient.dtype), (layers, rows, count))
    flat, exact = gradient.reshape(layers, rows, -1), jax.lax.Precision.HIGHEST
    return jnp.einsum("Lnv,Lnx->Lvx", chosen, flat, precision=exact).reshape(layers, count, *rest), None


_taken.defvjp(_taken_forward, _taken_backward)
