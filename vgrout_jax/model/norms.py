"""A layer's norm and rotation, with gradients of their own, which cost less than those that JAX derives.

Jitted by themselves, as other parts of a layer that several passes run over the same shapes, which are then traced
once: XLA compiles them as if they stood where they are called.

References:
    RMS norm: Zhang and Sennrich 2019, arXiv 1910.07467. Rotary embedding: Su et al. 2021, arXiv 2104.09864.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.jit
def rotate(x: Float[Array, "N T H E"], cos: Float[Array, "#N T half"], sin: Float[Array, "#N T half"]) -> Array:
    """Applies the rotary embedding in the split-halves convention, in float32, back to x's dtype.

    Its gradient, with respect to x alone, is turned back by the same angle.
    """
    return _rotated(x, cos, sin)


@jax.custom_vjp
def _rotated(x: Array, cos: Array, sin: Array) -> Array:
    x32 = x.astype(jnp.float32)
    cos = jnp.concatenate([cos, cos], axis=-1)[:, :, None]
    sin = jnp.concatenate([-sin, sin], axis=-1)[:, :, None]
    return (x32 * cos + jnp.roll(x32, x.shape[-1] // 2, axis=-1) * sin).astype(x.dtype)


def _rotated_forward(x: Array, cos: Array, sin: Array) -> tuple[Array, tuple[Array, Array]]:
    return _rotated(x, cos, sin), (cos, sin)


def _rotated_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, None, None]:
    cos, sin = kept
    return _rotated(gradient, cos, -sin), None, None


_rotated.defvjp(_rotated_forward, _rotated_backward)


@functools.partial(jax.jit, static_argnums=2)
def rms_norm(x: Array, scale: Array, epsilon: float) -> Array:
    """x / rms(x) * scale over the last axis, computed in float32, in x's dtype."""
    return (_normalised(x, epsilon) * scale).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _normalised(x: Array, epsilon: float) -> Array:
    """x / rms(x) over the last axis, computed in float32, in x's dtype."""
    return (x.astype(jnp.float32) * _inverse_rms(x, epsilon)).astype(x.dtype)


def _inverse_rms(x: Array, epsilon: float) -> Array:
    x32 = x.astype(jnp.float32)
    return jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + epsilon)


def _normalised_forward(x: Array, epsilon: float) -> tuple[Array, Array]:
    return _normalised(x, epsilon), x


def _normalised_backward(epsilon: float, x: Array, gradient: Array) -> tuple[Array]:
    x32, gradient32, inverse = x.astype(jnp.float32), gradient.astype(jnp.float32), _inverse_rms(x, epsilon)
    # As a product, since XLA on the CPU sums products of several gradients with the same x ten times slower.
    along = jnp.einsum("...D,...D->...", gradient32, x32, precision=jax.lax.Precision.HIGHEST)[..., None]
    return ((gradient32 * inverse - x32 * (along * inverse**3 / x.shape[-1])).astype(x.dtype),)


_normalised.defvjp(_normalised_forward, _normalised_backward)
