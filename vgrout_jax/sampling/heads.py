"""A new token's heads in the decode loop: queries and keys normed and rotated, keys and values into the caches.

On an NVIDIA GPU one kernel does all of it, and writes into the caches where they stand.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from vgrout_jax.model import qwen3
from vgrout_jax.model.norms import rms_norm, rotate
from vgrout_jax.sampling import cache_attention

Cache = tuple[Float[Array, "N K S E"], Float[Array, "N K S E"]]
_ROWS = 16  # of one program of the kernel; a power of two


def take_in(
    place: Callable[..., Array],
    reach: cache_attention.Reach,
    attention: qwen3.Attention,
    norms: tuple[Float[Array, " E"], Float[Array, " E"]],
    cache: Cache,
    heads: Float[Array, "N 1 F"],
    *,
    epsilon: float,
) -> tuple[Float[Array, "N 1 H E"], Cache]:
    """The token's queries, ready for attention, and the caches with its key and value in.

    Args:
        place: puts an array on the mesh by the names of its first axes.
        reach: which slot of the caches is the token's, and whether the kernel runs.
        attention: rotary cosines and sines of the token.
        norms: scales of the queries' norm and of the keys'.
        cache: keys and values of every row.
        heads: queries, keys and values side by side, as the maps leave them: F = (H + 2 K) E.
        epsilon: of the norms.
    """
    rows, count, _, width = cache[0].shape
    if reach.by_kernel:
        angles = (leaf[:, 0] for leaf in (attention.cos, attention.sin))
        queries, *cache = take_in_by_kernel(heads[:, 0], reach.slot, norms, tuple(angles), cache, epsilon=epsilon)
        return queries[:, None], tuple(cache)
    split = heads.reshape(rows, 1, -1, width)
    queries, keys, values = jnp.split(split, [split.shape[2] - 2 * count, split.shape[2] - count], axis=2)
    turned = (
        rotate(rms_norm(leaf, scale, epsilon), attention.cos, attention.sin)
        for leaf, scale in zip((queries, keys), norms, strict=True)
    )
    queries, keys = turned
    return queries, cache_attention.write(place, reach, cache, keys, values)


def take_in_by_kernel(
    heads: Float[Array, "N F"],
    slot: Int[Array, ""],
    norms: tuple[Float[Array, " E"], Float[Array, " E"]],
    angles: tuple[Float[Array, "N half"], Float[Array, "N half"]],
    cache: Cache,
    *,
    epsilon: float,
    interpret: bool = False,
) -> tuple[Float[Array, "N H E"], Float[Array, "N K S E"], Float[Array, "N K S E"]]:
    """Queries, and the caches, which are changed in place: `take_in` as one kernel, in float32 up to the results.

    Args:
        heads, norms, cache, epsilon: as there; E a power of two.
        slot: int32.
        angles: cosines and sines.
        interpret: runs on any device, slowly, and takes any even E.
    """
    keys, values = cache
    count, width = keys.shape[1], keys.shape[3]
    queries = heads.shape[1] // width - 2 * count
    rows = min(_ROWS, pl.next_power_of_2(heads.shape[0]))
    shapes = [jax.ShapeDtypeStruct((heads.shape[0], queries, width), heads.dtype), *map(_shape, cache)]
    return pl.pallas_call(
        functools.partial(_take_in, rows=rows, epsilon=epsilon),
        grid=(pl.cdiv(heads.shape[0], rows), queries + 2 * count),
        out_shape=shapes,
        input_output_aliases={6: 1, 7: 2},
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
    )(slot[None], heads, *norms, *angles, keys, values)


def _shape(leaf: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _take_in(
    slot_ref: Any,  # [1]
    heads_ref: Any,  # [N, F]
    query_norm_ref: Any,  # [E]
    key_norm_ref: Any,  # [E]
    cos_ref: Any,  # [N, E/2]
    sin_ref: Any,  # [N, E/2]
    old_keys_ref: Any,  # [N, K, S, E], the same memory as what is written
    old_values_ref: Any,
    query_ref: Any,  # [N, H, E]
    key_ref: Any,  # [N, K, S, E]
    value_ref: Any,
    *,
    rows: int,
    epsilon: float,
) -> None:
    """One program: one head of some rows; queries come first, then keys, then values."""
    del old_keys_ref, old_values_ref
    (size, queries, width), count, dtype = query_ref.shape, key_ref.shape[1], query_ref.dtype
    head, half = pl.program_id(1), query_ref.shape[2] // 2
    span, slot = pl.ds(pl.program_id(0) * rows, rows), slot_ref[0]
    inside = (pl.program_id(0) * rows + jnp.arange(rows) < size)[:, None]
    is_query, is_value = head < queries, head >= queries + count

    def read(ref: Any, start: Array | int) -> Array:
        return plgpu.load(ref.at[span, pl.ds(start, half)], mask=inside, other=0.0).astype(jnp.float32)

    raw = [read(heads_ref, head * width + start) for start in (0, half)]
    square = sum(jnp.sum(leaf * leaf, axis=1, keepdims=True) for leaf in raw)
    inverse = jax.lax.rsqrt(square / width + epsilon)

    def normed(leaf: Array, start: int) -> Array:
        part = pl.ds(start, half)
        scale = jnp.where(is_query, query_norm_ref[part], key_norm_ref[part])
        return leaf * inverse * scale.astype(jnp.float32)[None]

    (first, second), cos, sin = (normed(raw[0], 0), normed(raw[1], half)), read(cos_ref, 0), read(sin_ref, 0)
    turned = [first * cos - second * sin, second * cos + first * sin]
    for leaf, as_it_was, start in zip(turned, raw, (0, half), strict=True):
        out, part = jnp.where(is_value, as_it_was, leaf).astype(dtype), pl.ds(start, half)
        key, value = (jnp.clip(head - before, 0, count - 1) for before in (queries, queries + count))
        query = query_ref.at[span, jnp.minimum(head, queries - 1), part]
        plgpu.store(query, out, mask=inside & is_query)
        plgpu.store(key_ref.at[span, key, slot, part], out, mask=inside & ~is_query & ~is_value)
        plgpu.store(value_ref.at[span, value, slot, part], out, mask=inside & is_value)
