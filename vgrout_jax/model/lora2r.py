"""LoRA2r: one rank-2r adapter a linear map, a deployed block [:r] and a quarantine block [r:].

For a linear map with input x and per block b, with A = A0 + dA and B = B0 + dB,

    out_b = dB_b (c_b * h_b) + B0_b (k_b + (c_b - 1) * h_b),    h_b = A_b x,    k_b = dA_b x

which equals B_b (c_b * h_b) - B0_b A0_b x, is exactly 0.0 where dA = dB = 0 and c = 1, and keeps its accuracy
in bfloat16 (docs/method.md section 2). At c = 1 its derivative in c is that of the c-probe, (A x) * (B^T delta),
and the probe costs no matrix product of its own.

References:
    LoRA: Hu et al. 2021, arXiv 2106.09685. Masks: Shilov et al. 2025, arXiv 2512.05648.
"""

import functools
import hashlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# Logical axes of the leaves; `rank`, the side of rank space, is never sharded.
FACTOR_AXES = {"a": ("layers", "rank", "adapter_in"), "b": ("layers", "adapter_out", "rank")}


@struct.dataclass
class Factors:
    """A pair of low-rank factors for every adapted map.

    Attributes:
        a: module -> [L, 2r, d_in] float32.
        b: module -> [L, d_out, 2r] float32.
    """

    a: dict[str, jax.Array]
    b: dict[str, jax.Array]


@struct.dataclass
class Adapter:
    """What a forward pass needs of the adapter.

    Attributes:
        init: the frozen initial values A0, B0.
        deltas: the trained differences dA, dB.
    """

    init: Factors
    deltas: Factors


@struct.dataclass
class Route:
    """Per-rollout masks (docs/method.md section 3).

    Attributes:
        quarantine_on: m, [N] bool. False: the quarantine adds nothing and gets no gradient.
        detach_deployed: d, [N] bool, or None for nowhere. True: the deployed block runs but gets no gradient.
    """

    quarantine_on: jax.Array
    detach_deployed: jax.Array | None = None


def ablated_route(rows: int) -> Route:
    """The route of the deployed policy: the quarantine is off in all `rows`."""
    return Route(quarantine_on=jnp.zeros(rows, bool))


def full_route(rows: int) -> Route:
    """The route of the policy as trained: both blocks are on in all `rows`."""
    return Route(quarantine_on=jnp.ones(rows, bool))


def init_factors(module_shapes: Mapping[str, tuple[int, int]], layers: int, rank: int, *, seed: int) -> Factors:
    """Draws A0 ~ Normal(0, 1/d_in) and B0 ~ Normal(0, 1/(2r)) on the host, in float32 NumPy arrays.

    Every layer's module has a generator of its own, keyed by (`seed`, its name, the factor), so a value depends
    neither on the stacking of layers nor on devices (docs/method.md section 2).

    Args:
        module_shapes: module -> (d_in, d_out).
        layers: L.
        rank: r of each block.
        seed: `adapter.seed`.

    Returns:
        Factors of NumPy arrays, a[module] [L, 2r, d_in] and b[module] [L, d_out, 2r].
    """

    def draw(name: str, factor: str, shape: tuple[int, int], scale: float) -> np.ndarray:
        per_layer = [_normals(seed, f"layers.{layer}.{name}.{factor}", shape) for layer in range(layers)]
        return (np.stack(per_layer) * scale).astype(np.float32)

    a = {n: draw(n, "A", (2 * rank, d_in), d_in**-0.5) for n, (d_in, _) in module_shapes.items()}
    b = {n: draw(n, "B", (d_out, 2 * rank), (2 * rank) ** -0.5) for n, (_, d_out) in module_shapes.items()}
    return Factors(a=a, b=b)


