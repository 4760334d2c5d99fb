"""Maps side by side with their adapters, by the kernel (interpreted) and without: each by itself in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgrout_jax.model import lora2r
from vgrout_jax.sampling import fused_linear

D_IN, RANK = 24, 4
SIZES = {"odd": [5, 3, 9], "even": [48, 16, 32], "one": [64]}
ON = np.arange(37) % 3 != 0  # rows; no multiple of a tile
TILING = fused_linear.Tiling(rows=16, columns=32)


def draw(sizes: list[int], move: float) -> tuple[np.ndarray, list[np.ndarray], list[lora2r.Adapter]]:
    """An input [N, 1, D], and for every map its weight and an adapter of one layer."""
    generator = np.random.default_rng(len(sizes))

    def factors(scale: float) -> list[lora2r.Factors]:
        def leaf(*shape: int) -> dict[str, jax.Array]:
            return {"q_proj": jnp.float32(scale * generator.normal(size=(1, *shape)))}

        return [lora2r.Factors(a=leaf(2 * RANK, D_IN), b=leaf(size, 2 * RANK)) for size in sizes]

    adapters = [lora2r.Adapter(*pair) for pair in zip(factors(0.5), factors(move), strict=True)]
    weights = [np.float32(generator.normal(size=(D_IN, size))) for size in sizes]
    return np.float32(generator.normal(size=(ON.size, 1, D_IN))), weights, adapters


def widened(weights: list, adapters: list, dtype: jnp.dtype, *, by_kernel: bool) -> fused_linear.Wide:
    fused = [lora2r.fuse(adapter, dtype) for adapter in adapters]
    downs, ups = ([getattr(factors, side)["q_proj"][0] for factors in fused] for side in ("a", "b"))
    return fused_linear.widen([jnp.asarray(weight, dtype) for weight in weights], downs, ups, by_kernel=by_kernel)


def exact(x: np.ndarray, weight: np.ndarray, adapter: lora2r.Adapter, on: np.ndarray) -> np.ndarray:
    """W x + B A x - B0 A0 x, block by block, in float64."""
    a0, b0 = (np.float64(side["q_proj"][0]) for side in (adapter.init.a, adapter.init.b))
    a, b = (np.float64(side["q_proj"][0]) for side in (adapter.deltas.a, adapter.deltas.b))
    a, b, out = a0 + a, b0 + b, np.float64(x) @ weight
    for block, gate in ((slice(None, RANK), 1.0), (slice(RANK, None), on[:, None, None])):
        out = out + gate * (x @ a[block].T @ b[:, block].T - x @ a0[block].T @ b0[:, block].T)
    return out


def split(out: jax.Array, sizes: list[int]) -> list[jax.Array]:
    """Each map's part of what they give side by side."""
    assert out.shape[-1] == sum(sizes)
    return jnp.split(out, np.cumsum(sizes)[:-1], axis=-1)


@pytest.fixture
def interpreted(monkeypatch):
    """The kernel on any device."""
    kernel = functools.partial(fused_linear.add_adapters, tiling=TILING, interpret=True)
    monkeypatch.setattr(fused_linear, "add_adapters", kernel)


CASES = [("odd", False), ("even", False), ("one", False), ("even", True), ("one", True)]


@pytest.mark.parametrize("on", [ON, ~ON], ids=["some", "the others"])
@pytest.mark.parametrize(("sizes", "by_kernel"), CASES)
def test_maps_side_by_side_equal_each_by_itself(interpreted, sizes, by_kernel, on):
    x, weights, adapters = draw(SIZES[sizes], 0.5)
    wide = widened(weights, adapters, jnp.float32, by_kernel=by_kernel)
    found = split(fused_linear.apply(jnp.asarray(x), wide, jnp.asarray(on)), SIZES[sizes])
    for out, weight, adapter in zip(found, weights, adapters, strict=True):
        np.testing.assert_allclose(out, exact(x, weight, adapter, on), atol=1e-4)
    alone = fused_linear.widen([jnp.asarray(weight) for weight in weights], [], [])
    of_maps = split(fused_linear.apply(jnp.asarray(x), alone, jnp.asarray(on)), SIZES[sizes])
    for out, weight in zip(of_maps, weights, strict=True):
        np.testing.assert_allclose(out, np.float64(x) @ weight, atol=2e-5)


@pytest.mark.parametrize(("size", "by_kernel"), [(32, True), (32, False), (7, False)])
def test_the_activation_is_of_the_first_map(interpreted, size, by_kernel):
    x, weights, adapters = draw([size, size], 0.5)
    wide = widened(weights, adapters, jnp.float32, by_kernel=by_kernel)
    found = fused_linear.apply(jnp.asarray(x), wide, jnp.asarray(ON), gated=True)
    gate, up = (exact(x, *pair, ON) for pair in zip(weights, adapters, strict=True))
    np.testing.assert_allclose(found, gate / (1 + np.exp(-gate)) * up, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("sizes", "by_kernel"), CASES)
def test_adapters_side_by_side_add_exactly_nothing_at_init(interpreted, sizes, by_kernel, dtype):
    x, weights, adapters = draw(SIZES[sizes], 0.0)
    wide = widened(weights, adapters, dtype, by_kernel=by_kernel)
    inner = jnp.asarray(x, dtype) @ wide.maps[:, sum(SIZES[sizes]) :]
    assert np.abs(inner).max() > 0.1
    found = fused_linear.apply(jnp.asarray(x, dtype), wide, jnp.ones(ON.size, bool))
    # Weights of zero leave what the adapters add; the base's own product may be summed in another order.
    silent = wide.replace(maps=wide.maps.at[:, : sum(SIZES[sizes])].set(0))
    out = fused_linear.apply(jnp.asarray(x, dtype), silent, jnp.ones(ON.size, bool))
    np.testing.assert_array_equal(np.float32(out), 0.0)
    for out, weight in zip(split(found, SIZES[sizes]), weights, strict=True):
        plain = jnp.asarray(x, dtype).astype(jnp.float32) @ jnp.asarray(weight, dtype).astype(jnp.float32)
        np.testing.assert_allclose(np.float32(out), plain, rtol=2**-7, atol=1e-5)


def test_the_kernel_takes_widths_and_ranks_of_whole_tiles():
    taken = {(16,): True, (4096, 1024, 1024): True, (9728, 9728): True, (40, 16): False, (5,): False}
    assert {sizes: fused_linear.serves(sizes, 32) for sizes in taken} == taken
    assert [fused_linear.serves((64,), rank) for rank in (1, 2, 4, 6, 32)] == [False, False, True, False, True]


@pytest.mark.parametrize(
    ("rows", "sizes", "gated"), [(64, (4096, 1024, 1024), False), (7, (2560,), False), (64, (9728, 9728), True)]
)
def test_it_lowers_to_one_kernel(rows, sizes, gated):
    def shaped(*shape: int, dtype: jnp.dtype = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    given = (shaped(rows, sum(sizes) + 128 * len(sizes), dtype=jnp.float32), shaped(sum(sizes), 128))
    gpu = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=gpu)):
        add = jax.jit(functools.partial(fused_linear.add_adapters, sizes=sizes, gated=gated))
        text = add.trace(*given, shaped(rows, dtype=bool)).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("xla.gpu.triton") == 1
