"""The maps of one input side by side, with their adapters: two products instead of three for each map.

This is how the decode loop reads weights, where a product takes as long as reading its weights does and every kernel
beside it counts. The first product computes the maps and goes down into their adapters' rank space, the second comes
up from there. On NVIDIA GPUs the masks, the second product, the sum of both and the feed-forward's activation are one
kernel; elsewhere the second product has zeros where a map meets the rank space of another.

Reference: docs/method.md section 2; the formula is that of `lora2r.apply_fused`, without the probe's scale.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Bool, Float

_LEAST_SIDE = 16  # of the matrices that Triton multiplies


@dataclasses.dataclass(frozen=True)
class Tiling:
    """What one program of the kernel computes: so many rows and columns, powers of two, by so many warps."""

    rows: int = 32
    columns: int = 32
    warps: int = 4


@struct.dataclass
class Wide:
    """Maps that read the same input, and their adapters.

    Attributes:
        maps: [D, F + R], the maps' weights, F columns in all, and behind them [A; dA] of each map.
        up: for the kernel [F, 4r], each map's [dB, B0] below that of the one before; else [R, F], each in its own
            rows and columns, 0 elsewhere; None: no adapter, R = 0.
        sizes: F of each map.
        by_kernel: whether the kernel computes the second product.
    """

    maps: jax.Array
    up: jax.Array | None
    sizes: tuple[int, ...] = struct.field(pytree_node=False)
    by_kernel: bool = struct.field(pytree_node=False)


def serves(sizes: Sequence[int], rank: int) -> bool:
    """Whether the kernel can be compiled for maps of these widths and adapters of this rank, 4r a map."""
    return _columns(sizes) >= _LEAST_SIDE and 4 * rank >= _LEAST_SIDE and rank & (rank - 1) == 0


def widen(
    weights: Sequence[jax.Array], downs: Sequence[jax.Array], ups: Sequence[jax.Array], *, by_kernel: bool = False
) -> Wide:
    """The maps [D, F_i] side by side, with the fused factors [4r, D] and [F_i, 4r] of each, or of none.

    `by_kernel`: the device has the kernel, which is taken where it `serves`.
    """
    sizes = tuple(weight.shape[1] for weight in weights)
    if not downs:
        return Wide(jnp.concatenate(weights, axis=1), None, sizes, by_kernel=False)
    by_kernel = by_kernel and serves(sizes, ups[0].shape[1] // 4)
    maps = jnp.concatenate([*weights, *(leaf.T for leaf in downs)], axis=1)
    up = jnp.concatenate(ups) if by_kernel else jax.scipy.linalg.block_diag(*(leaf.T for leaf in ups))
    return Wide(maps, up, sizes, by_kernel)


def apply(
    x: Float[Array, "N T D"], wide: Wide, quarantine_on: Bool[Array, " N"], *, gated: bool = False
) -> Float[Array, "N T columns"]:
    """The maps' outputs side by side, their adapters' included, in x's dtype; the two are added up in float32.

    Args:
        x: the maps' input.
        wide: of `widen`.
        quarantine_on: m; where it is False the quarantine adds nothing.
        gated: of two maps, silu(first) * second instead, [N, T, F / 2].
    """
    product = jnp.einsum("NTD,DF->NTF", x, wide.maps, preferred_element_type=jnp.float32)
    if wide.by_kernel:
        flat, on = product.reshape(-1, product.shape[-1]), jnp.repeat(quarantine_on, x.shape[1])
        return add_adapters(flat, wide.up, on, sizes=wide.sizes, gated=gated).reshape(*x.shape[:2], -1)
    out = _added(product, wide, quarantine_on, x.dtype).astype(x.dtype)
    if not gated:
        return out
    gate, up = jnp.split(out, 2, axis=-1)
    return jax.nn.silu(gate) * up


def _added(product: Float[Array, "N T FplusR"], wide: Wide, quarantine_on: Bool[Array, " N"], dtype: Any) -> Array:
    """The maps' outputs and their adapters', [N, T, F]; a second product in `dtype`."""
    total = sum(wide.sizes)
    if wide.up is None:
        return product
    inner = product[..., total:]
    by_block = inner.reshape(*inner.shape[:2], 2 * len(wide.sizes), 2, -1)  # of each h and k: deployed, quarantine
    kept = quarantine_on[:, None, None, None, None] | (jnp.arange(2) == 0)[:, None]
    gated = jnp.where(kept, by_block, 0.0).reshape(inner.shape).astype(dtype)
    return product[..., :total] + jnp.einsum("NTR,RF->NTF", gated, wide.up).astype(jnp.float32)


def add_adapters(
    product: Float[Array, "N FplusR"],
    up: Float[Array, "F FourR"],
    quarantine_on: Bool[Array, " N"],
    *,
    sizes: Sequence[int],
    gated: bool = False,
    tiling: Tiling | None = None,
    interpret: bool = False,
) -> Float[Array, "N columns"]:
    """The maps' outputs with their adapters' added, by the kernel, in the type of `up`; `gated` as in `apply`.

    Args:
        product: float32, the maps' outputs, and behind them (A x, dA x) of each map.
        up: of `Wide`.
        quarantine_on: m.
        sizes: F of each map, as `serves` takes them.
        tiling: None: the default.
        interpret: runs on any device, slowly.
    """
    tiling = tiling or Tiling()
    count, total = product.shape[0], sum(sizes[:1] if gated else sizes)
    rows = min(tiling.rows, max(_LEAST_SIDE, pl.next_power_of_2(count)))
    columns = _columns(sizes, tiling.columns)
    return pl.pallas_call(
        functools.partial(_add, ends=_ends(sizes), gated=gated, rows=rows, columns=columns),
        grid=(pl.cdiv(count, rows), total // columns),
        out_shape=jax.ShapeDtypeStruct((count, total), up.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=tiling.warps, num_stages=1),
        interpret=interpret,
    )(product, up, quarantine_on.astype(jnp.int32))


def _columns(sizes: Sequence[int], most: int = _LEAST_SIDE) -> int:
    """The widest power of two up to `most` in whose multiples all maps end."""
    return math.gcd(most, *sizes)


def _ends(sizes: Sequence[int]) -> tuple[int, ...]:
    """The column behind each map's last."""
    return tuple(sum(sizes[: index + 1]) for index in range(len(sizes)))


