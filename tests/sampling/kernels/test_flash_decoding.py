"""Attention to the filled part of a cache, interpreted: against the plain product, NumPy, and in the decode loop."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model.sampling import PROMPTS, SHALLOW, call, interpret_kernels
from vgrout_jax.model.attention import ATTENTIONS, CUDNN, Part, attend_part, merge
from vgrout_jax.sampling import cache_attention, sampler
from vgrout_jax.sampling.kernels import flash_decoding

HEADS, SLOTS, WIDTH = 2, 150, 16  # no multiple of a block
LENGTHS = np.array([0, 1, 32, 77, 149, SLOTS], np.int32)
TILINGS = {
    "alone": flash_decoding.Tiling(queries=16, keys=32, programs=1),
    "shared": flash_decoding.Tiling(keys=16, programs=64, least_keys=32),
}


def inputs(size: int, dtype: jnp.dtype, beyond: float = 0.0) -> list[jax.Array]:
    """Queries, keys and values, these with something else beyond the lengths."""
    generator = np.random.default_rng(size)
    shapes = [(LENGTHS.size, HEADS, count, WIDTH) for count in (size, SLOTS, SLOTS)]
    queries, keys, values = (generator.normal(size=shape) for shape in shapes)
    empty = np.arange(SLOTS) >= LENGTHS[:, None]
    for cache in (keys, values):
        cache[np.broadcast_to(empty[:, None], cache.shape[:3])] = beyond
    return [jnp.asarray(2 * leaf, dtype) for leaf in (queries, keys, values)]


def attend(arrays: list[jax.Array], tiling: flash_decoding.Tiling, lengths: np.ndarray = LENGTHS) -> Part:
    call = functools.partial(flash_decoding.attend_filled, tiling=tiling, interpret=True)
    return jax.jit(call)(*arrays, jnp.asarray(lengths))


def oracle(arrays: list[jax.Array]) -> list[np.ndarray]:
    """Mixed values, greatest logits and totals in float64, row by row over its keys alone."""
    found = []
    for *row, length in zip(
        *(np.asarray(leaf.astype(jnp.float32), np.float64) for leaf in arrays), LENGTHS, strict=True
    ):
        queries, keys, values = row[0], row[1][:, :length], row[2][:, :length]
        logits = np.einsum("KGE,KSE->KGS", queries, keys) / np.sqrt(WIDTH)
        greatest = logits.max(axis=-1, initial=np.finfo(np.float32).min)
        weights = np.exp(logits - greatest[..., None])
        found.append((np.einsum("KGS,KSE->KGE", weights, values), greatest, weights.sum(axis=-1)))
    return [np.stack(leaves) for leaves in zip(*found, strict=True)]


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("size", [4, 40])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_is_attention_to_the_first_keys_whatever_lies_beyond(dtype, size, tiling):
    arrays = inputs(size, dtype)
    part = attend(inputs(size, dtype, beyond=np.nan), TILINGS[tiling])
    whole = attend_part(*arrays, jnp.arange(SLOTS) < LENGTHS[:, None])
    tolerances = {"mixed": 2e-5, "greatest": 2e-6, "total": 2e-6}
    if dtype == jnp.bfloat16:
        tolerances["mixed"] = 1e-2  # the weights' rounding, relative to another greatest logit
    for name, exact in zip(tolerances, oracle(arrays), strict=True):
        found, plain = getattr(part, name), getattr(whole, name)
        assert found.dtype == jnp.float32 and found.shape == plain.shape
        scale = np.abs(exact[1:]).max()
        np.testing.assert_allclose(found[1:], exact[1:], rtol=0, atol=tolerances[name] * scale)
        np.testing.assert_allclose(found[1:], plain[1:], rtol=0, atol=tolerances[name] * scale)
    np.testing.assert_array_equal(part.mixed[0], 0.0)
    np.testing.assert_array_equal(part.total[0], 0.0)
    np.testing.assert_array_equal(part.greatest[0], np.finfo(np.float32).min)


@pytest.mark.parametrize(("tiling", "shares"), [("alone", 1), ("shared", 4)])
def test_a_cache_is_shared_where_programs_are_few(tiling, shares):
    call = functools.partial(flash_decoding.attend_filled, tiling=TILINGS[tiling], interpret=True)
    text = str(jax.make_jaxpr(call)(*inputs(4, jnp.float32), LENGTHS))
    assert f"f32[{shares},{LENGTHS.size},{HEADS},4,{WIDTH}]" in text


def test_shares_without_a_key_add_nothing():
    arrays = inputs(4, jnp.float32)
    part = attend(arrays, TILINGS["alone"])
    nothing = attend(arrays, TILINGS["alone"], np.zeros_like(LENGTHS))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), nothing, part, nothing)
    jax.tree.map(np.testing.assert_array_equal, flash_decoding.merge_shares(stacked), part)
    rows = LENGTHS > 0
    for pair in ((part, nothing), (nothing, part)):
        found = merge(*pair)[rows]
        np.testing.assert_array_equal(found, (part.mixed / part.total[..., None])[rows])


def test_a_width_that_the_kernel_does_not_take_is_refused():
    assert [flash_decoding.serves(width) for width in (8, 16, 48, 128)] == [False, True, False, True]
    arrays = [leaf[..., :6] for leaf in inputs(4, jnp.float32)]
    with pytest.raises(ValueError, match="power of two"):
        flash_decoding.attend_filled(*arrays, jnp.asarray(LENGTHS))


@pytest.mark.parametrize(("rows", "size", "slots"), [(64, 4, 1536), (2, 32, 1000)])
def test_it_lowers_to_a_kernel_and_copies_no_cache(rows, size, slots):
    def shaped(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, 8, *shape, 128), jnp.bfloat16)

    lengths = jax.ShapeDtypeStruct((rows,), jnp.int32)
    gpu = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=gpu)):
        traced = jax.jit(flash_decoding.attend_filled).trace(shaped(size), shaped(slots), shaped(slots), lengths)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("xla.gpu.triton") == 1
    cache = f"tensor<{rows}x8x{slots}x128xbf16>"
    reading = [line for line in text.splitlines() if cache in line and "func.func" not in line]
    assert reading and all("custom_call" in line for line in reading)


@pytest.mark.parametrize("by_kernel", [False, True])
def test_a_token_reaches_what_a_live_row_reads(by_kernel):
    """Three sources of two seats; rows 1 and 3 have ended, row 2 has no seat."""
    seat, ended = jnp.array([0, 2, 6, 4, 5, 1]), jnp.array([False, True, True, True, True, False])
    seated = cache_attention.seat_rows(seat, 3, 2)
    np.testing.assert_array_equal(seated, [[0, 5], [1, 0], [3, 4]])
    prompts = jnp.array([7, 8, 9])
    reach = cache_attention.reach(jnp.int32(4), ended, prompts, seat, seated, by_kernel=by_kernel)
    np.testing.assert_array_equal(reach.prompts, [7, 0, 0] if by_kernel else prompts)
    np.testing.assert_array_equal(reach.own, [5, 1, 1, 1, 1, 5] if by_kernel else [5])


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_kernel_is_for_one_nvidia_gpu(attention):
    config = dataclasses.replace(SHALLOW, attention=attention, head_dim=128)
    meshes = [None, *(jax.sharding.AbstractMesh((size,), ("data",)) for size in (1, 8))]
    nvidia = attention in CUDNN
    assert [cache_attention.kernel_serves(config, mesh) for mesh in meshes] == [nvidia, nvidia, False]
    assert not cache_attention.kernel_serves(dataclasses.replace(config, head_dim=6), None)


def test_the_decode_loop_draws_the_same_tokens_by_the_kernels(monkeypatch):
    """Rows that end early, one that never began, and a source that no row continues."""
    active = np.array([True, True, False, True, True, True, False, True])
    settings = {"max_new_tokens": 8, "pad_id": 0}
    free = call(sampler.build_sampler(SHALLOW, eos_ids=(), **settings), SHALLOW, active=active)
    settings["eos_ids"] = (int(free.tokens[0, 1]), int(free.tokens[5, 4]))
    plain = call(sampler.build_sampler(SHALLOW, **settings), SHALLOW, active=active)
    lengths = plain.mask.sum(axis=1)
    assert len(set(lengths[active])) > 2
    reached = []

    def interpreted(*arrays: jax.Array) -> Part:
        tiling = flash_decoding.Tiling(keys=16, programs=64, least_keys=4)
        jax.debug.callback(lambda lengths: reached.append(np.asarray(lengths)), arrays[3], ordered=True)
        return filled(*arrays, tiling=tiling)

    interpret_kernels(monkeypatch)
    filled = flash_decoding.attend_filled
    monkeypatch.setattr(flash_decoding, "attend_filled", interpreted)
    samples = call(sampler.build_sampler(SHALLOW, **settings), SHALLOW, active=active)
    np.testing.assert_array_equal(samples.tokens, plain.tokens)
    np.testing.assert_array_equal(samples.mask, plain.mask)
    np.testing.assert_allclose(samples.policy_logprobs, plain.policy_logprobs, atol=2e-5)
    jax.effects_barrier()
    own, prompts = reached[::2], reached[1::2]
    assert len(own) == len(prompts) == samples.steps == lengths.max()
    for step, (slots, tokens) in enumerate(zip(own, prompts, strict=True)):
        np.testing.assert_array_equal(slots, np.where(step < lengths, step + 1, 1))
        live = (step < lengths).reshape(2, 4).any(axis=0)
        np.testing.assert_array_equal(tokens, np.where(live, [len(prompt) - 1 for prompt in PROMPTS], 0))
