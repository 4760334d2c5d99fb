"""Sequences end to end: where tokens stand, and attention against every sequence by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgrout_jax.model import attention, packed_attention

POSITIONS, SLOTS, LONGEST, BEFORE = 23, 5, 9, 6
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8
LENGTHS, READ = [9, 1, 4, 7, 0], [6, 3, 0, 5, 2]  # the last sequence does not exist; the third has nothing before it


def packed() -> packed_attention.Packing:
    return packed_attention.lay(jnp.array(LENGTHS), jnp.array(READ), positions=POSITIONS, longest=LONGEST)


def drawn(seed: int = 0) -> list[jax.Array]:
    """Queries, keys, values, and keys and values before, float32; what nobody may read is not a number."""
    generator = np.random.default_rng(seed)
    shapes = [(POSITIONS, HEADS, HEAD_DIM)] + [(POSITIONS, KV_HEADS, HEAD_DIM)] * 2
    shapes += [(SLOTS, BEFORE, KV_HEADS, HEAD_DIM)] * 2
    return [jnp.asarray(generator.standard_normal(shape), jnp.float32) for shape in shapes]


def one_by_one(queries, keys, values, keys_before, values_before) -> jax.Array:
    """The oracle: softmax over exactly what each token may read, without a mask."""
    out, start = [], 0
    for sequence, length in enumerate(LENGTHS):
        for end in range(start + 1, start + length + 1):
            k = jnp.concatenate([keys_before[sequence, : READ[sequence]], keys[start:end]])
            v = jnp.concatenate([values_before[sequence, : READ[sequence]], values[start:end]])
            k, v = (jnp.repeat(leaf, HEADS // KV_HEADS, axis=1) for leaf in (k, v))
            weights = jax.nn.softmax(jnp.einsum("HE,SHE->HS", queries[end - 1], k) * HEAD_DIM**-0.5)
            out.append(jnp.einsum("HS,SHE->HE", weights, v))
        start += length
    return jnp.stack(out + [jnp.zeros((HEADS, HEAD_DIM))] * (POSITIONS - start))


def test_tokens_stand_end_to_end():
    found = packed()
    assert found.sequence.tolist() == [0] * 9 + [1] + [2] * 4 + [3] * 7 + [SLOTS] * 2
    assert found.place.tolist()[:21] == [*range(9), 0, *range(4), *range(7)]
    assert found.starts.tolist() == [0, 9, 10, 14, 21] and found.held.tolist() == [True] * 21 + [False] * 2


def test_packing_and_unpacking_return_every_token_and_zeros():
    rows = jnp.asarray(np.random.default_rng(0).standard_normal((SLOTS, LONGEST, 2)), jnp.float32)
    flat = packed_attention.pack(rows, packed())
    assert not np.asarray(flat[21:]).any()
    exists = np.arange(LONGEST) < np.array(LENGTHS)[:, None]
    np.testing.assert_array_equal(packed_attention.unpack(flat, packed()), np.where(exists[..., None], rows, 0))
    np.testing.assert_array_equal(packed_attention.pack(rows[..., 0] > 0, packed()), flat[:, 0] > 0)


def test_values_of_sequences_reach_their_tokens_and_gradients_are_summed():
    values = jnp.asarray(np.random.default_rng(0).standard_normal((3, SLOTS, 2)), jnp.float32)
    found, pull = jax.vjp(lambda values: packed_attention.to_tokens(values, packed()), values)
    np.testing.assert_array_equal(found[:, :21], values[:, np.asarray(packed().sequence[:21])])
    [sums] = pull(jnp.ones_like(found))
    np.testing.assert_array_equal(sums, np.broadcast_to(np.array(LENGTHS, np.float32)[:, None], sums.shape))


def dense(queries, keys, segments, *, causal):
    """Logits [S, H, C, keys] of each sequence's tokens, -inf where cuDNN's kernel would not look; what it reads."""
    of_queries, of_keys, starts, key_starts = (np.asarray(leaf[0]) for leaf in segments)
    keys = jnp.repeat(keys, HEADS // KV_HEADS, axis=1)
    logits = []
    for sequence in range(SLOTS):
        index = np.arange(POSITIONS)
        mask = np.zeros((POSITIONS, keys.shape[0]), bool)
        if of_queries[sequence] > 0:
            assert index[0] <= starts[sequence] < POSITIONS and key_starts[sequence] >= 0
            row, column = index - starts[sequence], np.arange(keys.shape[0]) - key_starts[sequence]
            mask = ((row >= 0) & (row < of_queries[sequence]))[:, None]
            mask = mask & ((column >= 0) & (column < of_keys[sequence]))
            mask = mask & (column <= row[:, None]) if causal else mask
        found = jnp.einsum("CHE,SHE->HCS", queries, keys) * HEAD_DIM**-0.5
        logits.append(jnp.where(mask, found, -jnp.inf))
    return jnp.stack(logits)


def by_place(leaf, segments, *, back=False):
    """[S, H, C] between a token's position and its place in the sequence; not a number where none is."""
    lengths, starts = np.asarray(segments[0][0]), np.asarray(segments[2][0])
    found = np.full(leaf.shape, np.nan, np.float32)
    for sequence, length in enumerate(lengths):
        here, there = slice(0, max(length, 0)), slice(starts[sequence], starts[sequence] + max(length, 0))
        here, there = (here, there) if back else (there, here)
        found[sequence][:, there] = np.asarray(leaf)[sequence][:, here]
    return jnp.asarray(found)


