"""A new token's heads: norm, rotation and the write into the caches, by the kernel (interpreted) and without."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model.sampling import SHALLOW
from vgrout_jax.model import qwen3
from vgrout_jax.sampling import cache_attention
from vgrout_jax.sampling import heads as head_kernels

QUERIES, COUNT, WIDTH, SLOTS, SLOT, EPSILON = 6, 2, 8, 5, 3, 1e-6
ROWS = 37  # no multiple of the kernel's rows


def draw(dtype: jnp.dtype) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(generator.normal(size=shape), dtype)

    return {
        "heads": normal(ROWS, 1, (QUERIES + 2 * COUNT) * WIDTH),
        "norms": (1 + 0.3 * normal(WIDTH), 1 + 0.3 * normal(WIDTH)),
        "cache": (normal(ROWS, COUNT, SLOTS, WIDTH), normal(ROWS, COUNT, SLOTS, WIDTH)),
    }


def exact(heads: np.ndarray, norms: tuple, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries, keys and values in float64, the rotation as products of complex numbers."""
    split = np.float64(heads).reshape(ROWS, -1, WIDTH)
    queries, keys, values = np.split(split, [QUERIES, QUERIES + COUNT], axis=1)

    def turned(leaf: np.ndarray, scale: np.ndarray) -> np.ndarray:
        normed = leaf / np.sqrt(np.mean(leaf**2, axis=-1, keepdims=True) + EPSILON) * np.float64(scale)
        half = WIDTH // 2
        turns = np.exp(1j * places[:, None] * SHALLOW.rope_theta ** (-np.arange(half) / half))[:, None]
        whole = (normed[..., :half] + 1j * normed[..., half:]) * turns
        return np.concatenate([whole.real, whole.imag], axis=-1)

    return turned(queries, norms[0]), turned(keys, norms[1]), values


def take_in(inputs: dict, places: np.ndarray, *, by_kernel: bool) -> tuple:
    config = qwen3.Qwen3Config(8, 16, 16, 1, QUERIES, COUNT, WIDTH, rope_theta=SHALLOW.rope_theta)
    attention = qwen3.Attention(*qwen3.rotary(jnp.asarray(places)[:, None], config))
    nobody = jnp.zeros(1, jnp.int32)
    reach = cache_attention.Reach(jnp.int32(SLOT), nobody, nobody, nobody, nobody, by_kernel=by_kernel)
    given = (lambda leaf, *_: leaf, reach, attention, inputs["norms"], inputs["cache"], inputs["heads"])
    return jax.jit(lambda: head_kernels.take_in(*given, epsilon=EPSILON))()


@pytest.fixture
def interpreted(monkeypatch):
    """The kernel on any device."""
    kernel = functools.partial(head_kernels.take_in_by_kernel, interpret=True)
    monkeypatch.setattr(head_kernels, "take_in_by_kernel", kernel)


@pytest.mark.parametrize("by_kernel", [True, False], ids=["kernel", "plain"])
def test_heads_are_normed_rotated_and_written_to_their_slot_alone(interpreted, by_kernel):
    inputs, places = draw(jnp.float32), np.arange(ROWS) * 7 % 50
    queries, (keys, values) = take_in(inputs, places, by_kernel=by_kernel)
    expected = exact(inputs["heads"], inputs["norms"], places)
    np.testing.assert_allclose(queries[:, 0], expected[0], atol=2e-5)
    for found, before, new in zip((keys, values), inputs["cache"], expected[1:], strict=True):
        np.testing.assert_allclose(found[:, :, SLOT], new, atol=2e-5)
        others = np.arange(SLOTS) != SLOT
        np.testing.assert_array_equal(found[:, :, others], before[:, :, others])


def test_in_bfloat16_the_kernel_rounds_once(interpreted):
    inputs, places = draw(jnp.bfloat16), np.arange(ROWS) % 11
    queries, (keys, values) = take_in(inputs, places, by_kernel=True)
    found = (queries[:, 0], keys[:, :, SLOT], values[:, :, SLOT])
    for leaf, expected in zip(found, exact(inputs["heads"], inputs["norms"], places), strict=True):
        assert leaf.dtype == jnp.bfloat16
        assert np.mean(leaf == jnp.asarray(expected, jnp.bfloat16)) > 0.99
        np.testing.assert_allclose(np.float32(leaf), expected, rtol=2**-8, atol=2**-8)


def test_it_lowers_to_one_kernel_that_writes_in_place():
    def shaped(*shape: int, dtype: jnp.dtype = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    norm, angle, cache = shaped(128), shaped(64, 64, dtype=jnp.float32), shaped(64, 8, 768, 128)
    given = (shaped(64, 6144), shaped(dtype=jnp.int32), (norm, norm), (angle, angle), (cache, cache))
    gpu = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=gpu)):
        place = jax.jit(functools.partial(head_kernels.take_in_by_kernel, epsilon=EPSILON))
        text = place.trace(*given).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("xla.gpu.triton") == 1
    assert text.count("#stablehlo.output_operand_alias<") == 2
