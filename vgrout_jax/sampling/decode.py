"""The sampler's programs: prefill, decoding up to a given token, and regrowing a cache. `sampler` runs them.

A prompt's cache exists once for all rows that continue it (`cache_attention`). Layers are scanned in the
prefill and unrolled in the decode loop, over slices that are taken once a generation: sliced inside the loop, every
weight would be copied for every token (`decode_layer`). A pass of the loop reads the token drawn last, at first
the prompt's last one over again, so that one piece of program draws every token.

Reference: docs/method.md sections 7, 8, 13 and 15.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from vgrout_jax.model import head, lora2r, norms, qwen3, sharding
from vgrout_jax.model.logprobs import prompt_caches
from vgrout_jax.model.policy import Policy
from vgrout_jax.sampling import cache_attention, decode_layer, draw_token


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the compiled programs have fixed.

    Attributes:
        config: shape and dtype of the model.
        eos_ids: ids that end a completion.
        pad_id: stands after the end of a completion.
        top_k, top_p: see `drawing.truncate`.
        mesh: splits rows over (data, fsdp) and key-value heads over tensor; None: one device.
    """

    config: qwen3.Qwen3Config
    eos_ids: tuple[int, ...]
    pad_id: int
    top_k: int
    top_p: float
    mesh: jax.sharding.Mesh | None


@struct.dataclass
class DecodeWeights:
    """The weights as the decode loop reads them.

    Attributes:
        head: what stands outside of the layers: `embed`, `final_norm` and, where it is untied, `lm_head`.
        layers: of `take_layer`.
    """

    head: dict[str, jax.Array]
    layers: tuple[decode_layer.Layer, ...]


@struct.dataclass
class Prompts:
    """What the rows that continue a source read of it.

    Attributes:
        lengths: [Q] int32, the prompt's tokens but its last one, which every row reads anew.
        caches: for each layer, keys and values [Q, K, B, E].
        seats: R, how many rows can continue a source.
    """

    lengths: jax.Array
    caches: tuple[tuple[jax.Array, jax.Array], ...]
    seats: int = struct.field(pytree_node=False)


@struct.dataclass
class Rows:
    """What stays as it is while rollouts are decoded.

    Attributes:
        seat: [N] int32, source times R plus a place among those that continue it; Q R: none.
        prompt_lengths: [N] int32.
        quarantine_on: [N] bool.
        keys: [N] PRNG keys, one a rollout.
    """

    seat: jax.Array
    prompt_lengths: jax.Array
    quarantine_on: jax.Array
    keys: jax.Array


@struct.dataclass
class State:
    """What a token changes besides the tokens themselves.

    Attributes:
        step: [] int32, index of the token to be drawn next.
        ended: [N] bool.
        token: [N] int32, to be read next: drawn last, or the prompt's last.
        caches: for each layer, keys and values [N, K, slots, E] of the prompt's last token and of the completion.
    """

    step: jax.Array
    ended: jax.Array
    token: jax.Array
    caches: tuple[tuple[jax.Array, jax.Array], ...]


@struct.dataclass
class Part:
    """Consecutive tokens of all rows; `pad_id` and 0 where the mask is False.

    Attributes:
        tokens: [N, P] int32.
        mask: [N, P] bool.
        logprobs: [N, P] float32, under the distribution drawn from.
        policy_logprobs: [N, P] float32, of the untruncated policy at temperature 1.
    """

    tokens: jax.Array
    mask: jax.Array
    logprobs: jax.Array
    policy_logprobs: jax.Array


@struct.dataclass
class Span:
    """Which tokens a call draws, and how.

    Attributes:
        first: [] int32, index of the part's first token.
        until: [] int32, index of the token before which the call ends.
        temperature: [] float32; 0 is greedy.
    """

    first: jax.Array
    until: jax.Array
    temperature: jax.Array


