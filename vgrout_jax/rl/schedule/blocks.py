"""How the rollouts of a batch are cut: groups into blocks that share what is read of their prompts, rows into chunks.

A block holds K groups. Their prompts are read once; then the block's rollouts follow in chunks. On one NVIDIA GPU a
chunk holds whichever rollouts of the block fill its positions best, laid end to end (`model/packed_attention`).
Elsewhere it holds R rows of each group, the short completions before the long, at the smallest of a few lengths that
holds them.
Groups that nobody needs come last, and what nobody needs is not run. Where prompts are too short to be worth sharing,
a block is one chunk of rollouts of any groups, each of which reads its own prompt.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from vgrout_jax.config import Config
from vgrout_jax.model import padding, sharding
from vgrout_jax.model.attention import PACKED
from vgrout_jax.rl.state import Batch

_LEAST_SHARED = 192  # tokens that the prompts of R rows have by themselves, to be worth sharing
_MOST_TOGETHER = 4  # R, where completions are packed or padded to one of several lengths

# (function(*operands, length=...), *operands) -> what the function returns at the chunk's own length
AtLength = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Cut:
    """Sizes of blocks and chunks.

    Attributes:
        groups: K, prompts of a block.
        size: rollouts of a prompt in a block: G, or 1 where prompts are not shared.
        rows: rollouts of a chunk.
        chunks: of a block; packed, the most that may be needed.
        together: R, rollouts of every prompt that go back through it at a time; divides `size`.
        positions: of a packed chunk, or None: rows are padded.
    """

    groups: int
    size: int
    rows: int
    chunks: int
    together: int = 1
    positions: int | None = None

    @property
    def shares(self) -> bool:
        """Whether prompts are read once a block."""
        return self.size > 1


@dataclasses.dataclass(frozen=True)
class Chunk:
    """What a pass sees of one chunk, inside of a trace.

    Attributes:
        rows: pytree of [n, ...]; zeros where there is no rollout.
        numbers: [n] int32, which of the block's K G rollouts, by group, each is; K G: none.
        groups: [n] int32, whose prompt it has, of the block's.
        at_length: runs a function at the length that the chunk's completions are padded to.
    """

    rows: Any
    numbers: jax.Array
    groups: jax.Array
    at_length: AtLength


@dataclasses.dataclass(frozen=True)
class Block:
    """What a pass sees of one block, inside of a trace.

    Attributes:
        prompts, prompts_valid: [K, B], of its groups, left-padded.
        needed: [K G] bool, by number; in every group, those that are needed come first.
        rows: pytree of [chunks, n, ...].
        numbers: [chunks, n] int32, of `Chunk`.
        places: [chunks, n] int32, each row's place among `lengths`; their number where nobody needs it.
        lengths: what completions are padded to.
        skipped: outputs of a chunk that nobody needs.
        cut: sizes.
    """

    prompts: jax.Array
    prompts_valid: jax.Array
    needed: jax.Array
    rows: Any
    numbers: jax.Array
    places: jax.Array
    lengths: tuple[int, ...]
    skipped: Any
    cut: Cut

    def scan(self, body: Callable[[Any, Chunk], tuple[Any, Any]], carry: Any) -> tuple[Any, Any]:
        """Scans `body(carry, chunk) -> (carry, outputs)` over the chunks that somebody needs."""

        def visit(carry: Any, inputs: tuple[Any, Array, Array]) -> tuple[Any, Any]:
            rows, numbers, places = inputs
            # Rows that nobody needs fill up a chunk: what it holds is needed up to the longest other.
            place = jnp.max(jnp.where(places < len(self.lengths), places, -1))

            def at_length(function: Callable, *operands: Any) -> Any:
                programs = [functools.partial(function, length=length) for length in self.lengths]
                return jax.lax.switch(place, programs, *operands)

            groups = jnp.minimum(numbers // self.cut.size, self.cut.groups - 1)
            chunk = Chunk(rows, numbers, groups, at_length)
            return jax.lax.cond(
                place >= 0, lambda carry: body(carry, chunk), lambda carry: (carry, self.skipped), carry
            )

        return jax.lax.scan(visit, carry, (self.rows, self.numbers, self.places))


@dataclasses.dataclass(frozen=True)
class Order:
    """Which rollout stands where.

    Attributes:
        rows: [blocks, K G], those of a block by number.
        numbers: [blocks, chunks, n], of `Chunk`.
    """

    rows: jax.Array
    numbers: jax.Array

    @property
    def chunks(self) -> Int[Array, "blocks chunks n"]:
        """Rollouts by chunk; N where there is none."""
        nobody = jnp.full((self.rows.shape[0], 1), self.rows.size, self.rows.dtype)
        rows = jnp.concatenate([self.rows, nobody], axis=1)
        return jnp.take_along_axis(rows, self.numbers.reshape(len(rows), -1), axis=1).reshape(self.numbers.shape)


class Cutter:
    """Cuts batches as the configuration, the mesh and the kind of attention ask for."""

    def __init__(self, config: Config, mesh: Mesh, attention: str = "batch"):
        self.config, self.mesh = config, mesh
        lengths = padding.completion_lengths(config.rollout.max_new_tokens)
        self.packs = attention in PACKED and mesh.size == 1
        self.lengths = tuple(lengths)
        # As many as a micro-batch of the shortest padded completions would have, with room for T.
        self.positions = max(lengths[-1], config.train.micro_batch * lengths[0]) if self.packs else None

    def cut(self, bucket: int) -> Cut:
        """The sizes for prompts that are padded to `bucket` tokens.

        A chunk is padded to its longest completion, so where lengths differ few rows of a group stand together.
        """
        micro_batch, rollout = self.config.train.micro_batch, self.config.rollout
        devices = sharding.batch_devices(self.mesh)
        rows = math.gcd(max(1, micro_batch // devices), micro_batch, rollout.group_size)
        several = self.packs or len(self.lengths) > 1
        rows = math.gcd(rows, _MOST_TOGETHER) if several else rows
        groups = math.gcd(rollout.prompts, micro_batch // rows)
        shares = self.config.train.share_prompts and rows > 1 and groups % devices == 0
        if not shares or rows * bucket < _LEAST_SHARED:
            return Cut(groups=micro_batch, size=1, rows=micro_batch, chunks=1)
        if self.packs:
            inside = groups * rollout.group_size
            slots = min(2 * micro_batch, inside)
            # A chunk that has no room for another rollout holds at least so many.
            least = min(self.positions // rollout.max_new_tokens, slots)
            return Cut(groups, rollout.group_size, slots, -(-inside // least), rows, self.positions)
        return Cut(groups, rollout.group_size, groups * rows, rollout.group_size // rows, rows)

    def over_blocks(
        self,
        visit: Callable[[Any, Block], tuple[Any, Any]],
        carry: Any,
        rows: Any,
        *,
        batch: Batch,
        needed: Bool[Array, "N"],
        skipped: Callable[[int], Any],
    ) -> tuple[Any, Any]:
        """Scans `visit(carry, block) -> (carry, outputs [chunks, n, ...])` over the blocks that somebody needs.

        Args:
            visit: a pass over a block; its outputs are those of `Block.scan`.
            carry: what it hands on.
            rows: pytree of [N, ...], what it needs of each row.
            batch: all rows.
            needed: rows that have to be run.
            skipped: (rows of a chunk) -> the outputs of one that nobody needs.

        Returns:
            The last carry, and the outputs in the rows' own order, [N, ...]; zeros for rows that are in no chunk.
        """
        bucket = batch.tokens.shape[1] - batch.completion_mask.shape[1]
        cut = self.cut(bucket)
        lengths, padded = jnp.sum(batch.completion_mask, axis=1), self.lengths
        places = jnp.where(needed, jnp.searchsorted(jnp.array(padded), lengths), len(padded))
        order = self.order(places, lengths, cut)
        chunks, nothing = order.chunks, skipped(cut.rows)

        def arranged(leaf: Array, order: Int[Array, "..."], axis: int) -> Array:
            chosen = leaf.at[order].get(mode="fill", fill_value=0)
            axes = (None,) * axis + ("batch",) + (None,) * (chosen.ndim - axis - 1)
            return jax.lax.with_sharding_constraint(chosen, sharding.sharding_of(self.mesh, axes, chosen.shape))

        def step(carry: Any, inputs: tuple[Any, ...]) -> tuple[Any, Any]:
            block = Block(*inputs, padded, nothing, cut)
            unseen = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (cut.chunks, *leaf.shape)), nothing)
            someone = jnp.any(block.needed)
            return jax.lax.cond(someone, lambda carry: visit(carry, block), lambda carry: (carry, unseen), carry)

        prompts = (arranged(leaf[:, :bucket], order.rows[:, :: cut.size], 1) for leaf in (batch.tokens, batch.valid))
        inside = jax.tree.map(lambda leaf: arranged(leaf, chunks, 2), rows)
        places = places.at[chunks].get(mode="fill", fill_value=len(padded))
        if cut.positions is not None:  # one program, whatever the lengths
            places, padded = jnp.where(places < len(padded), 0, 1), padded[-1:]
        given = (*prompts, needed[order.rows], inside, order.numbers, places)
        carry, outputs = jax.lax.scan(step, carry, given)
        where = jnp.full(lengths.size, chunks.size).at[chunks.reshape(-1)].set(jnp.arange(chunks.size), mode="drop")

        def by_row(leaf: Array) -> Array:
            return leaf.reshape(-1, *leaf.shape[3:]).at[where].get(mode="fill", fill_value=0)

        return carry, jax.tree.map(by_row, outputs)

    def order(self, places: Int[Array, "N"], lengths: Int[Array, "N"], cut: Cut) -> Order:
        """Which rollout stands where: the short first and who is not needed last, in a group and among groups."""
        if not cut.shares:
            rows = jnp.argsort(places, stable=True).reshape(-1, cut.groups)
            return Order(rows, jnp.broadcast_to(jnp.arange(cut.groups), (rows.shape[0], 1, cut.groups)))
        by_group = places.reshape(-1, cut.size)
        first = jnp.arange(by_group.shape[0])[:, None] * cut.size
        inside = first + jnp.argsort(by_group, axis=1, stable=True)
        longest = jnp.max(jnp.where(by_group < len(self.lengths), by_group, -1), axis=1)
        groups = jnp.argsort(jnp.where(longest < 0, len(self.lengths), longest), stable=True)
        rows = inside[groups].reshape(-1, cut.groups * cut.size)
        if cut.positions is not None:
            wanted = jnp.where(places < len(self.lengths), lengths, 0)[rows]
            sizes = {"positions": cut.positions, "slots": cut.rows, "chunks": cut.chunks}
            return Order(rows, jax.vmap(functools.partial(fit, **sizes))(wanted))
        numbers = jnp.arange(rows.shape[1]).reshape(cut.groups, cut.chunks, -1)
        numbers = jnp.swapaxes(numbers, 0, 1).reshape(cut.chunks, cut.rows)
        return Order(rows, jnp.broadcast_to(numbers, (rows.shape[0], *numbers.shape)))


def fit(lengths: Int[Array, " n"], *, positions: int, slots: int, chunks: int) -> Int[Array, "chunks slots"]:
    """Which sequences stand in which chunk: the longest first, each in the first chunk that still has room for it.

    Args:
        lengths: tokens of every sequence; 0: it need not stand anywhere.
        positions: the most tokens of a chunk.
        slots: the most sequences of a chunk.
        chunks: enough for any lengths that can come.

    Returns:
        Indices of sequences, those of a chunk together and first; n where there is none.
    """
    order = jnp.argsort(-lengths, stable=True)

    def place(held: tuple[Array, Array], length: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        tokens, count = held
        chunk = jnp.argmax((tokens + length <= positions) & (count < slots))
        chunk = jnp.where(length > 0, chunk, chunks)  # out of bounds: nothing is written there
        slot = count.at[chunk].get(mode="fill", fill_value=0)
        held = (tokens.at[chunk].add(length, mode="drop"), count.at[chunk].add(1, mode="drop"))
        return held, (chunk, slot)

    nothing = (jnp.zeros(chunks, lengths.dtype), jnp.zeros(chunks, jnp.int32))
    _, (chunk, slot) = jax.lax.scan(place, nothing, lengths[order])
    return jnp.full((chunks, slots), lengths.size).at[chunk, slot].set(order, mode="drop")
