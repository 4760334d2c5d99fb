"""The c-probe: each rollout's gradient in the adapter's rank space, one number a rank and module."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def probe_gradients(
    loss: Callable[[dict[str, Array]], tuple[Array, Any]], ones: dict[str, Float[Array, "L N TwoR"]]
) -> tuple[dict[str, Float[Array, "L N TwoR"]], Any]:
    """The gradient of a sum of rollouts' losses with respect to the virtual scale c, at c = 1.

    A rollout's c touches only its own rows, so one backward pass serves all rollouts: the result for rollout i
    is that of its own loss, per module sum over positions of (A x) * (B^T delta).

    Args:
        loss: c -> (scalar sum over rollouts, auxiliary output); c[module] is [L, N, 2r].
        ones: `lora2r.probe_ones`.

    Returns:
        Gradients in the structure of c, float32, and the auxiliary output. docs/method.md section 4.
    """
    return jax.grad(loss, has_aux=True)(ones)


def continued_gradients(
    read: Callable[[dict[str, Array]], Any],
    loss: Callable[[dict[str, Array], Any], tuple[Array, Any]],
    ones: dict[str, Float[Array, "L Q TwoR"]],
    rows: int,
) -> tuple[dict[str, Float[Array, "L N TwoR"]], Any]:
    """`probe_gradients` of rollouts that share prompts, N = Q * rows of them, those of a prompt together.

    A prompt is read once, forward; backward every rollout needs a pass of its own through it, since what comes back
    to the prompt's keys and values differs. A rollout's gradient is the sum over its completion and its prompt.

    Args:
        read: c of the prompts -> their caches, leaves [L, Q, ...].
        loss: (c of the rollouts, caches of the rollouts' prompts, leaves [L, N, ...]) -> as in `probe_gradients`.
        ones: c = 1 of the prompts.
        rows: rollouts of a prompt.
    """
    caches, pull = jax.vjp(read, ones)
    repeated, own_ones = (jax.tree.map(lambda leaf: jnp.repeat(leaf, rows, axis=1), tree) for tree in (caches, ones))
    (own, of_caches), kept = jax.grad(loss, argnums=(0, 1), has_aux=True)(own_ones, repeated)

    def by_place(leaf: Array) -> Array:
        """[L, Q rows, ...] -> [rows, L, Q, ...]."""
        return jnp.moveaxis(leaf.reshape(leaf.shape[0], -1, rows, *leaf.shape[2:]), 2, 0)

    each = jax.tree.map(by_place, of_caches)
    [of_prompts] = jax.vmap(pull)(each)
    gathered = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 2), of_prompts)  # [L, Q, rows, 2r]
    return jax.tree.map(lambda one, other: one + other.reshape(one.shape), own, gathered), kept


def deployed_half(gradients: dict[str, Float[Array, "L N TwoR"]], modules: Sequence[str]) -> Float[Array, "N M r"]:
    """The half that routing reads, [:r], with module index = layer * len(modules) + position in `modules`."""
    rank = next(iter(gradients.values())).shape[-1] // 2
    stacked = jnp.stack([gradients[name][..., :rank] for name in modules], axis=1)  # [L, 7, N, r]
    return stacked.reshape(-1, *stacked.shape[2:]).swapaxes(0, 1)
