"""Attention of the decode loop: a new token of every row to its prompt's cache and to that of its own completion.

The queries of all rows that continue a prompt go through its cache together, each row's through its own cache, and
the two are merged (Juravsky et al. 2024, arXiv 2402.05099). On an NVIDIA GPU a kernel reads what a token may attend
to and nothing else; elsewhere all slots are read, and a mask leaves out what is not filled.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Bool, Float, Int

from vgrout_jax.model import attention, qwen3
from vgrout_jax.sampling.kernels import flash_decoding


@struct.dataclass
class Reach:
    """What a token attends to, the same in every layer.

    Attributes:
        slot: [] int32, where its own key and value are written.
        own: [N] int32, filled slots of each row's cache, or [1] for all rows.
        prompts: [Q] int32, the tokens that are read of each source.
        seat: [N] int32, source times R plus a place among the rows that continue it; Q R: none.
        seated: [Q, R] int32, the row on each seat, 0 where there is none.
        by_kernel: whether kernels read the caches (`flash_decoding`) and write them (`decode_heads`).
    """

    slot: jax.Array
    own: jax.Array
    prompts: jax.Array
    seat: jax.Array
    seated: jax.Array
    by_kernel: bool = struct.field(pytree_node=False)


def kernel_serves(config: qwen3.Qwen3Config, mesh: Mesh | AbstractMesh | None) -> bool:
    """Whether the kernels can be run: on one NVIDIA GPU, which `config.attention` tells, in a 16-bit type."""
    alone = mesh is None or mesh.size == 1  # what splits the programs over devices knows nothing of a kernel's inside
    return alone and config.attention in attention.CUDNN and flash_decoding.serves(config.head_dim)


def seat_rows(seat: Int[Array, " N"], sources: int, seats: int) -> Int[Array, "Q R"]:
    """The row on each seat, 0 where there is none."""
    seated = jnp.zeros(sources * seats, jnp.int32)
    seated = seated.at[seat].set(jnp.arange(seat.size, dtype=jnp.int32), mode="drop")
    return seated.reshape(sources, seats)


def reach(
    step: Int[Array, ""],
    ended: Bool[Array, " N"],
    prompt_lengths: Int[Array, " Q"],
    seat: Int[Array, " N"],
    seated: Int[Array, "Q R"],
    *,
    by_kernel: bool,
) -> Reach:
    """What the token read at a step attends to; by the kernel, as little as can be where a row has ended."""
    own, prompts = (step + 1)[None], prompt_lengths
    if by_kernel:
        live = jnp.zeros(seated.size, bool).at[seat].set(~ended, mode="drop").reshape(seated.shape)
        own = jnp.where(ended, 1, own)  # not 0: attention to nothing is not a number
        prompts = jnp.where(live.any(axis=1), prompts, 0)
    return Reach(step, own, prompts, seat, seated, by_kernel)


def write(
    place: Callable[..., Array],
    reach: Reach,
    cache: tuple[Float[Array, "N K S E"], Float[Array, "N K S E"]],
    *new: Float[Array, "N 1 K E"],
) -> tuple[Array, ...]:
    """The cache with a new token's key and value in; `place` puts an array on the mesh by the names of its axes."""

    def written(old: Array, leaf: Array) -> Array:
        full = jax.lax.dynamic_update_slice_in_dim(old, jnp.swapaxes(leaf, 1, 2), reach.slot, 2)
        return place(full, "batch", "kv_heads")

    return tuple(written(*pair) for pair in zip(cache, new, strict=True))


def attend(
    place: Callable[..., Array],
    reach: Reach,
    prompt: tuple[Array, Array],
    cache: tuple[Array, Array],
    queries: Float[Array, "N 1 H E"],
) -> Float[Array, "N 1 H E"]:
    """Attention of a new token of every row to its prompt and its completion.

    Args:
        place: as of `write`.
        reach: of the token.
        prompt: the layer's keys and values of the sources, [Q, K, B, E].
        cache: those of the rows, [N, K, S, E], the token's own among them.
        queries: of the token.
    """
    grouped = queries.reshape(queries.shape[0], cache[0].shape[1], -1, queries.shape[-1])  # [N, K, G, E]
    own = _attend_first(reach, grouped, *cache, reach.own)
    mixed = attention.merge(own, _attend_prompts(place, reach, *prompt, grouped))
    return mixed.reshape(queries.shape).astype(queries.dtype)


def _attend_prompts(
    place: Callable[..., Array],
    reach: Reach,
    keys: Float[Array, "Q K B E"],
    values: Float[Array, "Q K B E"],
    queries: Float[Array, "N K G E"],
) -> attention.Part:
    """Attention of every row to its prompt: the queries of a source's rows go through its cache together."""
    together = jnp.swapaxes(queries[reach.seated], 1, 2)  # [Q, K, R, G, E]
    together = place(together, "batch", "kv_heads")
    sources, heads, seats, size = together.shape[:4]
    together = together.reshape(sources, heads, seats * size, -1)
    part = _attend_first(reach, together, keys, values, reach.prompts)

    def of_rows(leaf: Array) -> Array:
        """[Q, K, R G, ...] -> [N, K, G, ...]; what a row without a seat gets is read by nobody."""
        split = jnp.swapaxes(leaf.reshape(sources, heads, seats, size, *leaf.shape[3:]), 1, 2)
        return split.reshape(-1, *split.shape[2:]).at[reach.seat].get(mode="clip")

    return jax.tree.map(of_rows, part)


def _attend_first(
    reach: Reach,
    queries: Float[Array, "N K G E"],
    keys: Float[Array, "N K S E"],
    values: Float[Array, "N K S E"],
    lengths: Int[Array, "#N"],
) -> attention.Part:
    """Attention to the first `lengths` keys."""
    if reach.by_kernel:
        return flash_decoding.attend_filled(queries, keys, values, lengths)
    return attention.attend_part(queries, keys, values, jnp.arange(keys.shape[2]) < lengths[:, None])
