"""Means of the residual stream over completions: what sources that read activations are given."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vgrout_jax.model import lora2r, qwen3
from vgrout_jax.model.logprobs import left_aligned
from vgrout_jax.model.policy import Policy


def residual_means(
    config: qwen3.Qwen3Config,
    policy: Policy,
    tokens: Int[Array, "N S"],
    valid: Bool[Array, "N S"],
    completion_mask: Bool[Array, "N T"],
) -> Float[Array, "N L D"]:
    """Mean over each completion's tokens of the residual stream after every layer; 0 for a row without tokens.

    Args:
        config: shape and dtype of the model.
        policy: weights and masks.
        tokens: prompt left-padded, completion right-padded.
        valid: False on padding.
        completion_mask: tokens of the completion, the last T places.

    Returns:
        Float32; no gradient reaches anything.
    """
    bucket = tokens.shape[1] - completion_mask.shape[1]
    first, lengths = valid[:, :bucket].sum(axis=1), completion_mask.sum(axis=1)  # [N]
    aligned, attention = left_aligned(tokens, bucket - first), qwen3.aligned_attention(tokens.shape[1], config)
    places = jnp.arange(tokens.shape[1]) - first[:, None]
    weights = ((places >= 0) & (places < lengths[:, None])) / jnp.maximum(lengths, 1)[:, None]  # [N, S]
    adapter = policy.adapter
    layer = None if adapter is None else qwen3.AdapterLayer(lora2r.fuse(adapter, config.dtype), None)
    block = qwen3.Block(config, parent=None)

    def body(x: Array, inputs: tuple[dict, qwen3.AdapterLayer | None]) -> tuple[Array, Array]:
        x, _ = block.apply({"params": inputs[0]}, x, attention, inputs[1], policy.route)
        return x, jnp.einsum("NSD,NS->ND", x.astype(jnp.float32), weights)

    _, means = jax.lax.scan(body, policy.base["embed"][aligned], (policy.base["layers"], layer))
    return jax.lax.stop_gradient(jnp.swapaxes(means, 0, 1))
