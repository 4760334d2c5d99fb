"""Sequences laid end to end in one row of positions, each behind tokens of its own that were read before.

Products of a model run over positions, and those of attention over what a position may read: what stands before its
sequence, given as keys and values, and the sequence itself up to the position. On NVIDIA GPUs cuDNN's kernel computes
the two parts apart, over sequences of any length, and they are merged by their softmax sums, in value and in gradient
(Dao et al. 2022, arXiv 2205.14135). Elsewhere the sequences are padded for attention alone.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from vgrout_jax.model import attention

Cache = tuple[Float[Array, "S B K E"], Float[Array, "S B K E"]]  # keys and values of what stands before


@struct.dataclass
class Packing:
    """Where the tokens of S sequences stand among C positions.

    Attributes:
        lengths: [S] int32, tokens of every sequence; 0: there is none.
        before: [S] int32, how many tokens stand before it.
        sequence: [C] int32, whose token a position holds; S: nobody's.
        place: [C] int32, which of the sequence's tokens it is.
        longest: the most tokens that a sequence may have.
    """

    lengths: jax.Array
    before: jax.Array
    sequence: jax.Array
    place: jax.Array
    longest: int = struct.field(pytree_node=False)

    @property
    def starts(self) -> Int[Array, " S"]:
        """The position of every sequence's first token."""
        return jnp.cumsum(self.lengths) - self.lengths

    @property
    def held(self) -> Bool[Array, " C"]:
        """Positions that hold a token."""
        return self.sequence < self.lengths.size


def lay(lengths: Int[Array, " S"], before: Int[Array, " S"], *, positions: int, longest: int) -> Packing:
    """Lays sequences end to end; together they may have as many tokens as there are positions."""
    lengths, before = lengths.astype(jnp.int32), before.astype(jnp.int32)
    ends, index = jnp.cumsum(lengths), jnp.arange(positions, dtype=jnp.int32)
    sequence = jnp.searchsorted(ends, index, side="right", method="compare_all").astype(jnp.int32)
    starts = jnp.append(ends - lengths, ends[-1])
    return Packing(lengths, before, sequence, index - starts[sequence], longest)


def pack(rows: Array, packing: Packing) -> Array:
    """[S, longest, ...] -> [C, ...], zeros where no token stands."""
    return rows.at[packing.sequence, packing.place].get(mode="fill", fill_value=0)


def unpack(flat: Array, packing: Packing) -> Array:
    """[C, ...] -> [S, longest, ...], zeros behind a sequence's end."""
    place = jnp.arange(packing.longest)
    taken = flat.at[packing.starts[:, None] + place].get(mode="clip")
    return jnp.where(_over(place < packing.lengths[:, None], taken), taken, 0)


def to_tokens(values: Float[Array, "*L S R"], packing: Packing) -> Float[Array, "*L C R"]:
    """Every position's copy of its sequence's values, exactly; gradients are summed over its tokens in float32."""
    chosen = jax.nn.one_hot(packing.sequence, packing.lengths.size, dtype=values.dtype)
    return jnp.einsum("CS,...SR->...CR", chosen, values, precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.jit, static_argnames="cudnn")
def attend(
    queries: Float[Array, "C H E"],
    keys: Float[Array, "C K E"],
    values: Float[Array, "C K E"],
    earlier: Cache,
    packing: Packing,
    *,
    cudnn: bool,
) -> Float[Array, "C H E"]:
    """Attention of every token to what stands before its sequence and to the sequence up to itself.

    Zeros where no token stands. `cudnn` needs a 16-bit type and one NVIDIA GPU of compute capability 9.0 or more.
    """
    if cudnn:
        return _attend_in_two(queries, keys, values, *earlier, packing)
    rows = [unpack(leaf, packing) for leaf in (queries, keys, values)]
    both = (jnp.concatenate(pair, axis=1) for pair in zip(earlier, rows[1:], strict=True))
    readable = jnp.arange(earlier[0].shape[1]) < packing.before[:, None]
    valid = jnp.concatenate([readable, jnp.ones(rows[0].shape[:2], bool)], axis=1)
    return pack(attention.attend_causally(rows[0], *both, valid), packing)


def _over(mask: Array, leaf: Array) -> Array:
    """The mask with axes of one element behind its own, as many as the leaf has."""
    return mask.reshape(*mask.shape, *(1,) * (leaf.ndim - mask.ndim))


@jax.custom_vjp
def _attend_in_two(
    queries: Array, keys: Array, values: Array, keys_before: Array, values_before: Array, packing: Packing
) -> Array:
    """`attend` by two calls of cuDNN's kernel."""
    return _two_forward(queries, keys, values, keys_before, values_before, packing)[0]


