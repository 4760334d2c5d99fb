"""Sampling from Qwen3 with a key-value cache: one prefill a prompt and policy, then a token a pass for all rows.

Prompts are left-padded to a bucket B, completions right-padded to T. Prefill runs on Q sources, each a prompt
under one policy; N rollouts then continue the sources' caches. Layers are scanned in the prefill and unrolled
in the decode loop, over slices that are taken once: sliced inside the loop, every weight would be copied for
every token. A pass of the loop reads the token drawn last, at first the prompt's last one over again, so that
one piece of program draws every token. The loop ends with the last row.

Reference: docs/method.md sections 7, 8, 13 and 15.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.experimental import io_callback
from jaxtyping import Array, Bool, Float, Int

from vgrout_jax import sharding
from vgrout_jax.model import drawing, lora2r, qwen3


@struct.dataclass
class Samples:
    """Completions and their log-probabilities; 0 and `pad_id` where the mask is False.

    Attributes:
        tokens: [N, T] int32.
        mask: [N, T] bool, True up to and including the first EOS.
        logprobs: [N, T] float32, of the sampler's own distribution: at its temperature, after top-k and
            top-p. Greedy decoding has one outcome, of log-probability 0.
        policy_logprobs: [N, T] float32, of the untruncated policy at temperature 1.
        steps: [] int32, decode passes that ran: the length of the longest completion.
    """

    tokens: jax.Array
    mask: jax.Array
    logprobs: jax.Array
    policy_logprobs: jax.Array
    steps: jax.Array


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What a compiled sampler has fixed."""

    config: qwen3.Qwen3Config
    max_new_tokens: int
    eos_ids: tuple[int, ...]
    pad_id: int
    top_k: int
    top_p: float
    mesh: jax.sharding.Mesh | None
    on_token: Callable[[Array, Array, Array], np.ndarray] | None


@struct.dataclass
class _Rows:
    """What stays as it is while a batch of rollouts is decoded.

    Attributes:
        prompt_valid: [N, B] bool.
        quarantine_on: [N] bool.
        keys: [N] PRNG keys, one a rollout.
        temperature: [] float32.
    """

    prompt_valid: jax.Array
    quarantine_on: jax.Array
    keys: jax.Array
    temperature: jax.Array


@struct.dataclass
class _State:
    """What the decode loop carries.

    Attributes:
        step: [] int32, index of the token to be drawn next.
        ended: [N] bool.
        token: [N] int32, to be read next: drawn last, or the prompt's last.
        samples: so far.
        caches: for each layer, keys and values [N, K, B + T, E], as the products of attention read them.
    """

    step: jax.Array
    ended: jax.Array
    token: jax.Array
    samples: Samples
    caches: tuple[tuple[jax.Array, jax.Array], ...]


def build_sampler(
    config: qwen3.Qwen3Config,
    *,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    top_k: int = 0,
    top_p: float = 1.0,
    mesh: jax.sharding.Mesh | None = None,
    on_token: Callable[[Array, Array, Array], np.ndarray] | None = None,
) -> Callable[..., Samples]:
    """A jitted sampler; it compiles once for every shape of its arguments, whatever the temperature.

    Args:
        config: shape and dtype of the model.
        max_new_tokens: T.
        eos_ids: ids that end a completion; may hold `pad_id`.
        pad_id: stands after the end of a completion.
        top_k: 0, or the vocabulary's size and more: off. See `drawing.truncate`.
        top_p: 1: off.
        mesh: splits rows over (data, fsdp) and key-value heads over tensor; None: one device.
        on_token: called on the host after every token with (step [], tokens [N] int32, live [N] bool: the rows
            whose token this is), in a thread of the runtime's; returns a bool [], True: all rows end here.

    Returns:
        sample(base, adapter, prompts, prompt_valid, *, source_policy, source_of_row, active, keys,
        temperature) -> Samples, where
            adapter: `lora2r.Adapter`, or None: the base model alone;
            prompts, prompt_valid: [Q, B] int32 and bool, left-padded, as from `pad_prompts`;
            source_policy: [Q] bool, m of docs/method.md section 3: True as trained, False ablated;
            source_of_row: [N] int32, the source that each rollout continues;
            active: [N] bool, False: the row is not sampled and its mask is empty;
            keys: [N] PRNG keys; token t of a row is drawn with fold_in(its key, t);
            temperature: [] float; 0 is greedy.

    Raises:
        ValueError: on a setting out of range.
    """
    settings = _Settings(config, max_new_tokens, tuple(eos_ids), pad_id, top_k, top_p, mesh, on_token)
    _validate(settings)
    return jax.jit(functools.partial(_sample, settings))


