"""Token log-probabilities of a policy: the base model, with or without the adapter, under per-rollout masks."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vgrout_jax.model import lora2r, qwen3


def completion_logprobs(
    config: qwen3.Qwen3Config,
    base: dict,
    tokens: Int[Array, "N S"],
    valid: Bool[Array, "N S"],
    *,
    completion_length: int,
    chunk: int,
    adapter: lora2r.Adapter | None = None,
    route: lora2r.Route | None = None,
    scale: dict[str, Array] | None = None,
) -> Float[Array, "N T"]:
    """log pi(token | everything before it) of the last `completion_length` tokens, at temperature 1, untruncated.

    Args:
        config: shape and dtype of the model.
        base: frozen parameters.
        tokens: prompt left-padded, completion right-padded.
        valid: False on padding.
        completion_length: T; the first completion token stands at S - T.
        chunk: tokens whose [chunk, V] logits exist at one time.
        adapter: None is the base model alone, the KL reference.
        route: the masks (m, d); needed with an adapter.
        scale: c of the probe, module -> [L, N, 2r], or None.

    Returns:
        Float32 log-probabilities; those of padding mean nothing and must be masked by the caller.

    Reference: docs/method.md sections 7 and 8.
    """
    layer = None
    if adapter is not None:
        layer = qwen3.AdapterLayer(lora2r.fuse(adapter, config.dtype), scale)
    attention = qwen3.causal_attention(valid, config)
    hidden, _ = qwen3.Qwen3(config).apply({"params": base}, tokens, attention, layer, route)
    before = hidden[:, -completion_length - 1 : -1]
    return token_logprobs(base, before, tokens[:, -completion_length:], chunk=chunk)


def token_logprobs(
    base: dict, hidden: Float[Array, "N T D"], targets: Int[Array, "N T"], *, chunk: int
) -> Float[Array, "N T"]:
    """log softmax(unembed(hidden))[targets] in float32, `chunk` tokens at a time.

    The logits of a chunk are recomputed in the backward pass, so that [N, T, V] never exists.
    """
    rows, length, width = hidden.shape
    count = rows * length
    chunk = min(chunk, count)
    padding = -count % chunk
    flat_hidden = jnp.pad(hidden.reshape(count, width), ((0, padding), (0, 0)))
    flat_targets = jnp.pad(targets.reshape(count), (0, padding))

    @jax.checkpoint
    def of_chunk(inputs: tuple[Array, Array]) -> Array:
        chunk_hidden, chunk_targets = inputs
        logits = qwen3.unembed(base, chunk_hidden)  # [chunk, V]
        chosen = jnp.take_along_axis(logits, chunk_targets[:, None], axis=-1)[:, 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    chunks = (flat_hidden.reshape(-1, chunk, width), flat_targets.reshape(-1, chunk))
    return jax.lax.map(of_chunk, chunks).reshape(-1)[:count].reshape(rows, length)
