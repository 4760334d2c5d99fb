"""The gate: from a rollout's score to its label, and from that to its masks (docs/method.md sections 3 and 6)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

CLEAN, MID, HACK = 0, 1, 2


def labels_from_scores(z: Float[Array, "N"], scored: Bool[Array, "N"], *, low: float, high: float) -> Int[Array, "N"]:
    """z <= low is clean, z >= high is hack, mid between; rollouts without a score are clean.

    A score that is not finite comes out clean so that the program has a value to go on with; that it is not is
    reported apart.

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