def kernel_forward(queries, keys, values, segments, *, causal):
    """What cuDNN's forward kernel is asked for; what it would not write is not a number."""
    logits = dense(queries, keys, segments, causal=causal)
    sums = jax.nn.logsumexp(logits, axis=-1)
    values = jnp.repeat(values, HEADS // KV_HEADS, axis=1)
    mixed = jnp.einsum("sHCS,SHE->CHE", jnp.nan_to_num(jnp.exp(logits - sums[..., None])), values)
    written = jnp.isfinite(sums).any(axis=(0, 1))
    return jnp.where(written[:, None, None], mixed, jnp.nan), by_place(sums, segments)


def kernel_backward(queries, keys, values, sums, out, gradient, segments, *, causal):
    """What its backward kernel is asked for, from the sums and the output that it is given."""
    logits = dense(queries, keys, segments, causal=causal)
    sums = by_place(sums, segments, back=True)
    weights = jnp.where(jnp.isfinite(logits), jnp.exp(logits - sums[..., None]), 0.0)  # [S, H, C, keys]
    k, v = (jnp.repeat(leaf, HEADS // KV_HEADS, axis=1) for leaf in (keys, values))
    of_weights = jnp.einsum("CHE,SHE->HCS", gradient, v)
    of_logits = weights * (of_weights - jnp.einsum("CHE,CHE->HC", gradient, out)[..., None]) * HEAD_DIM**-0.5
    per_head = (-1, KV_HEADS, HEADS // KV_HEADS, HEAD_DIM)
    of_keys = jnp.einsum("sHCS,CHE->SHE", of_logits, queries).reshape(per_head).sum(2)
    of_values = jnp.einsum("sHCS,CHE->SHE", weights, gradient).reshape(per_head).sum(2)
    read = (weights > 0).any(axis=(0, 1, 2))[:, None, None]
    asked = (weights > 0).any(axis=(0, 1, 3))[:, None, None]
    of_queries = jnp.einsum("sHCS,SHE->CHE", of_logits, k)
    return jnp.where(asked, of_queries, jnp.nan), *(jnp.where(read, leaf, jnp.nan) for leaf in (of_keys, of_values))


@pytest.mark.parametrize("cudnn", [False, True])
def test_attention_of_every_token_is_that_of_its_sequence_alone(cudnn, monkeypatch):
    """In value and gradient; cuDNN's kernels are stood in for by dense ones that see what they would see."""
    monkeypatch.setattr(packed_attention, "_forward", kernel_forward)
    monkeypatch.setattr(packed_attention, "_backward", kernel_backward)

    def ours(queries, keys, values, *before):
        with jax.disable_jit():  # the stand-ins want to see numbers
            return packed_attention.attend(queries, keys, values, before, packed(), cudnn=cudnn)

    found, pull = jax.vjp(ours, *drawn())
    expected, their_pull = jax.vjp(one_by_one, *drawn())
    np.testing.assert_allclose(found, expected, atol=2e-6)
    gradient = jnp.asarray(np.random.default_rng(1).standard_normal(found.shape), jnp.float32)
    gradient = gradient.at[21:].set(0)  # nothing comes back to positions without a token
    for ours_of, theirs_of in zip(pull(gradient), their_pull(gradient), strict=True):
        assert np.isfinite(ours_of).all()
        np.testing.assert_allclose(ours_of, theirs_of, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_the_kernels_take_what_they_are_given(causal):
    """JAX's primitives behind no public name: their parameters, shapes and types, without a GPU."""
    queries, keys, values, *before = (leaf.astype(jnp.bfloat16) for leaf in drawn())
    keys, values = (keys, values) if causal else (packed_attention._flat(leaf) for leaf in before)
    segments = packed_attention._segments(packed(), None if causal else BEFORE)

    def both(queries, keys, values):
        out, sums = packed_attention._forward(queries, keys, values, segments, causal=causal)
        return out, sums, packed_attention._backward(queries, keys, values, sums, out, out, segments, causal=causal)

    out, sums, gradients = jax.eval_shape(both, queries, keys, values)
    assert out.shape == queries.shape and out.dtype == jnp.bfloat16
    assert sums.shape == (SLOTS, HEADS, POSITIONS) and sums.dtype == jnp.float32
    assert [leaf.shape for leaf in gradients] == [queries.shape, keys.shape, values.shape]


def test_padding_for_attention_alone_is_the_attention_of_rows():
    """One sequence that fills all positions, without anything before it."""
    queries, keys, values, *_ = drawn()
    whole = packed_attention.lay(jnp.array([POSITIONS]), jnp.array([0]), positions=POSITIONS, longest=POSITIONS)
    before = (jnp.full((1, BEFORE, KV_HEADS, HEAD_DIM), 3.0),) * 2
    found = packed_attention.attend(queries, keys, values, before, whole, cudnn=False)
    expected = attention.attend_causally(queries[None], keys[None], values[None])[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
