"""Token log-probabilities of a policy: the base model, with or without the adapter, under per-rollout masks."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vgrout_jax.model import head, lora2r, packed_attention, qwen3
from vgrout_jax.model.policy import Policy


def completion_logprobs(
    config: qwen3.Qwen3Config,
    policy: Policy,
    tokens: Int[Array, "N S"],
    valid: Bool[Array, "N S"],
    *,
    completion_length: int,
    chunk: int,
) -> Float[Array, "N T"]:
    """log pi(token | everything before it) of the last `completion_length` tokens, at temperature 1, untruncated.

    Args:
        config: shape and dtype of the model.
        policy: weights, masks and scale.
        tokens: prompt left-padded, completion right-padded.
        valid: False on padding; the valid tokens of a row stand together.
        completion_length: T; the first completion token stands at S - T.
        chunk: tokens whose [chunk, V] logits exist at one time.

    Returns:
        Float32 log-probabilities; those of padding mean nothing and must be masked by the caller.

    Raises:
        ValueError: no prompt token is left before the completion.

    Reference: docs/method.md sections 7 and 8.
    """
    if not 0 < completion_length < tokens.shape[1]:
        limit = tokens.shape[1] - 1
        raise ValueError(f"completion_length must be between 1 and S - 1 = {limit}, got {completion_length}")
    layer = _layer(config, policy)
    prompt_lengths = jnp.sum(valid[:, :-completion_length], axis=1)
    aligned = left_aligned(tokens, tokens.shape[1] - completion_length - prompt_lengths)
    attention = qwen3.aligned_attention(tokens.shape[1], config)
    hidden = qwen3.Qwen3(config).apply({"params": policy.base}, aligned, attention, layer, policy.route)
    # Each completion token is read at the position before it.
    rows, positions = jnp.arange(len(hidden))[:, None], prompt_lengths[:, None] - 1 + jnp.arange(completion_length)
    before = hidden.at[rows, positions].get(unique_indices=True, indices_are_sorted=True, mode="clip")
    return head.token_logprobs(policy.base, before, tokens[:, -completion_length:], chunk=chunk)


def prompt_caches(
    config: qwen3.Qwen3Config,
    policy: Policy,
    prompts: Int[Array, "Q B"],
    valid: Bool[Array, "Q B"],
) -> tuple[Float[Array, "L Q B K E"], Float[Array, "L Q B K E"]]:
    """Keys and values of prompts, for `continued_logprobs`; a prompt's first token comes first, its padding last.

    Arguments as of `completion_logprobs`.
    """
    lengths = jnp.sum(valid, axis=1)
    aligned, attention = (
        left_aligned(prompts, valid.shape[1] - lengths),
        qwen3.aligned_attention(valid.shape[1], config),
    )
    layer = _layer(config, policy)
    return qwen3.keys_and_values(config, policy.base, aligned, attention, layer, policy.route)


def continued_logprobs(
    config: qwen3.Qwen3Config,
    policy: Policy,
    caches: tuple[Float[Array, "L N B K E"], Float[Array, "L N B K E"]],
    prompt_lengths: Int[Array, " N"],
    tokens: Int[Array, "N TplusOne"],
    *,
    chunk: int,
) -> Float[Array, "N T"]:
    """`completion_logprobs` where the prompts have been read before.

    Args:
        config, policy, chunk: as there.
        caches: of every row's prompt, of `prompt_caches`.
        prompt_lengths: tokens of every row's prompt.
        tokens: the prompt's last token, which is read once more, and the completion.
    """
    inputs, slots = tokens[:, :-1], caches[0].shape[2]
    attention = qwen3.continued_attention(prompt_lengths - 1, inputs.shape[1], slots, config)
    layer = _layer(config, policy)
    hidden = qwen3.Qwen3(config).apply({"params": policy.base}, inputs, attention, layer, policy.route, before=caches)
    return head.token_logprobs(policy.base, hidden, tokens[:, 1:], chunk=chunk)


def packed_logprobs(
    config: qwen3.Qwen3Config,
    policy: Policy,
    caches: tuple[Float[Array, "L N B K E"], Float[Array, "L N B K E"]],
    prompt_lengths: Int[Array, " N"],
    tokens: Int[Array, "N TplusOne"],
    lengths: Int[Array, " N"],
    *,
    positions: int,
    chunk: int,
) -> Float[Array, "N T"]:
    """`continued_logprobs` that reads no padding: completions stand end to end, every token a row of its own.

    Args:
        config, policy, caches, prompt_lengths, tokens, chunk: as there.
        lengths: tokens of every completion; those of length 0 come last.
        positions: at least as many as all completions have tokens; the products run over these.

    Returns:
        Log-probabilities, 0 behind a completion's end.
    """
    packed = packed_attention.lay(lengths, prompt_lengths - 1, positions=positions, longest=tokens.shape[1] - 1)
    inputs, targets = packed_attention.pack(tokens[:, :-1], packed), packed_attention.pack(tokens[:, 1:], packed)
    whose = jnp.minimum(packed.sequence, lengths.size - 1)
    route = jax.tree.map(lambda mask: mask[whose], policy.route)
    scale = jax.tree.map(lambda values: packed_attention.to_tokens(values, packed), policy.scale)
    policy = policy.replace(route=route, scale=scale)
    attention = qwen3.packed_attention(packed, config)
    layer = _layer(config, policy)
    hidden = qwen3.Qwen3(config).apply(
        {"params": policy.base}, inputs[:, None], attention, layer, route, before=caches
    )
    found = head.token_logprobs(policy.base, hidden[None, :, 0], targets[None], chunk=chunk)
    return packed_attention.unpack(found[0], packed)


def _layer(config: qwen3.Qwen3Config, policy: Policy) -> qwen3.AdapterLayer | None:
    if policy.adapter is None:
        return None
    return qwen3.AdapterLayer(lora2r.fuse(policy.adapter, config.dtype), policy.scale)


def left_aligned(tokens: Int[Array, "N S"], left: Int[Array, " N"]) -> Int[Array, "N S"]:
    """Every row from its token `left` on, so that the padding before the prompt comes last."""
    places = (jnp.arange(tokens.shape[1]) + left[:, None]) % tokens.shape[1]
    return jnp.take_along_axis(tokens, places, axis=1)
