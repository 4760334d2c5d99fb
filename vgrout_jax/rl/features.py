"""What sources that read activations see of a batch: one forward pass of the deployed policy, no gradient."""

import jax
from jaxtyping import Array, Float

from vgrout_jax.model import lora2r, qwen3
from vgrout_jax.model.policy import Frozen
from vgrout_jax.model.residuals import residual_means
from vgrout_jax.rl.state import Batch, TrainState


def rollout_features(
    model: qwen3.Qwen3Config, state: TrainState, frozen: Frozen, batch: Batch, *, micro_batch: int
) -> Float[Array, "N L D"]:
    """`residuals.residual_means` of every rollout, `micro_batch` (which divides N) at a time, quarantine ablated."""
    policy = frozen.policy(state.deltas, lora2r.ablated_route(micro_batch))

    def body(_: None, rows: tuple[Array, Array, Array]) -> tuple[None, Array]:
        return None, residual_means(model, policy, *rows)

    leaves = (batch.tokens, batch.valid, batch.completion_mask)
    chunks = tuple(leaf.reshape(-1, micro_batch, leaf.shape[1]) for leaf in leaves)
    with jax.named_scope("features"):
        _, found = jax.lax.scan(body, None, chunks)
    return found.reshape(-1, *found.shape[2:])
