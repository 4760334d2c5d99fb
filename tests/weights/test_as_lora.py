"""The served forms of the adapter against the definition of docs/method.md section 2, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from vgrout_jax.model import lora2r
from vgrout_jax.weights import as_lora

RANK = tiny.RANK


def random_adapter(size: float = 0.3, seed: int = 0) -> lora2r.Adapter:
    """Every value, those of the quarantine too, away from zero."""
    shape = tiny.model()
    init = lora2r.init_factors(shape.module_shapes(), shape.num_layers, RANK, seed=seed)
    init = jax.tree.map(jnp.asarray, init)
    return lora2r.Adapter(init, tiny.moved(init, size, seed + 1))


def float64(leaf: jax.Array) -> np.ndarray:
    return np.asarray(leaf, np.float64)


def definition(adapter: lora2r.Adapter, name: str, layer: int, block: slice) -> np.ndarray:
    """B A - B0 A0 of one block, [d_out, d_in], in float64."""
    a0, b0 = float64(adapter.init.a[name][layer])[block], float64(adapter.init.b[name][layer])[:, block]
    a = a0 + float64(adapter.deltas.a[name][layer])[block]
    b = b0 + float64(adapter.deltas.b[name][layer])[:, block]
    return b @ a - b0 @ a0


@pytest.mark.parametrize("quarantine", [False, True], ids=["deployed", "as_trained"])
@pytest.mark.parametrize("size", [1e-4, 0.3])
def test_factors_multiply_to_the_net_map_of_their_blocks(quarantine, size):
    """To the accuracy of float32 relative to the net map itself: no cancellation, however small the move."""
    adapter = random_adapter(size)
    factors = as_lora.lora_factors(adapter, quarantine=quarantine)
    blocks = [slice(0, RANK), slice(RANK, 2 * RANK)][: 1 + quarantine]
    for name in lora2r.MODULES:
        assert factors.a[name].shape[-2] == factors.b[name].shape[-1] == 2 * RANK * (1 + quarantine)
        for layer in range(2):
            expected = sum(definition(adapter, name, layer, block) for block in blocks)
            product = float64(factors.b[name][layer]) @ float64(factors.a[name][layer])
            error = np.linalg.norm(product - expected) / np.linalg.norm(expected)
            assert error < 1e-6
            change = as_lora.weight_change(np.asarray(factors.a[name][layer]), np.asarray(factors.b[name][layer]))
            assert change.dtype == np.float32
            np.testing.assert_allclose(change, product, atol=1e-6 * np.abs(product).max())


@pytest.mark.parametrize("quarantine", [False, True], ids=["deployed", "as_trained"])
def test_factors_compute_what_the_policy_computes(quarantine):
    adapter = random_adapter()
    fused = lora2r.fuse(adapter, jnp.float32)
    factors = as_lora.lora_factors(adapter, quarantine=quarantine)
    inputs = np.random.default_rng(2).standard_normal((3, 5, 16)).astype(np.float32)
    route = lora2r.full_route(3) if quarantine else lora2r.ablated_route(3)
    expected = lora2r.apply_fused(jnp.asarray(inputs), fused.a["up_proj"][1], fused.b["up_proj"][1], route)
    ours = inputs @ np.asarray(factors.a["up_proj"][1]).T @ np.asarray(factors.b["up_proj"][1]).T
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_deployed_factors_hold_nothing_of_the_quarantine():
    """Bit for bit the same, whatever the quarantine's initial values and differences are."""
    adapter = random_adapter()

    def other(leaf: jax.Array, axis: int) -> jax.Array:
        kept, _ = jnp.split(leaf, 2, axis=axis)
        return jnp.concatenate([kept, 7.0 + kept], axis=axis)

    def replaced(factors: lora2r.Factors) -> lora2r.Factors:
        return lora2r.Factors(
            a={name: other(leaf, -2) for name, leaf in factors.a.items()},
            b={name: other(leaf, -1) for name, leaf in factors.b.items()},
        )

    changed = lora2r.Adapter(replaced(adapter.init), replaced(adapter.deltas))
    for quarantine in (False, True):
        ours, theirs = (as_lora.lora_factors(item, quarantine=quarantine) for item in (adapter, changed))
        same = jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), ours, theirs))
        assert same is not quarantine


def test_the_type_is_cast_after_the_sum():
    """A0 = 1 and dA = 2^-9 twice over: rounded apart their sum would be 1, summed first it is 1 + 2^-7."""
    ones = jnp.ones((1, 2, 4))
    factors = lora2r.Factors(a={"q_proj": ones}, b={"q_proj": jnp.ones((1, 4, 2))})
    deltas = jax.tree.map(lambda leaf: leaf * (3 * 2**-9), factors)
    result = as_lora.lora_factors(lora2r.Adapter(factors, deltas), quarantine=True, dtype=jnp.bfloat16)
    assert result.a["q_proj"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(float64(result.a["q_proj"][0, :2]), 1 + 2**-7)
    np.testing.assert_array_equal(float64(result.a["q_proj"][0, 2:]), 3 * 2**-9)


@pytest.mark.parametrize("rank", [1, 3, 6, 9])
@pytest.mark.parametrize("d_in,d_out", [(16, 24), (24, 16), (5, 16), (16, 5)])
def test_truncation_is_the_best_approximation_of_its_rank(rank, d_in, d_out):
    """The oracle is the SVD of the whole product, whose truncation is the best one (Eckart and Young)."""
    generator = np.random.default_rng(rank)
    down, up = generator.standard_normal((6, d_in)), generator.standard_normal((d_out, 6))
    left, values, right = np.linalg.svd(up @ down)
    count = min(rank, len(values))
    best = (left[:, :count] * values[:count]) @ right[:count]
    new_down, new_up, found = as_lora.truncate(down.astype(np.float32), up.astype(np.float32), rank)
    assert (new_down.shape, new_up.shape) == ((rank, d_in), (d_out, rank))
    np.testing.assert_allclose(new_up.astype(np.float64) @ new_down, best, atol=1e-5 * values[0])
    np.testing.assert_allclose(found, values[: len(found)], atol=1e-5 * values[0])
    error = np.linalg.norm(new_up.astype(np.float64) @ new_down - up @ down)
    np.testing.assert_allclose(error, np.sqrt(np.sum(found[rank:] ** 2)), atol=1e-5 * values[0])


def test_truncating_nothing_gives_zeros():
    down, up, values = as_lora.truncate(np.ones((4, 7), np.float32), np.zeros((5, 4), np.float32), 2)
    assert not (up @ down).any() and not values.any() and np.isfinite(down).all()