def _sample(
    settings: _Settings,
    base: dict,
    adapter: lora2r.Adapter | None,
    prompts: Int[Array, "Q B"],
    prompt_valid: Bool[Array, "Q B"],
    *,
    source_policy: Bool[Array, " Q"],
    source_of_row: Int[Array, " N"],
    active: Bool[Array, " N"],
    keys: jax.Array,
    temperature: Float[Array, ""],
) -> Samples:
    """What `build_sampler` compiles."""
    config = settings.config
    fused = None if adapter is None else qwen3.AdapterLayer(lora2r.fuse(adapter, config.dtype), None)
    stacked = _prefill(settings, base, fused, (prompts, prompt_valid, source_policy))
    caches = _share_caches(settings, stacked, source_of_row)
    state = _first_state(settings, prompts[source_of_row, -1], ~active, caches)
    rows = _Rows(prompt_valid[source_of_row], source_policy[source_of_row], keys, temperature)
    layers = [
        jax.tree.map(lambda leaf, at=index: leaf[at], (base["layers"], fused)) for index in range(config.num_layers)
    ]

    def goes_on(state: _State) -> Array:
        return (state.step < settings.max_new_tokens) & ~jnp.all(state.ended)

    def advance(state: _State) -> _State:
        hidden, caches = _decode(settings, base, layers, rows, state)
        drawn = _draw_next(settings, base, hidden, rows, state).replace(caches=caches)
        if settings.on_token is None:
            return drawn
        stop = io_callback(settings.on_token, jax.ShapeDtypeStruct((), bool), state.step, drawn.token, ~state.ended)
        return drawn.replace(ended=drawn.ended | stop)

    state = jax.lax.while_loop(goes_on, advance, state)
    return state.samples.replace(steps=state.step)


def _validate(settings: _Settings) -> None:
    if settings.max_new_tokens < 1:
        raise ValueError(f"rollout.max_new_tokens must be >= 1, got {settings.max_new_tokens}")
    if settings.top_k < 0:
        raise ValueError(f"rollout.top_k must be >= 0 (0: off), got {settings.top_k}")
    if not 0.0 < settings.top_p <= 1.0:
        raise ValueError(f"rollout.top_p must be in (0, 1] (1: off), got {settings.top_p}")


def _constrain(settings: _Settings, leaf: Array, *axes: str | None) -> Array:
    """Places an array on the mesh by the names of its first axes."""
    if settings.mesh is None:
        return leaf
    axes = axes + (None,) * (leaf.ndim - len(axes))
    return jax.lax.with_sharding_constraint(leaf, sharding.sharding_of(settings.mesh, axes, leaf.shape))


