"""Attention over whole sequences, against JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgrout_jax.build import flash_serves
from vgrout_jax.model import qwen3

ROWS, LENGTH = 3, 14


@pytest.mark.parametrize("length", [7, 128, 300])
def test_attention_in_blocks_equals_jax_s_own(length, monkeypatch):
    """Grouped heads; blocks of 40 queries, a last one that is shorter, and padding before or behind."""
    monkeypatch.setattr(qwen3, "_LEAST_BLOCK", 40)
    draw = np.random.default_rng(0)
    queries, keys, values = (jnp.asarray(draw.normal(size=(2, length, heads, 8)), jnp.float32) for heads in (6, 3, 3))
    expected = jax.nn.dot_product_attention(queries, keys, values, is_causal=True, implementation="xla")
    np.testing.assert_allclose(qwen3.attend_causally(queries, keys, values), expected, atol=2e-6)
    valid = jnp.arange(length) >= jnp.array([[0], [3]])
    mask = valid[:, None, None, :]
    expected = jax.nn.dot_product_attention(queries, keys, values, mask=mask, is_causal=True, implementation="xla")
    found = qwen3.attend_causally(queries, keys, values, valid)
    np.testing.assert_allclose(found[valid], expected[valid], atol=2e-6)
    assert np.isfinite(found).all()


def test_attention_in_blocks_saves_the_products_above_the_diagonal():
    shape = jax.ShapeDtypeStruct((1, 1024, 2, 8), jnp.float32)
    text = jax.jit(qwen3.attend_causally).lower(shape, shape, shape).as_text()
    assert "tensor<1x2x1x128x128xf32>" in text and "tensor<1x2x1x128x1024xf32>" in text  # the first block, the last
    assert "1024x1024" not in text


def test_cudnn_s_attention_is_asked_for_where_it_serves(monkeypatch):
    """Which layers ask for it cannot be seen on a CPU but by what is called."""
    config = qwen3.Qwen3Config(96, 32, 56, 2, 4, 2, 8, dtype=jnp.bfloat16, flash=True)
    calls, own = [], jax.nn.dot_product_attention

    def attention(*arrays, is_causal, implementation):
        calls.append((is_causal, implementation))
        return own(*arrays, is_causal=is_causal, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    base = jax.tree.map(jnp.asarray, qwen3.init_parameters(config, 0))
    tokens = jnp.arange(ROWS * LENGTH).reshape(ROWS, LENGTH)
    aligned, _ = qwen3.Qwen3(config).apply({"params": base}, tokens, qwen3.aligned_attention(LENGTH, config))
    assert set(calls) == {(True, "cudnn")}
    calls.clear()
    everywhere = jnp.ones((ROWS, LENGTH), bool)
    blocks, _ = qwen3.Qwen3(config).apply({"params": base}, tokens, qwen3.causal_attention(everywhere, config))
    assert not calls  # padding before the prompt is not what it serves
    np.testing.assert_allclose(np.asarray(aligned, np.float32), np.asarray(blocks, np.float32), atol=0.1)


def test_cudnn_s_attention_serves_16_bit_types_on_nvidia_gpus_alone():
    class Device:
        def __init__(self, platform, version):
            self.platform = platform
            self.client = type("Client", (), {"platform_version": version})

    nvidia = Device("gpu", "PJRT C API\ncuda 13000")
    assert flash_serves(nvidia, jnp.bfloat16) and not flash_serves(nvidia, jnp.float32)
    assert not flash_serves(Device("gpu", "rocm 6.4"), jnp.bfloat16)
    assert not flash_serves(jax.devices("cpu")[0], jnp.bfloat16)
