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


def through_prompts(
    own: dict[str, Float[Array, "L N TwoR"]],
    of_caches: Any,
    pull: Callable[[Any], tuple[dict[str, Float[Array, "L Q TwoR"]]]],
    rows: int,
) -> dict[str, Float[Array, "L N TwoR"]]:
    """`probe_gradients` of rollouts that share prompts, N = Q * rows of them, those of a prompt together.

    A prompt is read once, forward; backward every rollout needs a pass of its own through it, since what comes back
    to the prompt's keys and values differs. A rollout's gradient is the sum over its completion and its prompt.

    Args:
        own: gradients with respect to c of the rollouts' completions.
        of_caches: gradients with respect to what each rollout reads of its prompt, leaves [L, V, N, ...].
        pull: from gradients of the prompts' caches, leaves [L, V, Q, ...], to those with respect to their c.
        rows: rollouts of a prompt.
    """

    def by_place(leaf: Array) -> Array:
        """[L, V, Q rows, ...] -> [rows, L, V, Q, ...]."""
        return jnp.moveaxis(leaf.reshape(*leaf.shape[:2], -1, rows, *leaf.shape[3:]), 3, 0)

    [of_prompts] = jax.vmap(pull)(jax.tree.map(by_place, of_caches))
    gathered = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 2), of_prompts)  # [L, Q, rows, 2r]
    return jax.tree.map(lambda one, other: one + other.reshape(one.shape), own, gathered)


def deployed_half(gradients: dict[str, Float[Array, "L N TwoR"]], modules: Sequence[str]) -> Float[Array, "N M r"]:
    """The half that routing reads, [:r], with module index = layer * len(modules) + position in `modules`."""
    rank = next(iter(gradients.values())).shape[-1] // 2
    stacked = jnp.stack([gradients[name][..., :rank] for name in modules], axis=1)  # [L, 7, N, r]
    return stacked.reshape(-1, *stacked.shape[2:]).swapaxes(0, 1)