def prefill(
    settings: Settings,
    base: dict,
    adapter: lora2r.Adapter | None,
    prompts: Int[Array, "Q B"],
    prompt_valid: Bool[Array, "Q B"],
    source_policy: Bool[Array, " Q"],
) -> tuple[Float[Array, "L Q B K E"], Float[Array, "L Q B K E"]]:
    """Reads Q prompts, each under its policy: their keys and values in every layer, the first token's first."""
    prompts, prompt_valid, source_policy = (
        _constrain(settings, leaf, "batch") for leaf in (prompts, prompt_valid, source_policy)
    )
    route = lora2r.Route(source_policy)
    return prompt_caches(settings.config, Policy(base, adapter, route), prompts, prompt_valid)


def take_layer(
    settings: Settings,
    layers: dict,
    adapter: lora2r.Adapter | None,
    read: tuple[Float[Array, "L Q B K E"], Float[Array, "L Q B K E"]],
    index: Int[Array, ""],
) -> tuple[decode_layer.Layer, tuple[Float[Array, "Q K B E"], Float[Array, "Q K B E"]]]:
    """One layer's weights, and what was read of the prompts in it; one program for all layers."""
    config = settings.config
    parameters, adapter, cache = jax.tree.map(lambda leaf: leaf[index], (layers, adapter, read))
    cache = tuple(_constrain(settings, jnp.swapaxes(leaf, 1, 2), "batch", "kv_heads") for leaf in cache)
    factors = None if adapter is None else lora2r.fuse(adapter, config.dtype)
    by_kernel = cache_attention.kernel_serves(config, settings.mesh)
    split = _weights_are_split(settings)
    return decode_layer.arrange(parameters, factors, split=split, by_kernel=by_kernel), cache


def start(
    settings: Settings,
    prompts: Int[Array, "Q B"],
    prompt_valid: Bool[Array, "Q B"],
    source_policy: Bool[Array, " Q"],
    *,
    source_of_row: Int[Array, " N"],
    seat: Int[Array, " N"],
    active: Bool[Array, " N"],
    keys: jax.Array,
    slots: int,
) -> tuple[Int[Array, " Q"], Rows, State]:
    """How many tokens rows read of each prompt, and N rows with an empty cache of `slots` tokens each."""
    config = settings.config

    def empty() -> Array:
        shape = (source_of_row.shape[0], config.num_kv_heads, slots, config.head_dim)
        return _constrain(settings, jnp.zeros(shape, config.dtype), "batch", "kv_heads")

    lengths = jnp.sum(prompt_valid, axis=1, dtype=jnp.int32)
    rows = Rows(seat, lengths[source_of_row], source_policy[source_of_row], keys)
    caches = tuple((empty(), empty()) for _ in range(config.num_layers))
    state = State(jnp.int32(0), ~active, prompts[source_of_row, -1], caches)
    return lengths - 1, rows, state


def _weights_are_split(settings: Settings) -> bool:
    """Whether a device holds a part of a weight."""
    mesh = settings.mesh
    return mesh is not None and mesh.shape["fsdp"] * mesh.shape["tensor"] > 1


def empty_part(settings: Settings, rows: int, length: int) -> Part:
    """A part in which nothing is drawn yet."""
    tokens = _constrain(settings, jnp.full((rows, length), settings.pad_id, jnp.int32), "batch")
    zeros = _constrain(settings, jnp.zeros((rows, length), jnp.float32), "batch")
    return Part(tokens=tokens, mask=zeros > 0, logprobs=zeros, policy_logprobs=zeros)


def advance(
    settings: Settings,
    weights: DecodeWeights,
    prompts: Prompts,
    rows: Rows,
    carry: tuple[State, Part],
    span: Span,
) -> tuple[State, Part]:
    """Draws the tokens of the span, or up to the last row's end, into the part."""
    seated = cache_attention.seat_rows(rows.seat, prompts.lengths.size, prompts.seats)

    def goes_on(carry: tuple[State, Part]) -> Array:
        return (carry[0].step < span.until) & ~jnp.all(carry[0].ended)

    def draw_one(carry: tuple[State, Part]) -> tuple[State, Part]:
        state, part = carry
        hidden, caches = _read(settings, weights, prompts, seated, rows, state)
        logits = head.unembed(weights.head, hidden)  # [N, V]
        return _draw(settings, rows, logits, (state.replace(caches=caches), part), span)

    return jax.lax.while_loop(goes_on, draw_one, carry)


