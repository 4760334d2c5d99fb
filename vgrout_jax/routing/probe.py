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


def deployed_half(gradients: dict[str, Float[Array, "L N TwoR"]], modules: Sequence[str]) -> Float[Array, "N M r"]:
    """The half that routing reads, [:r], with module index = layer * len(modules) + position in `modules`."""
    rank = next(iter(gradients.values())).shape[-1] // 2
    stacked = jnp.stack([gradients[name][..., :rank] for name in modules], axis=1)  # [L, 7, N, r]
    return stacked.reshape(-1, *stacked.shape[2:]).swapaxes(0, 1)
