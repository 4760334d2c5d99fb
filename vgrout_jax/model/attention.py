"""The products of attention: grouped queries, softmax in float32."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

# How attention over whole sequences is computed: all rows at once; a few rows at a time, so that their weights stay
# in a CPU's cache; or by cuDNN's kernel, where padding only follows (NVIDIA GPUs, 16-bit types). Where sequences are
# packed (`packed_attention`), which cuDNN can from compute capability 9.0 on, they are padded for attention at most.
CUDNN, PACKED = ("cudnn", "cudnn_packed"), ("packed", "cudnn_packed")
ATTENTIONS = ("batch", "rows", "cudnn", *PACKED)
_LEAST_BLOCK, _MOST_BLOCKS = 64, 8  # of queries, compared with the keys up to the block's end alone
_CACHED = 2**19  # attention weights of one block and some rows


@functools.partial(jax.jit, static_argnames="by_rows")
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
    alone = by_rows and keys.shape[1] > size
    if alone:
        attend_row = _row_alone(attend_row, size)
    elif keys.shape[1] > size:
        attend_row = jax.checkpoint(attend_row)
    if by_rows and together < rows:
        mixed = jax.lax.map(lambda row: attend_row(*row), inputs, batch_size=None if together == 1 else together)
    else:
        mixed = jax.vmap(attend_row)(*inputs)
    return mixed if alone else checkpoint_name(mixed, "product")  # `_row_alone` has named it


def _row_alone(attend_row: Callable[..., Array], size: int) -> Callable[..., Array]:
    """`attend_row` with `_pull_row` as its backward pass, which takes one row after the other where it is batched.

    Of several gradients that go back through the same row it takes one after the other too, so that the row's
    weights, computed once, stay in the cache.
    """

    @jax.custom_batching.custom_vmap
    def pull(kept: tuple, gradient: Array) -> tuple:
        return jax.tree.map(lambda leaf: leaf[0], _pull_row(*kept, gradient[None], size=size))

    @pull.def_vmap
    def pull_several(count: int, batched: Sequence, kept: tuple, gradients: Array) -> tuple:
        if not any(jax.tree.leaves(batched[0])):
            return _pull_row(*kept, gradients, size=size), (True, True, True)

        def of_row(number: Array) -> tuple:
            def own(leaf: Array, several: bool) -> Array:
                return jax.lax.dynamic_index_in_dim(leaf, number, keepdims=False) if several else leaf

            return pull(*jax.tree.map(own, (kept, gradients), tuple(batched)))

        return jax.lax.map(of_row, jnp.arange(count)), (True, True, True)

    def forward(*inputs: Array) -> tuple[Array, tuple]:
        mixed = checkpoint_name(attend_row(*inputs), "product")
        return mixed, (inputs, mixed)

    def backward(kept: tuple, gradient: Array) -> tuple:
        return *pull(kept, gradient), *(None for _ in kept[0][3:])

    alone = jax.custom_vjp(attend_row)
    alone.defvjp(forward, backward)
    return alone


def _attend_row(queries: Array, keys: Array, values: Array, valid: Array | None = None, *, size: int) -> Array:
    """One row, [T, H, E] and twice [S, K, E], in blocks of `size` queries."""
    count = keys.shape[1]
    grouped, keys, values = _by_group(queries, count), keys.transpose(1, 0, 2), values.transpose(1, 0, 2)
    mixed = []
    for block in _blocks(queries.shape[0], keys.shape[1], size, valid):
        flat, shape = _flat(grouped, block), (count, -1, block.size, grouped.shape[-1])
        weights, total = _weights(flat, keys, block)
        weights = weights.astype(values.dtype).reshape(*flat.shape[:2], block.end)
        found = jnp.matmul(weights, values[:, : block.end], preferred_element_type=jnp.float32).reshape(shape)
        mixed.append((found / total).astype(values.dtype))
    return jnp.concatenate(mixed, axis=2).transpose(2, 0, 1, 3).reshape(queries.shape)


def _pull_row(
    inputs: tuple[Array, ...], mixed: Float[Array, "T H E"], gradients: Float[Array, "C T H E"], *, size: int
) -> tuple[Array, ...]:
    """C gradients of `_attend_row` pulled back to queries, keys and values: [C, T, H, E] and twice [C, S, K, E].

    `mixed`: what it has returned.
    """
    queries, keys, values = inputs[:3]
    valid = inputs[3] if len(inputs) > 3 else None
    count, of_queries, of_keys, of_values = keys.shape[1], [], None, None
    ones = jnp.ones((queries.shape[-1], 1))
    along = jnp.matmul(gradients.astype(jnp.float32) * mixed, ones)  # faster than a sum on the CPU
    by_group = jax.vmap(_by_group, in_axes=(0, None))
    grouped, of_mixed, along = _by_group(queries, count), by_group(gradients, count), by_group(along, count)
    given = (keys.transpose(1, 0, 2), values.transpose(1, 0, 2))
    for block in reversed(_blocks(queries.shape[0], keys.shape[0], size, valid)):
        several = (jax.vmap(_flat, in_axes=(0, None))(leaf, block) for leaf in (of_mixed, along))
        to_queries, to_keys, to_values = _pull_block(_flat(grouped, block), *given, *several, block)
        of_queries.insert(0, to_queries.reshape(*of_mixed.shape[:3], block.size, -1))
        of_keys = to_keys if of_keys is None else of_keys.at[..., : block.end].add(to_keys)
        of_values = to_values if of_values is None else of_values.at[..., : block.end].add(to_values)
    of_queries = jnp.concatenate(of_queries, axis=3).transpose(0, 3, 1, 2, 4).reshape(gradients.shape)
    return of_queries, *(leaf.transpose(0, 3, 1, 2).astype(queries.dtype) for leaf in (of_keys, of_values))


def _pull_block(
    queries: Float[Array, "K Q E"],
    keys: Float[Array, "K S E"],
    values: Float[Array, "K S E"],
    gradients: Float[Array, "C K Q E"],
    along: Float[Array, "C K Q 1"],
    block: "_Block",
) -> tuple[Float[Array, "C K Q E"], Float[Array, "C K E end"], Float[Array, "C K E end"]]:
    """`_pull_row` of one block, to the keys and values before its end; the sums over queries in float32.

    With P the softmax of the logits and dP the gradient times values, that of the logits is P (dP - sum(P dP)), and
    the sum, here `along`, is the gradient times the output (Dao et al. 2022, arXiv 2205.14135, appendix B.2).
    """
    dtype, product = queries.dtype, functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    weights, total = _weights(queries, keys, block)
    weights = (weights / total).reshape(*queries.shape[:2], block.end)
    narrow, queries_across = weights.astype(dtype), queries.transpose(0, 2, 1)

    def pull(one: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        gradient, along = one
        of_weights = _pairwise(gradient, values, block)
        of_logits = (weights * (of_weights - along) * (queries.shape[-1] ** -0.5)).astype(dtype)
        # The wide operand stands last in these: the other order would transpose it on the CPU.
        across = product(queries_across, of_logits), product(gradient.transpose(0, 2, 1), narrow)
        return jnp.matmul(of_logits, keys[:, : block.end]), *across

    if len(gradients) == 1:
        return jax.tree.map(lambda leaf: leaf[None], pull((gradients[0], along[0])))
    return jax.lax.map(pull, (gradients, along))


class _Block(NamedTuple):
    """Queries [start, start + size) of a row, and the keys [0, end) that they may read as `readable` says."""

    start: int
    size: int
    end: int
    readable: Bool[Array, "size end"]


def _blocks(length: int, slots: int, size: int, valid: Bool[Array, " S"] | None) -> list[_Block]:
    """The blocks of `length` queries whose last one stands at the last of `slots` keys."""
    blocks = []
    for start in range(0, length, size):
        own = min(size, length - start)
        end = slots - length + start + own
        readable = jnp.arange(end - own, end)[:, None] >= jnp.arange(end)
        blocks.append(_Block(start, own, end, readable if valid is None else readable & valid[:end]))
    return blocks


def _by_group(heads: Float[Array, "T H E"], count: int) -> Float[Array, "K G T E"]:
    length, _, head_dim = heads.shape
    return heads.reshape(length, count, -1, head_dim).transpose(1, 2, 0, 3)


def _flat(grouped: Float[Array, "K G T E"], block: _Block) -> Array:
    """The block's queries of a group in one row, [K, G size, E]."""
    return grouped[:, :, block.start : block.start + block.size].reshape(grouped.shape[0], -1, grouped.shape[-1])


def _pairwise(flat: Array, others: Float[Array, "K S E"], block: _Block) -> Float[Array, "K GQ end"]:
    """Every query, or gradient, times every key, or value, that the block may read, in float32.

    By this order of axes neither side is transposed for it on the CPU.
    """
    return jnp.einsum("KQE,KSE->KQS", flat, others[:, : block.end], preferred_element_type=jnp.float32)


def _weights(flat: Array, keys: Float[Array, "K S E"], block: _Block) -> tuple[Array, Array]:
    """exp(logit - greatest), [K, G, size, end] float32, and its sum over the keys, [K, G, size, 1]."""
    logits = _pairwise(flat, keys, block)
    logits = logits.reshape(keys.shape[0], -1, block.size, block.end) * flat.shape[-1] ** -0.5
    logits = jnp.where(block.readable, logits, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights, weights.sum(axis=-1, keepdims=True)


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