def _add(
    product_ref: Any,  # [N, F + R]
    up_ref: Any,  # [F, 4r]
    on_ref: Any,  # [N]
    out_ref: Any,  # [N, columns], F or half of it
    *,
    ends: tuple[int, ...],
    gated: bool,
    rows: int,
    columns: int,
) -> None:
    """One program: some rows of some columns, which are all of one map, or of `gated` ones of both."""
    first, width = pl.program_id(1) * columns, up_ref.shape[1]
    span = pl.ds(pl.program_id(0) * rows, rows)
    inside = pl.program_id(0) * rows + jnp.arange(rows) < out_ref.shape[0]
    on = plgpu.load(on_ref.at[span], mask=inside, other=0) > 0
    runs = on[:, None] | (jnp.arange(width) // (width // 4) % 2 == 0)[None]  # the deployed block always does

    def of_map(owner: Array | int, begin: Array) -> Array:
        """The columns from `begin` on, which are that map's."""
        inner_span, here = pl.ds(ends[-1] + owner * width, width), pl.ds(begin, columns)
        inner = plgpu.load(product_ref.at[span, inner_span], mask=inside[:, None], other=0.0)
        base = plgpu.load(product_ref.at[span, here], mask=inside[:, None], other=0.0)
        kept = jnp.where(runs, inner, 0.0).astype(up_ref.dtype)
        return base + plgpu.dot(kept, up_ref[here, :], trans_b=True)

    if gated:
        out = jax.nn.silu(of_map(0, first)) * of_map(1, ends[0] + first)
    else:
        owner = sum(((first >= end).astype(jnp.int32) for end in ends[:-1]), start=jnp.int32(0))
        out = of_map(owner, first)
    plgpu.store(out_ref.at[span, pl.ds(first, columns)], out.astype(out_ref.dtype), mask=inside[:, None])