def _normals(seed: int, name: str, shape: tuple[int, int]) -> np.ndarray:
    """Standard normals from Philox keyed by SHA-256 of (seed, name), by the Box-Muller formula.

    The formula is spelled out because NumPy may change how `Generator.normal` maps bits to values between
    versions; the bits of a named bit generator are guaranteed.
    """
    digest = hashlib.sha256(f"vgrout_jax/lora2r/{seed}/{name}".encode()).digest()
    bits = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    half = (int(np.prod(shape)) + 1) // 2
    raw = bits.random_raw(2 * half)
    uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # in (0, 1)
    radius = np.sqrt(-2.0 * np.log(uniform[:half]))
    angle = 2.0 * np.pi * uniform[half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[: np.prod(shape)].reshape(shape)


def zero_deltas(init: Factors) -> Factors:
    """dA = dB = 0, in the shapes of `init`."""
    return jax.tree.map(jnp.zeros_like, init)


def ablate(deltas: Factors) -> Factors:
    """The deployed adapter: dA[r:] and dB[:, r:] set to zero, the deployed block untouched."""

    def keep_a(leaf: jax.Array) -> jax.Array:
        return leaf.at[..., leaf.shape[-2] // 2 :, :].set(0.0)

    def keep_b(leaf: jax.Array) -> jax.Array:
        return leaf.at[..., leaf.shape[-1] // 2 :].set(0.0)

    return Factors(a=jax.tree.map(keep_a, deltas.a), b=jax.tree.map(keep_b, deltas.b))


@functools.partial(jax.jit, static_argnums=1)
def fuse(adapter: Adapter, dtype: jax.typing.DTypeLike) -> Factors:
    """Stacks the factors so that one pair of thin products computes the adapter: [A; dA] and [dB, B0].

    Returns:
        Factors in `dtype`, a[module] [L, 4r, d_in] and b[module] [L, d_out, 4r], for `apply_fused`.
    """

    def down(initial: jax.Array, delta: jax.Array) -> jax.Array:
        return jnp.concatenate([initial + delta, delta], axis=-2).astype(dtype)

    def up(initial: jax.Array, delta: jax.Array) -> jax.Array:
        return jnp.concatenate([delta, initial], axis=-1).astype(dtype)

    return Factors(
        a={n: down(adapter.init.a[n], adapter.deltas.a[n]) for n in adapter.init.a},
        b={n: up(adapter.init.b[n], adapter.deltas.b[n]) for n in adapter.init.b},
    )


@jax.jit
def apply_fused(
    x: Float[Array, "N T D"],
    down: Float[Array, "FourR D"],
    up: Float[Array, "F FourR"],
    route: Route,
    scale: Float[Array, "N TwoR"] | None = None,
) -> Float[Array, "N T F"]:
    """The adapter's output for one linear map, gated per rollout.

        y = W x + where(d, stop_gradient(out_deployed), out_deployed) + where(m, out_quarantine, 0)

    Both gates act in rank space, which is the same in value and in gradient.

    Args:
        x: the map's input.
        down: [A; dA], rows ordered deployed, quarantine, deployed, quarantine.
        up: [dB, B0], columns in the same order.
        route: the masks (m, d).
        scale: c, ones in value, or None where no probe is read.

    Returns:
        The sum of both blocks' outputs, in x's dtype.

    Reference: docs/method.md sections 2 to 4.
    """
    inner = checkpoint_name(_down(x, down), "product")
    if scale is not None:
        h, k = jnp.split(inner, 2, axis=-1)  # A x and dA x, each [N, T, 2r]
        # As a product, whose gradient is one too: XLA's sum over tokens is slow on the CPU where rollouts share h.
        more = jnp.einsum("NR,NTR->NTR", scale - 1.0, h, precision=jax.lax.Precision.HIGHEST)
        inner = jnp.concatenate([h + more, k + more], axis=-1)
    deployed = np.arange(inner.shape[-1]) // (inner.shape[-1] // 4) % 2 == 0
    runs = route.quarantine_on[:, None, None] | deployed
    value = jnp.where(runs, inner, 0.0).astype(x.dtype)
    trained = value
    if route.detach_deployed is not None:
        trained = jnp.where(route.detach_deployed[:, None, None] & deployed, 0.0, value)
    return _up(jax.lax.stop_gradient(value), trained, up)


@jax.custom_vjp
def _down(x: jax.Array, down: jax.Array) -> jax.Array:
    """`x` [N, T, D] times `down` [R, D] in float32.

    Its gradients are products of arrays in x's dtype, as all others are; JAX would make them of float32 copies.
    """
    return jnp.einsum("NTD,RD->NTR", x, down, preferred_element_type=jnp.float32)


def _down_forward(x: jax.Array, down: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _down(x, down), (x, down)


def _down_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, down = kept
    gradient = gradient.astype(x.dtype)
    return jnp.einsum("NTR,RD->NTD", gradient, down), jnp.einsum("NTR,NTD->RD", gradient, x)


_down.defvjp(_down_forward, _down_backward)


@jax.custom_vjp
def _up(value: jax.Array, trained: jax.Array, up: jax.Array) -> jax.Array:
    """`value` [N, T, 4r] times `up` [F, 4r], with the gradient of `trained` times `up`.

    The columns of B0, which is frozen, get none.
    """
    return jnp.einsum("NTR,FR->NTF", value, up)


def _up_forward(value: jax.Array, trained: jax.Array, up: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _up(value, trained, up), (trained, up)


def _up_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[None, jax.Array, jax.Array]:
    trained, up = kept
    half = up.shape[1] // 2
    # The wide operand stands last: the other order, which JAX derives, transposes it on the CPU.
    of_deltas = jnp.einsum("NTR,NTF->RF", trained[..., :half], gradient)
    of_up = jnp.pad(of_deltas, ((0, half), (0, 0))).T  # XLA would make a transposition right behind it the product's
    return None, jnp.einsum("NTF,FR->NTR", gradient, up), of_up


_up.defvjp(_up_forward, _up_backward)


def probe_ones(layers: int, rows: int, rank: int) -> dict[str, Float[Array, "L N TwoR"]]:
    """c = 1 for every module, the point at which the c-probe is read."""
    return {name: jnp.ones((layers, rows, 2 * rank), jnp.float32) for name in MODULES}