def regrow(settings: Settings, cache: Float[Array, "N K S E"], chosen: Int[Array, " M"], more: int) -> Array:
    """The cache of the chosen rows, [M, K, S + more, E]."""
    return _constrain(settings, jnp.pad(cache[chosen], ((0, 0), (0, 0), (0, more), (0, 0))), "batch", "kv_heads")


def choose(settings: Settings, rows: Any, chosen: Int[Array, " M"]) -> Any:
    """The chosen rows of every array of a tree."""
    return jax.tree.map(lambda leaf: _constrain(settings, leaf[chosen], "batch"), rows)


def _constrain(settings: Settings, leaf: Array, *axes: str | None) -> Array:
    """Places an array on the mesh by the names of its first axes."""
    if settings.mesh is None:
        return leaf
    axes = axes + (None,) * (leaf.ndim - len(axes))
    return jax.lax.with_sharding_constraint(leaf, sharding.sharding_of(settings.mesh, axes, leaf.shape))


def _read(
    settings: Settings, weights: DecodeWeights, prompts: Prompts, seated: Int[Array, "Q R"], rows: Rows, state: State
) -> tuple[Array, tuple[tuple[Array, Array], ...]]:
    """Reads a token: its hidden state after the final norm, [N, D], and the caches with it in."""
    config = settings.config
    by_kernel = cache_attention.kernel_serves(config, settings.mesh)
    reach = cache_attention.reach(state.step, state.ended, prompts.lengths, rows.seat, seated, by_kernel=by_kernel)
    cos, sin = qwen3.rotary((rows.prompt_lengths + state.step - 1)[:, None], config)
    shared = (qwen3.Attention(cos=cos, sin=sin), reach, rows.quarantine_on)
    read = functools.partial(decode_layer.read, config, functools.partial(_constrain, settings))
    read_layer = jax.jit(read)  # traced once for all layers
    x = _constrain(settings, weights.head["embed"][state.token][:, None], "batch")  # [N, 1, D]
    caches = []
    for layer, prompt, cache in zip(weights.layers, prompts.caches, state.caches, strict=True):
        x, cache = read_layer(layer, prompt, cache, x, *shared)
        caches.append(cache)
    return norms.rms_norm(x[:, 0], weights.head["final_norm"], config.norm_epsilon), tuple(caches)


def _draw(
    settings: Settings, rows: Rows, logits: Float[Array, "N V"], carry: tuple[State, Part], span: Span
) -> tuple[State, Part]:
    """Draws the next token of every row that has not ended, and writes it down."""
    state, part = carry
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(rows.keys, state.step)
    drawn = draw_token.draw(logits, keys, span.temperature, top_k=settings.top_k, top_p=settings.top_p)
    live = ~state.ended

    def put(array: Array, column: Array, otherwise: Array | int) -> Array:
        column = jnp.where(live, column, otherwise).astype(array.dtype)[:, None]
        return jax.lax.dynamic_update_slice_in_dim(array, column, state.step - span.first, 1)

    token, logprob, policy_logprob = drawn
    part = part.replace(
        tokens=put(part.tokens, token, settings.pad_id),
        mask=put(part.mask, live, 0),
        logprobs=put(part.logprobs, logprob, 0),
        policy_logprobs=put(part.policy_logprobs, policy_logprob, 0),
    )
    is_eos = jnp.isin(token, jnp.array(settings.eos_ids, jnp.int32))
    return state.replace(step=state.step + 1, ended=state.ended | is_eos, token=token), part