def _prefill(
    settings: _Settings, base: dict, fused: qwen3.AdapterLayer | None, sources: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    """The keys and values of every source and layer, each [L, Q, B, K, E]."""
    prompts, valid, policy = (_constrain(settings, leaf, "batch") for leaf in sources)
    attention = qwen3.causal_attention(valid, settings.config)
    _, caches = qwen3.Qwen3(settings.config).apply(
        {"params": base}, prompts, attention, fused, lora2r.Route(policy), with_cache=True
    )
    return caches


def _share_caches(
    settings: _Settings, stacked: tuple[Array, Array], source_of_row: Int[Array, " N"]
) -> tuple[tuple[Array, Array], ...]:
    """Every layer's prompt keys and values, handed from sources to rollouts, with T free slots behind."""
    free = ((0, 0), (0, 0), (0, settings.max_new_tokens), (0, 0))

    def of_layer(leaf: Array) -> Array:
        shared = jnp.swapaxes(leaf, 1, 2)[source_of_row]  # [N, K, B, E]
        return _constrain(settings, jnp.pad(shared, free), "batch", "kv_heads")

    keys, values = stacked
    return tuple((of_layer(keys[i]), of_layer(values[i])) for i in range(settings.config.num_layers))


def _first_state(settings: _Settings, token: Int[Array, " N"], ended: Bool[Array, " N"], caches: tuple) -> _State:
    """The state before the first token is drawn."""
    shape = (ended.shape[0], settings.max_new_tokens)
    tokens = _constrain(settings, jnp.full(shape, settings.pad_id, jnp.int32), "batch")
    zeros = _constrain(settings, jnp.zeros(shape, jnp.float32), "batch")
    samples = Samples(tokens=tokens, mask=zeros > 0, logprobs=zeros, policy_logprobs=zeros, steps=jnp.int32(0))
    return _State(step=jnp.int32(0), ended=ended, token=token, samples=samples, caches=caches)


def _decode(
    settings: _Settings, base: dict, layers: list[tuple], rows: _Rows, state: _State
) -> tuple[Array, tuple[tuple[Array, Array], ...]]:
    """Reads a token: its hidden state after the final norm, [N, D], and the caches with it in."""
    config = settings.config
    bucket = rows.prompt_valid.shape[1]
    slot = bucket + state.step - 1
    positions = jnp.sum(rows.prompt_valid, axis=1, dtype=jnp.int32) + state.step - 1
    cos, sin = qwen3.rotary(positions[:, None], config)
    completion = jnp.ones((positions.shape[0], settings.max_new_tokens), bool)
    readable = jnp.concatenate([rows.prompt_valid, completion], axis=1)
    readable &= jnp.arange(readable.shape[1]) <= slot
    attention = qwen3.Attention(cos=cos, sin=sin, mask=readable[:, None])
    x = _constrain(settings, base["embed"][state.token][:, None], "batch")  # [N, 1, D]
    caches = []
    for (parameters, adapter), cache in zip(layers, state.caches, strict=True):

        def write(*new: Array, cache: tuple[Array, Array] = cache) -> tuple[Array, ...]:
            pairs = [(old, jnp.swapaxes(leaf, 1, 2)) for old, leaf in zip(cache, new, strict=True)]
            full = [jax.lax.dynamic_update_slice_in_dim(old, leaf, slot, 2) for old, leaf in pairs]
            return tuple(jnp.swapaxes(leaf, 1, 2) for leaf in full)  # no copy: XLA folds it into the products

        route = lora2r.Route(rows.quarantine_on)
        x, cache = qwen3.Block(config).apply({"params": parameters}, x, attention, adapter, route, write)
        written = [jnp.swapaxes(leaf, 1, 2) for leaf in cache]
        caches.append(tuple(_constrain(settings, leaf, "batch", "kv_heads") for leaf in written))
    return qwen3.rms_norm(x[:, 0], base["final_norm"], config.norm_epsilon), tuple(caches)


def _draw_next(settings: _Settings, base: dict, hidden: Float[Array, "N D"], rows: _Rows, state: _State) -> _State:
    """Draws the next token of every row that has not ended, and writes it down."""
    logits = qwen3.unembed(base, hidden)  # [N, V]
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(rows.keys, state.step)
    drawn = drawing.draw(logits, keys, rows.temperature, top_k=settings.top_k, top_p=settings.top_p)
    live = ~state.ended

    def put(array: Array, column: Array, otherwise: Array | int) -> Array:
        column = jnp.where(live, column, otherwise).astype(array.dtype)[:, None]
        return jax.lax.dynamic_update_slice_in_dim(array, column, state.step, 1)

    token, logprob, policy_logprob = drawn
    samples = state.samples.replace(
        tokens=put(state.samples.tokens, token, settings.pad_id),
        mask=put(state.samples.mask, live, 0),
        logprobs=put(state.samples.logprobs, logprob, 0),
        policy_logprobs=put(state.samples.policy_logprobs, policy_logprob, 0),
    )
    is_eos = jnp.isin(token, jnp.array(settings.eos_ids, jnp.int32))
    return state.replace(step=state.step + 1, ended=state.ended | is_eos, token=token, samples=samples)


def prompt_bucket(length: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds a prompt of `length` tokens.

    Raises:
        ValueError: if none does.
    """
    fitting = [bucket for bucket in buckets if bucket >= length]
    if not fitting:
        raise ValueError(
            f"data.prompt_buckets must hold a bucket of at least the prompt's {length} tokens, got "
            f"{tuple(buckets)}; raise data.max_prompt_tokens and add a bucket, or drop the problem"
        )
    return min(fitting)


def pad_prompts(
    prompts: Sequence[Sequence[int]], bucket: int, pad_id: int
) -> tuple[Int[np.ndarray, "Q B"], Bool[np.ndarray, "Q B"]]:
    """Token ids left-padded to `bucket`, int32, and where they are valid.

    Raises:
        ValueError: if a prompt is empty or longer than the bucket.
    """
    tokens = np.full((len(prompts), bucket), pad_id, np.int32)
    valid = np.zeros((len(prompts), bucket), bool)
    for index, prompt in enumerate(prompts):
        if not 1 <= len(prompt) <= bucket:
            raise ValueError(
                f"data.prompt_buckets: prompt {index} must have 1 to {bucket} tokens, its bucket's size, got "
                f"{len(prompt)}; choose the bucket by the longest prompt (at most data.max_prompt_tokens)"
            )
        tokens[index, -len(prompt) :] = prompt
        valid[index, -len(prompt) :] = True
    return tokens, valid
