"""How the rollouts of a batch are cut: groups into blocks that share what is read of their prompts, rows into chunks.

A block holds K groups. Their prompts are read once; then the block's rollouts follow in chunks of K R rows, R of each
group, the short completions before the long, each chunk at the smallest of a few lengths that holds it. Groups that
nobody needs come last, and what nobody needs is not run. Where prompts are too short to be worth sharing, a block is
one chunk of rollouts of any groups, each of which reads its own prompt.
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

from vgrout_jax import sharding
from vgrout_jax.config import Config
from vgrout_jax.model import padding
from vgrout_jax.rl.state import Batch

_LEAST_SHARED = 192  # tokens that the prompts of R rows have by themselves, to be worth sharing
_MOST_TOGETHER = 4  # R, where completions are padded to one of several lengths

# (function(*operands, length=...), *operands) -> what the function returns at the chunk's own length
AtLength = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Cut:
    """Sizes of blocks and chunks.

    Attributes:
        groups: K, groups of a block.
        rows: R, rows that each of them has in a chunk; 1: prompts are not shared, and a chunk is the whole block.
        chunks: of a block.
    """

    groups: int
    rows: int
    chunks: int

    @property
    def shares(self) -> bool:
        """Whether prompts are read once a block."""
        return self.rows > 1


@dataclasses.dataclass(frozen=True)
class Block:
    """What a pass sees of one block, inside of a trace.

    Attributes:
        prompts, prompts_valid: [K, B], of its groups, left-padded.
        rows: pytree of [chunks, K R, ...].
        places: [chunks, K R] int32, each row's place among `lengths`; their number where nobody needs it.
        lengths: what completions are padded to.
        skipped: outputs of a chunk that nobody needs.
    """

    prompts: jax.Array
    prompts_valid: jax.Array
    rows: Any
    places: jax.Array
    lengths: tuple[int, ...]
    skipped: Any

    def scan(self, body: Callable[[Any, Any, AtLength], tuple[Any, Any]], carry: Any) -> tuple[Any, Any]:
        """Scans `body(carry, rows, at_length) -> (carry, outputs)` over the chunks that somebody needs."""

        def visit(carry: Any, inputs: tuple[Any, Array]) -> tuple[Any, Any]:
            rows, places = inputs
            # Rows that nobody needs fill up a chunk: what it holds is needed up to the longest other.
            place = jnp.max(jnp.where(places < len(self.lengths), places, -1))

            def at_length(function: Callable, *operands: Any) -> Any:
                programs = [functools.partial(function, length=length) for length in self.lengths]
                return jax.lax.switch(place, programs, *operands)

            return jax.lax.cond(
                place >= 0, lambda carry: body(carry, rows, at_length), lambda carry: (carry, self.skipped), carry
            )

        return jax.lax.scan(visit, carry, (self.rows, self.places))


class Cutter:
    """Cuts batches as the configuration and the mesh ask for."""

    def __init__(self, config: Config, mesh: Mesh):
        self.config, self.mesh = config, mesh
        self.lengths = tuple(padding.completion_lengths(config.rollout.max_new_tokens))

    def cut(self, bucket: int) -> Cut:
        """The sizes for prompts that are padded to `bucket` tokens.

        A chunk is padded to its longest completion, so where lengths differ few rows of a group stand together.
        """
        micro_batch, rollout = self.config.train.micro_batch, self.config.rollout
        devices = sharding.batch_devices(self.mesh)
        rows = math.gcd(max(1, micro_batch // devices), micro_batch, rollout.group_size)
        rows = math.gcd(rows, _MOST_TOGETHER) if len(self.lengths) > 1 else rows
        groups = math.gcd(rollout.prompts, micro_batch // rows)
        shares = self.config.train.share_prompts and rows > 1 and groups % devices == 0
        if not shares or rows * bucket < _LEAST_SHARED:
            return Cut(groups=micro_batch, rows=1, chunks=1)
        return Cut(groups, rows, rollout.group_size // rows)

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
        """Scans `visit(carry, block) -> (carry, outputs [chunks, K R, ...])` over the blocks that somebody needs.

        Args:
            visit: a pass over a block; its outputs are those of `Block.scan`.
            carry: what it hands on.
            rows: pytree of [N, ...], what it needs of each row.
            batch: all rows.
            needed: rows that have to be run.
            skipped: (rows of a chunk) -> the outputs of one that nobody needs.

        Returns:
            The last carry, and the outputs in the rows' own order, [N, ...].
        """
        bucket = batch.tokens.shape[1] - batch.completion_mask.shape[1]
        cut = self.cut(bucket)
        places = jnp.searchsorted(jnp.array(self.lengths), jnp.sum(batch.completion_mask, axis=1))
        places = jnp.where(needed, places, len(self.lengths))
        order = self.order(places, cut)  # [blocks, chunks, K R]
        first = order[:, 0, :: cut.rows]  # a row of each group
        nothing = skipped(order.shape[2])

        def arranged(leaf: Array, order: Int[Array, "..."], axis: int) -> Array:
            chosen = leaf[order]
            axes = (None,) * axis + ("batch",) + (None,) * (chosen.ndim - axis - 1)
            return jax.lax.with_sharding_constraint(chosen, sharding.sharding_of(self.mesh, axes, chosen.shape))

        def step(carry: Any, inputs: tuple[Any, ...]) -> tuple[Any, Any]:
            block = Block(*inputs, self.lengths, nothing)
            unseen = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (cut.chunks, *leaf.shape)), nothing)
            someone = jnp.any(block.places < len(self.lengths))
            return jax.lax.cond(someone, lambda carry: visit(carry, block), lambda carry: (carry, unseen), carry)

        prompts = (arranged(leaf[:, :bucket], first, 1) for leaf in (batch.tokens, batch.valid))
        chunks = jax.tree.map(lambda leaf: arranged(leaf, order, 2), (rows, places))
        carry, outputs = jax.lax.scan(step, carry, (*prompts, *chunks))
        inverse = jnp.argsort(order.reshape(-1))
        return carry, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[3:])[inverse], outputs)

    def order(self, places: Int[Array, "N"], cut: Cut) -> Int[Array, "blocks chunks rows"]:
        """Which row stands where: the short first and who is not needed last, in a group and among groups."""
        if not cut.shares:
            return jnp.argsort(places, stable=True).reshape(-1, 1, cut.groups)
        by_group = places.reshape(-1, self.config.rollout.group_size)
        first = jnp.arange(by_group.shape[0])[:, None] * by_group.shape[1]
        inside = first + jnp.argsort(by_group, axis=1, stable=True)
        longest = jnp.max(jnp.where(by_group < len(self.lengths), by_group, -1), axis=1)
        groups = jnp.argsort(jnp.where(longest < 0, len(self.lengths), longest), stable=True)
        blocks = inside[groups].reshape(-1, cut.groups, cut.chunks, cut.rows)
        return jnp.swapaxes(blocks, 1, 2).reshape(-1, cut.chunks, cut.groups * cut.rows)
