"""A norm's and a rotation's own gradients, against those that JAX derives of the formulas in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgrout_jax.model import norms

EPSILON = 1e-3  # large enough to be seen
DTYPES = {jnp.float32: 2e-6, jnp.bfloat16: 1e-2}


def plain_norm(x, scale):
    return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPSILON) * scale


def plain_rotation(x, cos, sin):
    """Pairs (i, i + E/2) turned by their angles, one after the other."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


@pytest.fixture
def draw():
    """(*shape) -> normal numbers, float32."""
    generator = np.random.default_rng(0)
    return lambda *shape: jnp.asarray(generator.normal(size=shape), jnp.float32)


def gradients(function, inputs, several):
    """The value, and several gradients pulled back through it."""
    value, pull = jax.vjp(function, *inputs)
    return value, *jax.vmap(pull)(several.astype(value.dtype))


def assert_close(found, expected, dtype):
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        atol = DTYPES[dtype] * float(jnp.abs(other).max())
        np.testing.assert_allclose(one.astype(jnp.float32), other, atol=atol, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 5, 16), (2, 5, 3, 8)])
def test_the_norm_and_its_gradients(draw, shape, dtype):
    """With respect to the input and to the scale, several at once through the same input."""
    x, scale, several = 3 * draw(*shape), draw(shape[-1]), draw(4, *shape)
    x, scale, several = (leaf.astype(dtype).astype(jnp.float32) for leaf in (x, scale, several))
    narrow = (x.astype(dtype), scale.astype(dtype))
    found = gradients(lambda x, scale: norms.rms_norm(x, scale, EPSILON), narrow, several)
    assert_close(found, gradients(plain_norm, (x, scale), several), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2])
def test_the_rotation_and_its_gradient(draw, rows, dtype):
    """One row of angles may stand for all."""
    x, several, angles = draw(2, 5, 3, 8), draw(4, 2, 5, 3, 8), draw(rows, 5, 4)
    x, several = (leaf.astype(dtype).astype(jnp.float32) for leaf in (x, several))
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    found = gradients(lambda x: norms.rotate(x, cos, sin), (x.astype(dtype),), several)
    assert_close(found, gradients(lambda x: plain_rotation(x, cos, sin), (x,), several), dtype)
