"""Attention over whole sequences, against JAX's own."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from vgrout_jax.model import attention as attention_module
from vgrout_jax.model import parameters, qwen3
from vgrout_jax.model.attention import attend_causally, attend_part, merge
from vgrout_jax.run.build import attention_for

ROWS, LENGTH = 3, 14


@pytest.fixture
def draw():
    """(length) -> queries, keys and values of two rows, with six heads in three groups."""
    generator = np.random.default_rng(0)
    return lambda length: [
        jnp.asarray(generator.normal(size=(2, length, heads, 8)), jnp.float32) for heads in (6, 3, 3)
    ]


@pytest.fixture
def set_constant(monkeypatch):
    """(name, value) sets a constant of the module; what was traced under another value is forgotten."""

    def change(name, value):
        monkeypatch.setattr(attention_module, name, value)
        attend_causally.clear_cache()

    yield change
    attend_causally.clear_cache()


def value_and_gradients(attend, arrays, weights):
    return jax.value_and_grad(lambda *given: jnp.sum(attend(*given) * weights), argnums=(0, 1, 2))(*arrays)


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("length", [7, 128, 300])
def test_attention_in_blocks_equals_jax_s_own(draw, length, by_rows, set_constant):
    """In value and gradient; blocks of 40 queries, a last one that is shorter, and padding before."""
    set_constant("_LEAST_BLOCK", 40)
    set_constant("_CACHED", 1)
    arrays = draw(length)
    own = functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation="xla")
    ours = functools.partial(attend_causally, by_rows=by_rows)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=arrays[0].shape), jnp.float32)
    np.testing.assert_allclose(ours(*arrays), own(*arrays), atol=2e-6)
    found, expected = (value_and_gradients(attend, arrays, weights)[1] for attend in (ours, own))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)
    valid = jnp.arange(length) >= jnp.array([[0], [3]])
    expected, found = own(*arrays, mask=valid[:, None, None, :]), ours(*arrays, valid)
    np.testing.assert_allclose(found[valid], expected[valid], atol=2e-6)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_several_gradients_go_back_through_the_same_rows(draw, by_rows, dtype, set_constant):
    """As the probe's do: the last 90 of 130 tokens attend, behind padding; against JAX's own in float32."""
    set_constant("_LEAST_BLOCK", 40)
    set_constant("_CACHED", 1)
    queries, keys, values = (leaf.astype(dtype) for leaf in draw(130))
    queries, valid = queries[:, 40:], jnp.arange(130) >= jnp.array([[0], [7]])
    gradients = jnp.asarray(np.random.default_rng(1).normal(size=(3, *queries.shape)), dtype)

    def own(*arrays):
        mask = valid[:, None, None] & jnp.tri(90, 130, 40, dtype=bool)
        return jax.nn.dot_product_attention(*arrays, mask=mask, implementation="xla")

    def pulled(attend, *arrays):
        return jax.vmap(jax.vjp(attend, *arrays)[1])(gradients.astype(arrays[0].dtype))

    ours = functools.partial(attend_causally, valid=valid, by_rows=by_rows)
    found = jax.jit(functools.partial(pulled, ours))(queries, keys, values)
    expected = pulled(own, *(leaf.astype(jnp.float32) for leaf in (queries, keys, values)))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        bound = 2e-6 if dtype == jnp.float32 else 1e-2
        np.testing.assert_allclose(one.astype(jnp.float32), other, atol=bound * np.abs(other).max())


def exponentials(jaxpr, times=1):
    """How often an exponential is computed, loops multiplied out."""
    count = 0
    for equation in jaxpr.eqns:
        count += times * (equation.primitive.name == "exp")
        inside = times * equation.params.get("length", 1)
        count += sum(exponentials(inner, inside) for inner in jaxprs_in_params(equation.params))
    return count


@pytest.mark.parametrize("count", [1, 5])
def test_weights_are_computed_once_for_all_gradients_through_a_row(draw, count):
    """Once in each of two blocks of two rows; and the gradients' own arrays are never there for all of them."""
    arrays = draw(128)
    gradients = jnp.ones((count, *arrays[0].shape))
    _, pull = jax.vjp(functools.partial(attend_causally, by_rows=True), *arrays)
    traced = jax.jit(jax.vmap(pull)).trace(gradients)
    assert exponentials(traced.jaxpr.jaxpr) == 2 * 2
    text = traced.lower().as_text()
    assert "tensor<3x128x128xf32>" in text  # the second block's weights: 3 groups of 2 heads with 64 queries
    assert f"tensor<{count}x3x128x128xf32>" not in text


@pytest.mark.parametrize("together", [1, 2])
def test_rows_that_fit_the_cache_go_together(draw, together, set_constant):
    arrays = [jnp.concatenate([leaf] * 3) for leaf in draw(100)]  # six rows
    set_constant("_CACHED", together * 6 * 64 * 100)
    text = jax.jit(functools.partial(attend_causally, by_rows=True)).lower(*arrays).as_text()
    assert "stablehlo.while" in text and ("tensor<2x3x" in text) == (together == 2)
    by_rows = attend_causally(*arrays, by_rows=True)
    np.testing.assert_allclose(by_rows, attend_causally(*arrays), atol=1e-6)


