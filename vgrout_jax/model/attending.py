"""The products of attention: grouped queries, softmax in float32."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

# How attention over whole sequences is computed: all rows at once; a few rows at a time, so that their weights stay
# in a CPU's cache; or by cuDNN's kernel, where padding only follows (NVIDIA GPUs, 16-bit types). Where sequences are
# packed (`model/packing`), which cuDNN can from compute capability 9.0 on, they are padded for attention at most.
CUDNN, PACKED = ("cudnn", "cudnn_packed"), ("packed", "cudnn_packed")
ATTENTIONS = ("batch", "rows", "cudnn", *PACKED)
_LEAST_BLOCK, _MOST_BLOCKS = 64, 8  # of queries, compared with the keys up to the block's end alone
_CACHED = 2**19  # attention weights of one block and some rows


def attend_causally(
    queries: Float[Array, "N T H E"],
    keys: Float[Array, "N S K E"],
    values: Float[Array, "N S K E"],
    valid: Bool[Array, "N S"] | None = None,
    *,
    by_rows: bool = False,
) -> Float[Array, "N T H E"]:
    """Attention of the last T of S tokens, each to itself and what is valid before it; softmax in float32.

    Queries go in blocks, each compared with the keys up to its own end, which in the limit halves work and memory;
    the weights are never all there at once, and the backward pass computes them anew. `by_rows` takes as few rows at
    a time as fit a cache. A query that may read no key (padding) gets a finite number that nobody reads.
    """
    rows, length, num_heads, _ = queries.shape
    size = max(_LEAST_BLOCK, -(-length // _MOST_BLOCKS))
    inputs = (queries, keys, values) if valid is None else (queries, keys, values, valid)
    together = max(1, _CACHED // (num_heads * size * keys.shape[1]))
    attend_row = functools.partial(_attend_row, size=size)
    if keys.shape[1] > size:
        attend_row = _backward_alone(attend_row) if by_rows else jax.checkpoint(attend_row)
    if by_rows and together < rows:
        return jax.lax.map(lambda row: attend_row(*row), inputs, batch_size=None if together == 1 else together)
    return jax.vmap(attend_row)(*inputs)


def _backward_alone(attend_row: Callable[..., Array]) -> Callable[..., Array]:
    """`attend_row` with a backward pass that computes it anew, and one gradient after the other where it is batched.

    So the weights stay in the cache also where several gradients go back through the same row.
    """

    @jax.custom_batching.sequential_vmap
    def pull(inputs: tuple, gradient: Array) -> tuple:
        tokens, valid = inputs[:3], inputs[3:]
        return jax.vjp(lambda *tokens: attend_row(*tokens, *valid), *tokens)[1](gradient)

    def backward(inputs: tuple, gradient: Array) -> tuple:
        return *pull(inputs, gradient), *(None for _ in inputs[3:])

    alone = jax.custom_vjp(attend_row)
    alone.defvjp(lambda *inputs: (attend_row(*inputs), inputs), backward)
    return alone


def _attend_row(queries: Array, keys: Array, values: Array, valid: Array | None = None, *, size: int) -> Array:
    """One row, [T, H, E] and twice [S, K, E], in blocks of `size` queries."""
    length, num_heads, head_dim = queries.shape
    before, count = keys.shape[0] - length, keys.shape[1]
    grouped = queries.reshape(length, count, -1, head_dim).transpose(1, 2, 0, 3)  # [K, G, T, E]
    keys, values = keys.transpose(1, 2, 0), values.transpose(1, 0, 2)
    blocks = []
    for start in range(0, length, size):
        block = grouped[:, :, start : start + size]
        end = before + start + block.shape[2]
        readable = jnp.arange(before + start, end)[:, None] >= jnp.arange(end)
        if valid is not None:
            readable &= valid[:end]
        flat = block.reshape(count, -1, head_dim)
        logits = jnp.matmul(flat, keys[:, :, :end], preferred_element_type=jnp.float32).reshape(*block.shape[:3], end)
        logits = jnp.where(readable, logits * head_dim**-0.5, jnp.finfo(jnp.float32).min)
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
        total = weights.sum(axis=-1, keepdims=True)
        weights = weights.astype(values.dtype).reshape(count, -1, end)
        mixed = jnp.matmul(weights, values[:, :end], preferred_element_type=jnp.float32).reshape(block.shape) / total
        blocks.append(mixed.astype(values.dtype))
    return jnp.concatenate(blocks, axis=2).transpose(2, 0, 1, 3).reshape(length, num_heads, head_dim)


@struct.dataclass
class Part:
    """Attention over some of the keys, to be merged with that over the others.

    Attributes:
        mixed: [N, K, G, E] float32, values weighted by exp(logit - greatest).
        greatest: [N, K, G] float32, the greatest logit; the least float where no key may be read.
        total: [N, K, G] float32, sum of exp(logit - greatest).
    """

    mixed: jax.Array
    greatest: jax.Array
    total: jax.Array


def attend_part(
    queries: Float[Array, "N K G E"],
    keys: Float[Array, "N K S E"],
    values: Float[Array, "N K S E"],
    readable: Bool[Array, "#N S"],
) -> Part:
    """Attention of G queries a key-value head over one part of what they may read, in float32."""
    logits = jnp.einsum("NKGE,NKSE->NKGS", queries, keys, preferred_element_type=jnp.float32)
    logits = jnp.where(readable[:, None, None], logits * queries.shape[-1] ** -0.5, jnp.finfo(jnp.float32).min)
    greatest = logits.max(axis=-1)
    weights = jnp.exp(logits - greatest[..., None])
    mixed = jnp.einsum("NKGS,NKSE->NKGE", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return Part(mixed, greatest, weights.sum(axis=-1))


def merge(one: Part, other: Part) -> Float[Array, "N K G E"]:
    """Attention over the keys of both parts; at least one of them has a key to read."""
    greatest = jnp.maximum(one.greatest, other.greatest)
    first, second = jnp.exp(one.greatest - greatest), jnp.exp(other.greatest - greatest)
    total = first * one.total + second * other.total
    return (first[..., None] * one.mixed + second[..., None] * other.mixed) / total[..., None]
