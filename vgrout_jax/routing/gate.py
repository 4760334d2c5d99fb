"""The gate: from a rollout's probe gradient to its label (docs/method.md sections 3, 5 and 6).

A pure function of gradients, direction, bands and thresholds. It never sees a reward, a grader's verdict or
any ground-truth label, and nothing in it leaves the device.
"""

from typing import Optional

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from vgrout_jax.routing.direction import PLACEBOS, Routing, scores

CLEAN, MID, HACK = 0, 1, 2
KINDS = ("route", "clean", "mid")
SCORE_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@struct.dataclass
class GateResult:
    """Labels of a step's rollouts and what led to them.

    Attributes:
        labels: [N] int32, CLEAN, MID or HACK.
        scores: [N] float32, z against `Routing.v`; 0 where `scored` is False and for pinned kinds.
        scored: [N] bool, rollouts that the zone shares speak of: advantage other than zero and, unless the
            kind is pinned, a usable module.
        finite: [] bool. False: some gradient or score is not finite, the labels mean nothing, and the host
            must stop the run.
        usable_modules: [] int32, modules in the pool (of both directions the fewer); 0 is an event to count,
            and the value of pinned kinds.
        placebo_scores: [N] float32, z against `Routing.placebo_v` for the placebo `direction_matched`, else
            None.
    """

    labels: jax.Array
    scores: jax.Array
    scored: jax.Array
    finite: jax.Array
    usable_modules: jax.Array
    placebo_scores: Optional[jax.Array] = None


def labels_from_scores(z: Float[Array, "N"], scored: Bool[Array, "N"], *, low: float, high: float) -> Int[Array, "N"]:
    """z <= low is clean, z >= high is hack, mid between; rollouts without a score are clean.

    A score that is not finite comes out clean so that the program has a value to go on with; it is
    `GateResult.finite` that reports it.

    Raises:
        ValueError: low is not below high.
    """
    if not low < high:
        raise ValueError(f"gate.low must be < gate.high, got {low} and {high}")
    labels = jnp.where(z <= low, CLEAN, jnp.where(z >= high, HACK, MID))
    return jnp.where(scored & jnp.isfinite(z), labels, CLEAN).astype(jnp.int32)


def matched_labels(
    real_labels: Int[Array, "N"], random_scores: Float[Array, "N"], scored: Bool[Array, "N"]
) -> Int[Array, "N"]:
    """As many clean, mid and hack labels as the real gate gave, in the order of other scores.

    Among rollouts with a score the highest `random_scores` get the hack labels, the next the mid labels.
    Equal scores are taken in the order of rows. Rollouts without a score stay clean.
    """
    hacks = jnp.sum(scored & (real_labels == HACK))
    mids = jnp.sum(scored & (real_labels == MID))
    order = jnp.lexsort((-random_scores, ~scored))  # rows with a score first, the highest of them at the head
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=order.dtype))
    labels = jnp.where(rank < hacks, HACK, jnp.where(rank < hacks + mids, MID, CLEAN))
    return jnp.where(scored, labels, CLEAN).astype(jnp.int32)


def permuted_labels(key: jax.Array, labels: Int[Array, "N"], scored: Bool[Array, "N"]) -> Int[Array, "N"]:
    """The labels of rollouts with a score, permuted uniformly among them; the others stay clean."""
    # Handing the labels out along a random order is a permutation; whole numbers, so that no two are equal.
    order = jax.random.permutation(key, labels.shape[0])
    return matched_labels(labels, order.astype(jnp.float32), scored)


def route_masks(labels: Int[Array, "N"]) -> tuple[Bool[Array, "N"], Bool[Array, "N"]]:
    """The masks (quarantine_on, detach_deployed), which are (m, d) of docs/method.md section 3.

    Clean (0, 0), mid (1, 0), hack (1, 1); (0, 1) cannot come out.
    """
    return labels != CLEAN, labels == HACK


def zone_shares(labels: Int[Array, "N"], scored: Bool[Array, "N"]) -> Float[Array, "3"]:
    """Shares of clean, mid and hack among rollouts with a score; zeros where there is none."""
    zones = jnp.arange(3)[:, None] == labels  # [3, N]
    return jnp.sum(zones & scored, axis=-1) / jnp.maximum(jnp.sum(scored), 1).astype(jnp.float32)


