"""Attention of few queries to the filled part of a cache, as a kernel for NVIDIA GPUs: the rest is not read.

A program takes a row's key-value head and goes through the keys block by block, up to the row's own length. It keeps
the greatest logit so far, and the weights' sum and the mixed values relative to it (FlashAttention-2, Dao 2023, arXiv
2307.08691). Where rows are few, several programs share the keys of each, and what they find is merged
(flash-decoding, Dao et al. 2023, https://crfm.stanford.edu/2023/10/12/flashdecoding.html).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from vgrout_jax.model import attention

_LEAST = float(jnp.finfo(jnp.float32).min)  # the greatest logit of nothing
_LEAST_SIDE = 16  # of the matrices that Triton multiplies


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut into programs; sizes of blocks are powers of two, and 16 at least.

    Attributes:
        queries: most of a key-value head's queries that one program takes.
        keys: keys of a block.
        programs: where there are fewer, several share a row's keys.
        least_keys: of the cache's slots, for each of those that share them.
        warps, stages: of a program; blocks on their way to it are one fewer than stages.
    """

    queries: int = 64
    keys: int = 64
    programs: int = 264
    least_keys: int = 256
    warps: int = 4
    stages: int = 3

    def cut(self, heads: int, size: int, slots: int) -> tuple[int, int, int]:
        """How many of a head's `size` queries go together, in how many blocks, and how many share their keys."""
        together = min(self.queries, max(_LEAST_SIDE, pl.next_power_of_2(size)))
        blocks = pl.cdiv(size, together)
        wanted = pl.cdiv(self.programs, heads * blocks)
        return together, blocks, max(1, min(wanted, slots // self.least_keys))


def serves(head_dim: int) -> bool:
    """Whether the kernel can be compiled for heads of this width: Triton's blocks are powers of two."""
    return head_dim >= _LEAST_SIDE and head_dim & (head_dim - 1) == 0


def attend_filled(
    queries: Float[Array, "N K G E"],
    keys: Float[Array, "N K S E"],
    values: Float[Array, "N K S E"],
    lengths: Int[Array, " N"],
    *,
    tiling: Tiling | None = None,
    interpret: bool = False,
) -> attention.Part:
    """`attending.attend_part` to the first `lengths` keys of every row; the others may hold anything.

    Args:
        queries, keys, values: of one type; products are summed in float32.
        lengths: int32, 0 to S. At 0 `mixed` and `total` are 0, and `greatest` is the least float.
        tiling: None: the default.
        interpret: runs on any device, slowly, and takes any E.

    Raises:
        ValueError: E is none that `serves`.
    """
    rows, heads, size, width = queries.shape
    if not (interpret or serves(width)):
        raise ValueError(f"the heads' width must be a power of two and >= {_LEAST_SIDE}, got {width}")
    tiling, slots = tiling or Tiling(), keys.shape[2]
    together, blocks, shares = tiling.cut(rows * heads, size, slots)
    in_specs, out_specs = _specs(size, slots, width, shares)
    tails = ((size, width), (size,), (size,))
    found = pl.pallas_call(
        functools.partial(_flash_decoding, together=together, block=tiling.keys, shares=shares),
        grid=(blocks * shares, heads, rows),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=[jax.ShapeDtypeStruct((shares, rows, heads, *tail), jnp.float32) for tail in tails],
        compiler_params=plgpu.CompilerParams(num_warps=tiling.warps, num_stages=tiling.stages),
        interpret=interpret,
    )(lengths, queries, keys, values)
    return merge_shares(attention.Part(*found))


def merge_shares(parts: attention.Part) -> attention.Part:
    """One part of several, along a first axis; those without a key add nothing, exactly."""
    if parts.total.shape[0] == 1:
        return jax.tree.map(lambda leaf: leaf[0], parts)
    greatest = parts.greatest.max(axis=0)
    weights = jnp.exp(parts.greatest - greatest)  # where no key is anywhere 1, of zeros
    mixed = jnp.sum(weights[..., None] * parts.mixed, axis=0)
    return attention.Part(mixed, greatest, jnp.sum(weights * parts.total, axis=0))


def _specs(size: int, slots: int, width: int, shares: int) -> tuple[list[pl.BlockSpec], list[pl.BlockSpec]]:
    """What a program sees of every operand and result: all of its row and head, and its own share's part."""

    def of_row(*tail: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, *tail), lambda _, head, row: (row, head, *(0 for _ in tail)))

    def of_share(*tail: int) -> pl.BlockSpec:
        start = tuple(0 for _ in tail)
        return pl.BlockSpec((None, None, None, *tail), lambda place, head, row: (place % shares, row, head, *start))

    length = pl.BlockSpec((None,), lambda _, head, row: (row,))
    cache = of_row(slots, width)
    return [length, of_row(size, width), cache, cache], [of_share(size, width), of_share(size), of_share(size)]


def _flash_decoding(
    length_ref: Any,  # []
    query_ref: Any,  # [G, E]
    key_ref: Any,  # [S, E]
    value_ref: Any,
    mixed_ref: Any,  # [G, E]
    greatest_ref: Any,  # [G]
    total_ref: Any,
    *,
    together: int,
    block: int,
    shares: int,
) -> None:
    """One program: `together` queries of a head, one of the `shares` of a row's keys."""
    size, width = query_ref.shape
    first, share = pl.program_id(0) // shares * together, pl.program_id(0) % shares
    inside = first + jnp.arange(together) < size
    queries = plgpu.load(query_ref.at[pl.ds(first, together), :], mask=inside[:, None], other=0.0)
    length = length_ref[...]
    each = pl.cdiv(pl.cdiv(length, block), shares)  # blocks of a share: of what is filled, not of the slots

    def take(index: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        mixed, greatest, total = carry
        span, filled = pl.ds(index * block, block), index * block + jnp.arange(block) < length
        keys = plgpu.load(key_ref.at[span, :], mask=filled[:, None], other=0.0)
        values = plgpu.load(value_ref.at[span, :], mask=filled[:, None], other=0.0)
        logits = plgpu.dot(queries, keys, trans_b=True) * width**-0.5
        logits = jnp.where(filled[None], logits, _LEAST)
        higher = jnp.maximum(greatest, logits.max(axis=1))
        weights, before = jnp.exp(logits - higher[:, None]), jnp.exp(greatest - higher)
        mixed = before[:, None] * mixed + plgpu.dot(weights.astype(values.dtype), values)
        return mixed, higher, before * total + weights.sum(axis=1)

    zeros = jnp.zeros(together, jnp.float32)
    nothing = (jnp.zeros((together, width), jnp.float32), zeros + _LEAST, zeros)
    last = jnp.minimum((share + 1) * each, pl.cdiv(length, block))
    mixed, greatest, total = jax.lax.fori_loop(share * each, last, take, nothing)
    plgpu.store(mixed_ref.at[pl.ds(first, together), :], mixed, mask=inside[:, None])
    plgpu.store(greatest_ref.at[pl.ds(first, together)], greatest, mask=inside)
    plgpu.store(total_ref.at[pl.ds(first, together)], total, mask=inside)
