"""LoRA2r as a pure function: its values against float64 NumPy, its gradients against the algebra, its init."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vgrout_jax.model import lora2r

ROWS, LENGTH, D_IN, D_OUT, RANK = 3, 5, 24, 17, 4
# One rollout of each label: clean, mid, hack.
QUARANTINE_ON = np.array([False, True, True])
DETACH_DEPLOYED = np.array([False, False, True])


def factors_of(a, b) -> lora2r.Factors:
    """One layer of one module."""
    return lora2r.Factors(a={"q_proj": jnp.asarray(a)[None]}, b={"q_proj": jnp.asarray(b)[None]})


def draw_adapter(move: float, *, d_in=D_IN, d_out=D_OUT, rank=RANK, seed=0) -> lora2r.Adapter:
    generator = np.random.default_rng(seed)
    init = factors_of(
        np.float32(generator.normal(size=(2 * rank, d_in)) * d_in**-0.5),
        np.float32(generator.normal(size=(d_out, 2 * rank)) * (2 * rank) ** -0.5),
    )
    deltas = jax.tree.map(lambda leaf: jnp.float32(move * generator.normal(size=leaf.shape)), init)
    return lora2r.Adapter(init=init, deltas=deltas)


def draw_x(d_in=D_IN) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(ROWS, LENGTH, d_in)).astype(np.float32)


def route_of(detach: bool = True) -> lora2r.Route:
    return lora2r.Route(jnp.asarray(QUARANTINE_ON), jnp.asarray(DETACH_DEPLOYED) if detach else None)


@functools.partial(jax.jit, static_argnames="dtype")
def output(adapter, x, route, scale=None, *, dtype=jnp.float32):
    fused = lora2r.fuse(adapter, dtype)
    return lora2r.apply_fused(x.astype(dtype), fused.a["q_proj"][0], fused.b["q_proj"][0], route, scale)


def exact_blocks(adapter: lora2r.Adapter, x, scale=None) -> list[np.ndarray]:
    """B_b (c_b * A_b x) - B0_b A0_b x of both blocks, [N, T, d_out] each, in float64."""
    init, deltas = jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), (adapter.init, adapter.deltas))
    a0, b0 = init.a["q_proj"], init.b["q_proj"]
    a, b = a0 + deltas.a["q_proj"], b0 + deltas.b["q_proj"]
    rank, x = len(a) // 2, np.asarray(x, np.float64)
    scale = np.ones((len(x), 2 * rank)) if scale is None else scale
    blocks = []
    for block in (slice(None, rank), slice(rank, None)):
        moved = (scale[:, None, block] * (x @ a[block].T)) @ b[:, block].T
        blocks.append(moved - x @ a0[block].T @ b0[:, block].T)
    return blocks


def exact_output(adapter: lora2r.Adapter, x, scale=None) -> np.ndarray:
    deployed, quarantine = exact_blocks(adapter, x, scale)
    return deployed + np.where(QUARANTINE_ON[:, None, None], quarantine, 0.0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("probe", [False, True], ids=["plain", "probe"])
@pytest.mark.parametrize("detach", [False, True], ids=["no_detach", "detach"])
def test_output_at_init_is_exactly_zero(dtype, probe, detach):
    adapter = draw_adapter(0.0)
    scale = jnp.ones((ROWS, 2 * RANK)) if probe else None
    actual = output(adapter, draw_x(), route_of(detach), scale, dtype=dtype)
    assert actual.dtype == dtype and actual.shape == (ROWS, LENGTH, D_OUT)
    assert np.all(np.asarray(actual, np.float32) == 0.0)


@pytest.mark.parametrize("detach", [False, True], ids=["no_detach", "detach"])
@pytest.mark.parametrize("move", [1e-3, 0.1, 1.0])
def test_output_equals_the_formula(move, detach):
    adapter, x = draw_adapter(move), draw_x()
    generator = np.random.default_rng(2)
    ones = np.ones((ROWS, 2 * RANK), np.float32)
    expected = exact_output(adapter, x)
    size = np.linalg.norm(expected)
    for scale in (None, jnp.asarray(ones)):
        assert np.linalg.norm(output(adapter, x, route_of(detach), scale) - expected) < 1e-5 * size
    scale = np.float32(ones + 0.3 * generator.normal(size=ones.shape))
    expected = exact_output(adapter, x, scale)
    actual = output(adapter, x, route_of(detach), jnp.asarray(scale))
    assert np.linalg.norm(actual - expected) < 1e-5 * np.linalg.norm(expected)


def test_blocks_do_not_mix():
    """Moving one block leaves the other's output alone: there are no cross terms."""
    adapter, x = draw_adapter(0.3), draw_x()
    quarantine_only = jax.tree.map(lambda moved, kept: moved - kept, adapter.deltas, lora2r.ablate(adapter.deltas))
    alone = output(adapter.replace(deltas=quarantine_only), x, lora2r.full_route(ROWS))
    np.testing.assert_allclose(alone, exact_blocks(adapter, x)[1], atol=1e-5)
    np.testing.assert_array_equal(output(adapter.replace(deltas=quarantine_only), x, lora2r.ablated_route(ROWS)), 0.0)