def test_attention_in_blocks_saves_the_products_above_the_diagonal():
    shape = jax.ShapeDtypeStruct((1, 1024, 2, 8), jnp.float32)
    text = jax.jit(attend_causally).lower(shape, shape, shape).as_text()
    assert "tensor<1x2x128x128xf32>" in text and "tensor<1x2x128x1024xf32>" in text  # the first block, the last
    assert "1024x1024" not in text


def test_attention_over_two_parts_is_that_over_all_keys(draw):
    """The second row may read nothing of the first part, and its logits are large."""
    queries, keys, values = draw(12)
    queries = queries[:, :1] * jnp.array([1.0, 30.0])[:, None, None, None]
    readable = jnp.stack([jnp.arange(12) < 10, (jnp.arange(12) >= 5) & (jnp.arange(12) < 9)])
    expected = jax.nn.dot_product_attention(queries, keys, values, mask=readable[:, None, None])
    grouped = queries.reshape(2, 3, 2, 8)
    by_head = [jnp.swapaxes(leaf, 1, 2) for leaf in (keys, values)]
    parts = [
        attend_part(grouped, *(leaf[:, :, piece] for leaf in by_head), readable[:, piece])
        for piece in (slice(5), slice(5, None))
    ]
    for one, other in (parts, parts[::-1]):
        np.testing.assert_allclose(merge(one, other).reshape(expected.shape), expected, atol=2e-6)


def test_cudnn_s_attention_is_asked_for_where_it_serves(monkeypatch):
    """Which layers ask for it cannot be seen on a CPU but by what is called."""
    config = qwen3.Qwen3Config(96, 32, 56, 2, 4, 2, 8, dtype=jnp.bfloat16, attention="cudnn")
    calls, own = [], jax.nn.dot_product_attention

    def attention(*arrays, is_causal, implementation):
        calls.append((is_causal, implementation))
        return own(*arrays, is_causal=is_causal, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    base = jax.tree.map(jnp.asarray, parameters.init_parameters(config, 0))
    tokens = jnp.arange(ROWS * LENGTH).reshape(ROWS, LENGTH)
    aligned = qwen3.Qwen3(config).apply({"params": base}, tokens, qwen3.aligned_attention(LENGTH, config))
    assert set(calls) == {(True, "cudnn")}
    calls.clear()
    everywhere = jnp.ones((ROWS, LENGTH), bool)
    blocks = qwen3.Qwen3(config).apply({"params": base}, tokens, qwen3.causal_attention(everywhere, config))
    assert not calls  # padding before the prompt is not what it serves
    np.testing.assert_allclose(np.asarray(aligned, np.float32), np.asarray(blocks, np.float32), atol=0.1)


def test_cudnn_s_attention_behind_a_prompt_gets_a_mask(monkeypatch):
    config = qwen3.Qwen3Config(96, 32, 56, 2, 4, 2, 8, dtype=jnp.bfloat16, attention="cudnn")
    calls, own = [], jax.nn.dot_product_attention

    def attention(*arrays, implementation, **options):
        calls.append((implementation, options["mask"].shape))
        return own(*arrays, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    base = jax.tree.map(jnp.asarray, parameters.init_parameters(config, 0))
    tokens = jnp.arange(ROWS * LENGTH).reshape(ROWS, LENGTH)
    generator = np.random.default_rng(2)
    before = [jnp.asarray(generator.normal(size=(2, ROWS, 10, 2, 8)), jnp.bfloat16) for _ in range(2)]
    found = []
    for kind in ("cudnn", "batch"):
        model = dataclasses.replace(config, attention=kind)
        attention_of = qwen3.continued_attention(jnp.array([10, 4, 0]), LENGTH, 10, model)
        found.append(qwen3.Qwen3(model).apply({"params": base}, tokens, attention_of, before=tuple(before)))
    assert set(calls) == {("cudnn", (ROWS, 1, LENGTH, 10 + LENGTH))}
    np.testing.assert_allclose(*(np.asarray(hidden, np.float32) for hidden in found), atol=0.1)


def test_the_device_and_the_type_decide_how_attention_is_computed():
    class Device:
        def __init__(self, platform, version, capability=None):
            self.platform, self.compute_capability = platform, capability
            self.client = type("Client", (), {"platform_version": version})

    nvidia, amd = Device("gpu", "PJRT C API\ncuda 13000", "9.0"), Device("gpu", "rocm 6.4", "gfx942")
    older = Device("gpu", "PJRT C API\ncuda 13000", "8.6")
    assert attention_for(nvidia, jnp.bfloat16, devices=8) == "cudnn_packed"
    assert attention_for(older, jnp.bfloat16, devices=1) == "cudnn"  # its kernel cannot pack
    assert attention_for(nvidia, jnp.float32, devices=1) == attention_for(amd, jnp.bfloat16, devices=1) == "batch"
    cpu = jax.devices("cpu")[0]
    assert [attention_for(cpu, jnp.float32, devices=count) for count in (1, 8)] == ["rows", "batch"]