def _two_forward(*inputs: Array | Packing) -> tuple[Array, tuple]:
    """The output, and what the way back needs: the inputs, the output and log sum exp over both parts."""
    queries, keys, values, *before, packing = inputs
    own, sums = _forward(queries, keys, values, _segments(packing), causal=True)
    other, their_sums = _forward(queries, *map(_flat, before), _segments(packing, before[0].shape[1]), causal=False)
    reads_before = _over(packing.before > 0, their_sums)
    their_sums = jnp.where(reads_before, their_sums, -jnp.inf)
    both = checkpoint_name(jnp.logaddexp(sums, their_sums), "product")  # [S, H, C], by sequence and place

    def share(part: Array) -> Array:
        """A part's share of a position's softmax, [C, H, 1]."""
        weights = jnp.exp(part - both).at[packing.sequence, :, packing.place].get(mode="fill", fill_value=0)
        return weights[..., None]

    def weighted(part: Array, weights: Array) -> Array:
        # What nobody wrote is any number. Zeros in its place would be an array of their own, read in every layer.
        return jnp.where(weights > 0, part.astype(jnp.float32), weights) * weights

    out = weighted(own, share(sums)) + weighted(other, share(their_sums))
    out = checkpoint_name(out.astype(queries.dtype), "product")
    return out, (*inputs, out, both)


def _two_backward(kept: tuple, gradient: Array) -> tuple:
    """Each part's gradients from the sums and the output of both, which is all that they share."""
    queries, keys, values, *before, packing, out, both = kept
    size = before[0].shape[1]
    way = (both, out, gradient)
    of_queries, of_keys, of_values = _backward(queries, keys, values, *way, _segments(packing), causal=True)
    more, *of_before = _backward(queries, *map(_flat, before), *way, _segments(packing, size), causal=False)
    held, behind = packing.held, packing.held & (packing.before > 0)[packing.sequence]
    read = jnp.arange(size) < jnp.where(packing.lengths > 0, packing.before, 0)[:, None]

    def kept_where(mask: Array, leaf: Array) -> Array:
        return jnp.where(_over(mask, leaf), leaf, 0)

    summed = kept_where(held, of_queries.astype(jnp.float32)) + kept_where(behind, more.astype(jnp.float32))
    own = (kept_where(held, leaf) for leaf in (of_keys, of_values))
    theirs = (kept_where(read, leaf.reshape(before[0].shape)) for leaf in of_before)
    return summed.astype(queries.dtype), *own, *theirs, None


_attend_in_two.defvjp(_two_forward, _two_backward)


def _flat(leaf: Float[Array, "S B K E"]) -> Float[Array, "SB K E"]:
    return leaf.reshape(-1, *leaf.shape[2:])


def _segments(packing: Packing, size: int | None = None) -> tuple[Array, Array, Array, Array]:
    """Lengths of queries and of keys [1, S], and their offsets [1, S + 1]; -1 where there is no sequence.

    With `size` the keys are those of what stands before, `size` slots for every sequence; else the sequences' own.
    cuDNN wants sequences that exist first and together, so those without tokens must come last.
    """
    exists = packing.lengths > 0
    count, index = jnp.sum(exists), jnp.arange(exists.size + 1, dtype=jnp.int32)
    starts = jnp.append(packing.starts, jnp.sum(packing.lengths))
    lengths = jnp.where(exists, packing.lengths, -1)
    offsets = jnp.where(index <= count, starts, -1)
    if size is None:
        found = (lengths, lengths, offsets, offsets)
    else:
        found = (lengths, jnp.where(exists, packing.before, -1), offsets, jnp.where(index <= count, index * size, -1))
    return tuple(leaf[None].astype(jnp.int32) for leaf in found)


def _kernel(causal: bool, head_dim: int) -> tuple:
    """cuDNN's forward and backward primitives, which JAX has no public name for, and their parameters."""
    from jax._src.cudnn import fused_attention_stablehlo as fused  # noqa: PLC0415

    mask = fused.MaskType.PADDING_CAUSAL if causal else fused.MaskType.PADDING
    parameters = {
        "scale": head_dim**-0.5,
        "seed": 0,
        "dropout_rate": 0.0,
        "variadic_args": (False, False),  # neither a bias nor its gradient
        "mask_type": mask,
        "layout": fused.AttentionLayout.BTNH.value,
        "sliding_window_length": None,
    }
    forward, backward = fused._dot_product_attention_fwd_p_wrapper, fused._dot_product_attention_bwd_p_wrapper
    return functools.partial(forward.bind, **parameters, is_training=True), functools.partial(
        backward.bind, **parameters
    )


def _forward(queries: Array, keys: Array, values: Array, segments: tuple, *, causal: bool) -> tuple[Array, Array]:
    """One part's output [C, H, E], normalised by itself, and log sum exp of its logits, [S, H, C] float32."""
    forward, _ = _kernel(causal, queries.shape[-1])
    nothing = jnp.zeros(0, queries.dtype)
    out, sums = forward(queries[None], keys[None], values[None], nothing, *segments, nothing, nothing)
    return out[0], sums


def _backward(queries: Array, keys: Array, values: Array, *way: Array | tuple, causal: bool) -> tuple[Array, ...]:
    """Gradients of queries, keys and values of one part; `way`: sums, output, its gradient, and the segments."""
    sums, out, gradient, segments = way
    _, backward = _kernel(causal, queries.shape[-1])
    nothing = jnp.zeros(0, queries.dtype)
    inputs = (queries[None], keys[None], values[None], nothing, *segments, nothing, nothing)
    return tuple(leaf[0] for leaf in backward(*inputs, sums, out[None], gradient[None]))