@pytest.mark.parametrize("move", [1e-3, 1e-4])
def test_bfloat16_keeps_the_net_delta(move):
    """Trained differences lose under 1%; the difference of two products would lose most of the signal."""
    adapter = draw_adapter(move, d_in=2560, d_out=256, rank=32)
    x = np.asarray(jnp.asarray(draw_x(2560), jnp.bfloat16), np.float32)  # the same input for all three
    deployed, quarantine = exact_blocks(adapter, x)
    expected = deployed + quarantine

    def error(actual):
        return np.linalg.norm(np.asarray(actual, np.float64) - expected) / np.linalg.norm(expected)

    actual = output(adapter, x, lora2r.full_route(ROWS), dtype=jnp.bfloat16)

    def product(a, b):
        a, b = a["q_proj"][0].astype(jnp.bfloat16), b["q_proj"][0].astype(jnp.bfloat16)
        return x.astype(jnp.bfloat16) @ a.T @ b.T

    moved = jax.tree.map(jnp.add, adapter.init, adapter.deltas)
    naive = product(moved.a, moved.b) - product(adapter.init.a, adapter.init.b)
    assert error(actual) < 0.01
    assert error(naive) > 0.09


def module_gradients(adapter, x, cotangent, route, scale=None):
    """Gradients of sum(cotangent * output) to the differences, the input and the scale."""

    def loss(deltas, x, scale):
        return jnp.sum(cotangent * output(adapter.replace(deltas=deltas), x, route, scale))

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(adapter.deltas, x, scale)