def score_quantiles(
    z: Float[Array, "N"], scored: Bool[Array, "N"], quantiles: tuple[float, ...] = SCORE_QUANTILES
) -> Float[Array, "Q"]:
    """Quantiles of the score over rollouts that have one, linear interpolation; zeros where there is none."""
    ordered = jnp.sort(jnp.where(scored, z, jnp.inf))
    last = jnp.maximum(jnp.sum(scored) - 1, 0)
    position = jnp.asarray(quantiles, jnp.float32) * last
    below = jnp.floor(position).astype(jnp.int32)
    lower, upper = ordered[below], ordered[jnp.minimum(below + 1, last)]
    between = lower + (position - below) * (upper - lower)
    return jnp.where(jnp.any(scored), between, 0.0)


def gate(
    g: Optional[Float[Array, "N M R"]],
    routing: Optional[Routing],
    scored: Bool[Array, "N"],
    key: Optional[jax.Array],
    *,
    kind: str,
    placebo: Optional[str],
    low: float,
    high: float,
) -> GateResult:
    """Labels of a step's rollouts (docs/method.md sections 5, 6 and 10).

    `kind` and `placebo` are chosen once, outside the trace. `clean` and `mid` are pinned: every rollout gets
    that label, and `g`, `routing` and `key` are not read. `route` labels by score, as real gate or as one of
    the placebos; `key` is read by the placebo `labels` alone. Without a usable module no rollout has a score,
    and all are clean.

    Args:
        g: probe gradients of the deployed block, the advantage's sign in them.
        routing: direction and bands, see `build_routing`.
        scored: rollouts whose advantage is not zero.
        key: this step's own key.

    Raises:
        ValueError: an unknown kind or placebo, thresholds out of order, or an argument that the kind needs.
    """
    _check_arguments(g, routing, key, kind, placebo)
    if kind != "route":
        return _pinned(MID if kind == "mid" else CLEAN, scored)
    z = scores(g, routing.v, routing.bands)
    finite = jnp.all(jnp.isfinite(g)) & jnp.all(jnp.isfinite(z))
    usable_modules = routing.bands.usable_modules
    random_z = None
    if placebo == "direction_matched":
        random_z = scores(g, routing.placebo_v, routing.placebo_bands)
        finite = finite & jnp.all(jnp.isfinite(random_z))
        usable_modules = jnp.minimum(usable_modules, routing.placebo_bands.usable_modules)
    scored = scored & (usable_modules > 0)
    labels = labels_from_scores(z, scored, low=low, high=high)
    if placebo == "direction_matched":
        labels = matched_labels(labels, random_z, scored)
        random_z = jnp.where(scored, random_z, 0.0)
    elif placebo == "labels":
        labels = permuted_labels(key, labels, scored)
    return GateResult(labels, jnp.where(scored, z, 0.0), scored, finite, usable_modules, random_z)


def _pinned(label: int, scored: Bool[Array, "N"]) -> GateResult:
    """One label for every rollout, those with zero advantage included, and no scores."""
    return GateResult(
        labels=jnp.full(scored.shape, label, jnp.int32),
        scores=jnp.zeros(scored.shape, jnp.float32),
        scored=scored,
        finite=jnp.array(True),
        usable_modules=jnp.array(0, jnp.int32),
    )


def _check_arguments(
    g: Optional[Array],
    routing: Optional[Routing],
    key: Optional[jax.Array],
    kind: str,
    placebo: Optional[str],
) -> None:
    """Raises where the kind is unknown or an argument that it reads is missing."""
    if kind not in KINDS:
        raise ValueError(f"gate.kind must be one of {KINDS}, got {kind!r}")
    if placebo is not None and placebo not in PLACEBOS:
        raise ValueError(f"placebo.kind must be one of {PLACEBOS} or None, got {placebo!r}")
    if placebo is not None and kind != "route":
        raise ValueError(f"gate.kind must be 'route' where placebo.kind={placebo!r}, got {kind!r}")
    if kind == "route" and (g is None or routing is None):
        raise ValueError("gate.kind='route' needs probe gradients and a routing, got None: run pass 1 first")
    if placebo == "direction_matched" and (routing.placebo_v is None or routing.placebo_bands is None):
        raise ValueError("placebo.kind='direction_matched' needs routing.placebo_v, got None")
    if placebo == "labels" and key is None:
        raise ValueError("placebo.kind='labels' needs a key, got None")
