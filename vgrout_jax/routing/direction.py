"""The routing direction and its bands, from per-pair probe gradients (docs/method.md sections 5 and 6).

No model in here: the gradients of both sides of every pair come in as arrays, a direction and the edges of
its score come out. Everything can be jitted, has static shapes and computes in float32. A value that is not
finite goes through to the result, so that it can be reported; it is never taken for a zero.
"""

from typing import Optional

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

POOLS = ("mean_then_band", "band_then_mean")

# Pairs that cancel leave the rounding of a float32 sum behind. A mean below this share of the mean length of
# the gradients in it is taken for that rounding: the row is zero rather than a unit vector of noise.
CANCELLATION = 1e-6
EDGE_PERCENTILE = 75.0


@struct.dataclass
class Bands:
    """Edges of the score, a band a module; with the pool `mean_then_band` every module holds the one band.

    Attributes:
        low_edge: [M] float32, 75th percentile over pairs of the clean sides' cosines.
        high_edge: [M] float32, the same of the hack sides'.
        width: [M] float32, what the score is divided by, positive where `usable`.
        usable: [M] bool, modules in the pool.
        usable_modules: [] int32, their number.
    """

    low_edge: jax.Array
    high_edge: jax.Array
    width: jax.Array
    usable: jax.Array
    usable_modules: jax.Array


@struct.dataclass
class Routing:
    """What the gate of a step needs from the pairs.

    Attributes:
        v: [M, R] float32, unit or zero rows.
        bands: the bands of `v`.
        random: a random direction with its bands, for a placebo that needs one beside the real one; else None.
    """

    v: jax.Array
    bands: Bands
    random: Optional["Routing"] = None


def unit(x: Float[Array, "*batch R"]) -> Float[Array, "*batch R"]:
    """Rows of `x` divided by their length, in float32; a zero row stays zero, with a zero gradient.

    Rows are divided by their largest entry first, so that no square overflows or underflows.

    Returns:
        Rows of length 1 or 0; NaN where a row is not finite.
    """
    x = x.astype(jnp.float32)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    zero = largest == 0  # false for NaN, which must not become a zero
    scaled = x / jnp.where(zero, 1.0, largest)
    square = jnp.where(zero, 1.0, jnp.sum(scaled * scaled, axis=-1, keepdims=True))
    return jnp.where(zero, 0.0, scaled / jnp.sqrt(square))


def cosines(g: Float[Array, "N M R"], v: Float[Array, "M R"] | Float[Array, "N M R"]) -> Float[Array, "N M"]:
    """Cosine of every row's gradient with the direction, per module (docs/method.md section 6).

    cos[i, k] = <g[i, k], v[k]> / (|g[i, k]| |v[k]|), and 0 where g[i, k] or v[k] is zero. Invariant to
    positive factors of either.

    Returns:
        Float32 in [-1, 1] up to rounding.
    """
    # A product and a sum rather than a matrix product, which accelerators may round to fewer bits.
    return jnp.sum(unit(g) * unit(v), axis=-1)


def directions_from_pairs(
    hack: Float[Array, "P M R"], clean: Float[Array, "P M R"], *, unit_sides: bool
) -> Float[Array, "M R"]:
    """The direction from clean to hack (docs/method.md section 5).

    v[k] = unit(mean_p(hack[p, k] - clean[p, k])). With `unit_sides` each side is first brought to unit length
    per pair and module; a zero side stays zero. A row whose pairs cancel is zero: below a length of
    1e-6 mean_p(|hack| + |clean|) the mean is the rounding of a float32 sum.

    Returns:
        Float32, rows of length 1 or 0, in the module order of the gradients.
    """
    pairs = hack.shape[0]
    return _mean_directions(hack, clean, jnp.full((1, pairs), 1.0 / pairs), unit_sides)[0]


def leave_one_out_directions(
    hack: Float[Array, "P M R"], clean: Float[Array, "P M R"], *, unit_sides: bool
) -> Float[Array, "P M R"]:
    """For each pair the direction of all the other pairs, as `directions_from_pairs` makes it.

    Raises:
        ValueError: fewer than two pairs.
    """
    pairs = hack.shape[0]
    if pairs < 2:
        raise ValueError(f"gate.leave_one_out must have at least 2 pairs, got {pairs}: add pairs or set it to False")
    return _mean_directions(hack, clean, (1.0 - jnp.eye(pairs)) / (pairs - 1), unit_sides)