def test_gradients_equal_those_of_a_and_b():
    """dL/dA = (B^T delta) x^T and dL/dB = delta (A x)^T, from the rollouts whose label lets the block train."""
    adapter, x = draw_adapter(0.3), draw_x()
    cotangent = np.random.default_rng(4).normal(size=(ROWS, LENGTH, D_OUT)).astype(np.float32)
    ones = jnp.ones((ROWS, 2 * RANK))
    deltas, to_x, to_scale = module_gradients(adapter, x, cotangent, route_of(), ones)

    init, moved = jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), (adapter.init, adapter.deltas))
    a, b = init.a["q_proj"] + moved.a["q_proj"], init.b["q_proj"] + moved.b["q_proj"]
    h = x.astype(np.float64) @ a.T  # [N, T, 2r]
    back = cotangent.astype(np.float64) @ b  # [N, T, 2r]
    trains = np.repeat(np.stack([~DETACH_DEPLOYED, QUARANTINE_ON], 1), RANK, axis=1)[:, None]  # [N, 1, 2r]
    np.testing.assert_allclose(deltas.a["q_proj"][0], np.einsum("NTR,NTD->RD", trains * back, x), atol=1e-4)
    np.testing.assert_allclose(deltas.b["q_proj"][0], np.einsum("NTF,NTR->FR", cotangent, trains * h), atol=1e-4)
    np.testing.assert_allclose(to_scale, np.sum(trains * h * back, axis=1), atol=1e-4)
    straight = (trains * back) @ a - (trains * (cotangent @ init.b["q_proj"])) @ init.a["q_proj"]
    np.testing.assert_allclose(to_x, straight, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_gradients_are_exactly_zero_where_the_label_forbids(dtype):
    adapter, x = draw_adapter(0.3), draw_x()

    def gradient(quarantine_on, detach_deployed):
        route = lora2r.Route(jnp.full(ROWS, quarantine_on), jnp.full(ROWS, detach_deployed))

        def loss(deltas):
            out = output(adapter.replace(deltas=deltas), x, route, dtype=dtype)
            return jnp.sum(jnp.sin(out.astype(jnp.float32)))

        deltas = jax.grad(loss)(adapter.deltas)
        return np.asarray(deltas.a["q_proj"][0]), np.asarray(deltas.b["q_proj"][0])

    deployed, quarantine = slice(None, RANK), slice(RANK, None)
    for (on, detached), trained, frozen in (
        ((False, False), deployed, quarantine),
        ((True, True), quarantine, deployed),
    ):
        a, b = gradient(on, detached)
        assert np.all(a[frozen] == 0.0) and np.all(b[:, frozen] == 0.0)
        assert np.all(a[trained] != 0.0) and np.all(b[:, trained] != 0.0)
    a, b = gradient(True, False)
    assert np.all(a != 0.0) and np.all(b != 0.0)


def test_the_scale_of_a_silent_block_has_no_gradient():
    adapter, x = draw_adapter(0.3), draw_x()
    cotangent = np.ones((ROWS, LENGTH, D_OUT), np.float32)
    to_scale = module_gradients(adapter, x, cotangent, route_of(), jnp.ones((ROWS, 2 * RANK)))[2]
    assert np.all(to_scale[0, RANK:] == 0.0) and np.all(to_scale[2, :RANK] == 0.0)
    assert np.all(to_scale[0, :RANK] != 0.0) and np.all(to_scale[1:, RANK:] != 0.0)


def test_ablation_removes_exactly_the_quarantine():
    adapter, x = draw_adapter(0.3), draw_x()
    ablated = lora2r.ablate(adapter.deltas)
    for kept, moved in zip(jax.tree.leaves(ablated), jax.tree.leaves(adapter.deltas), strict=True):
        assert kept.shape == moved.shape and kept.dtype == moved.dtype
    assert np.all(ablated.a["q_proj"][:, RANK:] == 0.0) and np.all(ablated.b["q_proj"][:, :, RANK:] == 0.0)
    for name, deployed in (("a", np.s_[:, :RANK]), ("b", np.s_[:, :, :RANK])):
        before = np.asarray(getattr(adapter.deltas, name)["q_proj"])[deployed]
        after = np.asarray(getattr(ablated, name)["q_proj"])[deployed]
        assert before.tobytes() == after.tobytes() and np.all(before != 0.0)
    deployed_policy = output(adapter.replace(deltas=ablated), x, lora2r.full_route(ROWS))
    np.testing.assert_allclose(deployed_policy, exact_blocks(adapter, x)[0], atol=1e-5)
    np.testing.assert_array_equal(deployed_policy, output(adapter, x, lora2r.ablated_route(ROWS)))


def test_ablation_is_a_no_op_at_init():
    zero = lora2r.zero_deltas(draw_adapter(0.3).init)
    for leaf, other in zip(jax.tree.leaves(zero), jax.tree.leaves(lora2r.ablate(zero)), strict=True):
        assert np.all(leaf == 0.0) and np.asarray(leaf).tobytes() == np.asarray(other).tobytes()


SHAPES = {"q_proj": (300, 200), "k_proj": (160, 90), "v_proj": (160, 90), "down_proj": (128, 256)}


def test_init_is_normal_with_the_stated_spread():
    layers, rank = 3, 16
    factors = lora2r.init_factors(SHAPES, layers, rank, seed=0)
    for name, (d_in, d_out) in SHAPES.items():
        a, b = factors.a[name], factors.b[name]
        assert a.shape == (layers, 2 * rank, d_in) and b.shape == (layers, d_out, 2 * rank)
        assert a.dtype == b.dtype == np.float32
        for leaf, scale in ((a, d_in**-0.5), (b, (2 * rank) ** -0.5)):
            values = leaf.astype(np.float64).ravel() / scale
            bound = 5 / math.sqrt(values.size)  # standard errors, as below
            assert abs(values.mean()) < bound and abs(values.var() - 1) < bound * math.sqrt(2)
            assert scipy.stats.kstest(values, "norm").pvalue > 1e-4


def test_init_values_are_independent_of_each_other():
    factors = lora2r.init_factors(SHAPES, 2, 16, seed=0)
    streams = [leaf[layer].ravel() for leaf in jax.tree.leaves(factors) for layer in range(2)]
    streams += [jax.tree.leaves(lora2r.init_factors(SHAPES, 1, 16, seed=1))[0][0].ravel()]
    length = min(map(len, streams))
    halves = [half for stream in streams for half in (stream[: length // 2], stream[length // 2 : length])]
    correlations = np.corrcoef(halves) - np.eye(len(halves))
    assert np.abs(correlations).max() < 6 / math.sqrt(length // 2)


def test_init_of_a_module_depends_on_seed_name_and_layer_alone():
    factors = lora2r.init_factors(SHAPES, 3, 4, seed=7)
    fewer = lora2r.init_factors({"down_proj": SHAPES["down_proj"]}, 2, 4, seed=7)
    for whole, part in ((factors.a, fewer.a), (factors.b, fewer.b)):
        assert whole["down_proj"][:2].tobytes() == part["down_proj"].tobytes()
        assert not np.array_equal(whole["down_proj"][0], whole["down_proj"][1])
    again, other = lora2r.init_factors(SHAPES, 3, 4, seed=7), lora2r.init_factors(SHAPES, 3, 4, seed=8)
    assert factors.a["q_proj"].tobytes() == again.a["q_proj"].tobytes()
    assert not np.isclose(factors.a["q_proj"], other.a["q_proj"]).mean() > 0.01


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_no_float32_copy_of_a_bfloat16_operand_is_multiplied_on_the_way_back(dtype):
    """Every product of the gradient has operands in the model's type."""
    adapter, route = draw_adapter(0.5), route_of()

    def loss(adapter, x):
        return jnp.sum(output(adapter, x, route, dtype=dtype).astype(jnp.float32) ** 2)

    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(adapter, jnp.asarray(draw_x(), dtype))
    operands = [variable.aval.dtype for equation in products(jaxpr.jaxpr) for variable in equation.invars]
    assert len(operands) >= 10 and set(operands) == {jnp.dtype(dtype)}


def products(jaxpr) -> list:
    """All matrix products of a program, inner ones too."""
    found = []
    for equation in jaxpr.eqns:
        found += [equation] if equation.primitive.name == "dot_general" else []
        for value in equation.params.values():
            for item in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(item, "jaxpr", item)
                found += products(inner) if hasattr(inner, "eqns") else []
    return found


def test_probe_ones():
    ones = lora2r.probe_ones(2, 3, 4)
    assert tuple(ones) == lora2r.MODULES
    assert all(leaf.shape == (2, 3, 8) and leaf.dtype == jnp.float32 and np.all(leaf == 1) for leaf in ones.values())


def test_only_the_difference_s_columns_of_the_second_factor_get_a_gradient():
    """B0 is frozen: half of the product that gives the factor's gradient is not run."""
    fused, x = lora2r.fuse(draw_adapter(0.3), jnp.float32), draw_x()
    weights = np.random.default_rng(3).normal(size=(ROWS, LENGTH, D_OUT)).astype(np.float32)

    def loss(up):
        return jnp.sum(lora2r.apply_fused(jnp.asarray(x), fused.a["q_proj"][0], up, route_of(detach=False)) * weights)

    gradient = jax.grad(loss)(fused.b["q_proj"][0])
    runs = QUARANTINE_ON[:, None] | (np.arange(2 * RANK) < RANK)
    inner = np.where(runs[:, None], x @ np.asarray(fused.a["q_proj"][0][: 2 * RANK]).T, 0)
    np.testing.assert_allclose(gradient[:, : 2 * RANK], np.einsum("NTF,NTR->FR", weights, inner), atol=1e-4)
    assert not np.any(gradient[:, 2 * RANK :])