def _mean_directions(
    hack: Float[Array, "P M R"], clean: Float[Array, "P M R"], weights: Float[Array, "K P"], unit_sides: bool
) -> Float[Array, "K M R"]:
    """Unit weighted means over pairs of hack - clean, one for each row of weights."""
    hack, clean = hack.astype(jnp.float32), clean.astype(jnp.float32)
    if unit_sides:
        hack, clean = unit(hack), unit(clean)
    else:
        # One factor a module leaves the direction as it is and keeps the squares below in range.
        largest = jnp.max(jnp.maximum(jnp.abs(hack), jnp.abs(clean)), axis=(0, 2), keepdims=True)
        largest = jax.lax.stop_gradient(jnp.where(largest == 0, 1.0, largest))
        hack, clean = hack / largest, clean / largest
    # The others are summed anew: total minus own would lose small pairs beside a large one.
    mean = jnp.einsum("KP,PMR->KMR", weights, hack - clean, precision="highest")
    lengths = jnp.linalg.norm(hack, axis=-1) + jnp.linalg.norm(clean, axis=-1)  # [P, M]
    size = jnp.einsum("KP,PM->KM", weights, lengths, precision="highest")
    cancelled = jnp.linalg.norm(mean, axis=-1) <= CANCELLATION * size
    return unit(jnp.where(cancelled[..., None], 0.0, mean))


def haar_direction(key: jax.Array, modules: int, rank: int) -> Float[Array, "{modules} {rank}"]:
    """A random direction: rows uniform on the unit sphere and independent (normal draws, normalised)."""
    return unit(jax.random.normal(key, (modules, rank), jnp.float32))


def pair_cosines(
    hack: Float[Array, "P M R"],
    clean: Float[Array, "P M R"],
    v: Float[Array, "M R"] | Float[Array, "P M R"],
) -> tuple[Float[Array, "P M"], Float[Array, "P M"]]:
    """Cosines of both sides of every pair with one direction, or with a direction a pair (leave-one-out).

    Returns:
        The hack sides' and the clean sides' cosines, 0 where a gradient or its direction is zero.
    """
    return cosines(hack, v), cosines(clean, v)


def make_bands(
    hack_cosines: Float[Array, "P M"],
    clean_cosines: Float[Array, "P M"],
    v: Float[Array, "M R"],
    *,
    pool: str,
    band_floor: float,
) -> Bands:
    """Band edges: 75th percentiles over pairs of the clean (low) and the hack (high) cosines.

    Percentiles interpolate linearly. `mean_then_band`: percentiles of the mean cosine over modules that have
    a direction; one band for all, and width = max(high - low, band_floor). `band_then_mean`: percentiles and
    width = high - low per module, and a module with width < band_floor is left out. Modules whose row of `v`
    is zero are in no pool (docs/method.md section 6).

    Raises:
        ValueError: an unknown pool, or a floor that is not positive.
    """
    if pool not in POOLS:
        raise ValueError(f"gate.pool must be one of {POOLS}, got {pool!r}")
    if not band_floor > 0:
        raise ValueError(f"gate.band_floor must be > 0, got {band_floor}")
    usable = jnp.any(v != 0, axis=-1)  # [M]
    if pool == "mean_then_band":
        hack_cosines = jnp.broadcast_to(_mean_of_usable(hack_cosines, usable)[:, None], hack_cosines.shape)
        clean_cosines = jnp.broadcast_to(_mean_of_usable(clean_cosines, usable)[:, None], clean_cosines.shape)
    low_edge = jnp.percentile(clean_cosines, EDGE_PERCENTILE, axis=0)
    high_edge = jnp.percentile(hack_cosines, EDGE_PERCENTILE, axis=0)
    width = high_edge - low_edge
    if pool == "mean_then_band":
        width = jnp.maximum(width, band_floor)
    else:
        usable = usable & ~(width < band_floor)  # a width of NaN stays in, so that the scores report it
    return Bands(low_edge, high_edge, width, usable, jnp.sum(usable, dtype=jnp.int32))


def _mean_of_usable(values: Float[Array, "N M"], usable: Bool[Array, "M"]) -> Float[Array, "N"]:
    """Mean over usable modules; 0 where there is none."""
    return jnp.sum(jnp.where(usable, values, 0.0), axis=-1) / jnp.maximum(jnp.sum(usable), 1)


def scores(g: Float[Array, "N M R"], v: Float[Array, "M R"], bands: Bands) -> Float[Array, "N"]:
    """Score of every row: z = mean of (cos - low_edge) / width over the modules in the pool.

    With one band for all modules this is (mean cos - low_edge) / width, so both pools of docs/method.md
    section 6 share it.

    Returns:
        Float32; 0 where no module is usable; not finite where a gradient, direction or band is not.
    """
    width = jnp.where(bands.usable, bands.width, 1.0)
    return _mean_of_usable((cosines(g, v) - bands.low_edge) / width, bands.usable)


def check_routing(routing: Routing, *, needs_module: bool) -> None:
    """Stops a run, on the host, whose direction or bands cannot be used.

    Raises:
        ValueError: a value that is not finite; or no usable module where one is needed. (For a placebo that is an
            event to count: the gate then labels every rollout clean.)
    """
    for name, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(routing)):
        if not np.isfinite(leaf).all():
            raise ValueError(f"routing{jax.tree_util.keystr(name)} must be finite: the pairs' gradients are not")
    if needs_module and int(routing.bands.usable_modules) == 0:
        raise ValueError(
            "the routing direction must have at least 1 usable module, got 0: the pairs cancel or every "
            "band is below gate.band_floor; use other pairs, gate.pool=mean_then_band or a lower floor"
        )
