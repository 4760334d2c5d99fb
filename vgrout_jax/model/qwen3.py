"""Qwen3 (dense) in Flax linen: layers scanned over stacked parameters, the LoRA2r adapter as an argument.

The parameters' shapes, logical axes and published names stand in `parameters.py`.

Reference: Qwen3: Yang et al. 2025, arXiv 2505.09388.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from vgrout_jax.model import lora2r
from vgrout_jax.model.attention import CUDNN, attend_causally
from vgrout_jax.model.norms import rms_norm, rotate
from vgrout_jax.model.packed_attention import Packing, attend

# What of a layer the backward pass computes anew: nothing; what is cheap, which is all but the products with weights
# and attention; or everything, so that the layer's input alone is kept.
REMATS = ("nothing", "cheap", "everything")


def _keep_products(primitive: Any, *arguments: Any, **parameters: Any) -> bool:
    """The policy of "cheap": keeps what is named a product, and what cuDNN's attention needs on its way back."""
    named = jax.checkpoint_policies.save_only_these_names("product")(primitive, *arguments, **parameters)
    return named or "dot_product_attention_fwd" in primitive.name


@dataclasses.dataclass(frozen=True)
class Qwen3Config:
    """Shape of a dense Qwen3 decoder; field names follow the published config.json where they can."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 1_000_000.0
    norm_epsilon: float = 1e-6
    tie_embeddings: bool = True
    dtype: Any = jnp.float32  # of parameters and activations
    remat: str = "nothing"  # what of a layer the backward pass computes anew, one of `REMATS`
    attention: str = "batch"  # over whole sequences, one of `attending.ATTENTIONS`

    def module_shapes(self) -> dict[str, tuple[int, int]]:
        """(d_in, d_out) of the seven adapted maps, in the order of `lora2r.MODULES`."""
        d, f = self.hidden_size, self.intermediate_size
        query, key_value = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        shapes = [(d, query), (d, key_value), (d, key_value), (query, d), (d, f), (d, f), (f, d)]
        return dict(zip(lora2r.MODULES, shapes, strict=True))


# The maps that read the same input, in the order in which a layer runs them.
GROUPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))


@struct.dataclass
class Attention:
    """What attention needs besides the hidden states, the same in every layer.

    Attributes:
        cos: rotary cosines, [N, T, E/2] float32; one row may stand for all.
        sin: rotary sines, likewise.
        valid: [N, S] bool, False on padding, over what stands before the tokens, where that is given, and the tokens;
            None: no key that comes before a query that counts is padding.
        packed: where the N tokens, each a row of its own, stand in their sequences; None: rows are sequences.
    """

    cos: jax.Array
    sin: jax.Array
    valid: jax.Array | None = None
    packed: Packing | None = None


@struct.dataclass
class AdapterLayer:
    """One layer's slice of the fused adapter, or all layers stacked, and the probe's scale where it is read.

    Attributes:
        factors: of `lora2r.fuse`.
        scale: module -> [N, 2r] (stacked: [L, N, 2r]) or None.
    """

    factors: lora2r.Factors
    scale: dict[str, jax.Array] | None


def rotary(positions: Int[Array, "N T"], config: Qwen3Config) -> tuple[Array, Array]:
    """Cosines and sines [N, T, E/2] of the rotary position embedding, in float32."""
    exponents = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    angles = positions[..., None].astype(jnp.float32) / (config.rope_theta**exponents)
    return jnp.cos(angles), jnp.sin(angles)


@dataclasses.dataclass(frozen=True)
class Maps:
    """The linear maps of a layer with their adapters, however their weights lie: one by one, or side by side."""

    heads: Callable[[Array], Any]  # [N, T, D] -> queries, keys and values, in the form that the attention takes
    out: Callable[[Array], Array]  # [N, T, H E] -> [N, T, D]
    gated: Callable[[Array], Array]  # [N, T, D] -> silu(gate) * up, [N, T, F]
    down: Callable[[Array], Array]  # [N, T, F] -> [N, T, D]


def apply_layer(
    x: Float[Array, "N T D"],
    norm: Callable[[str, Array], Array],
    maps: Maps,
    attend: Callable[[Any], tuple[Array, Any]],
) -> tuple[Float[Array, "N T D"], Any]:
    """A decoder layer: attention and the gated feed-forward, each added to the residual stream behind a norm.

    Args:
        x: the residual stream.
        norm: (name, hidden states) -> hidden states, for `input_norm` and `post_norm`.
        maps: the layer's.
        attend: from what `maps.heads` gives to what attention mixes, [N, T, H E], and what is returned beside it.
    """
    with jax.named_scope("attention"):
        mixed, cache = attend(maps.heads(norm("input_norm", x)))
        x = x + maps.out(mixed)
    with jax.named_scope("mlp"):
        return x + maps.down(maps.gated(norm("post_norm", x))), cache


class Block(nn.Module):
    """One decoder layer, its maps one by one. Called on one layer's parameters, by the scan or by the decode loop."""

    config: Qwen3Config

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N T D"],
        attention: Attention,
        adapter: AdapterLayer | None,
        route: lora2r.Route | None,
        *,
        attend: Callable[[Array, Array, Array], tuple[Array, Any]] | None = None,
        cache_alone: bool = False,
    ) -> tuple[Array, Any]:
        """Returns the layer's output [N, T, D], and its tokens' keys and values, each [N, T, K, E].

        `attend(queries, keys, values)` attends to more than these tokens and returns [N, T, H, E], and what is to be
        returned instead of keys and values; None: a token reads itself and those before it. `cache_alone`: nothing
        but keys and values is computed, and the input is returned in the output's place.
        """
        config, shapes = self.config, self.config.module_shapes()
        rows, length = x.shape[:2]

        def weight(name: str, shape: tuple[int, ...]) -> Array:
            init = nn.initializers.normal(0.02) if len(shape) == 2 else nn.initializers.ones
            return self.param(name, init, shape, config.dtype)

        def linear(name: str, inputs: Array) -> Array:
            out = inputs @ weight(name, shapes[name])
            if adapter is not None:
                scale = None if adapter.scale is None else adapter.scale[name]
                down, up = adapter.factors.a[name], adapter.factors.b[name]
                out = out + lora2r.apply_fused(inputs, down, up, route, scale)
            return checkpoint_name(out, "product")

        def norm(name: str, inputs: Array) -> Array:
            return rms_norm(inputs, weight(name, inputs.shape[-1:]), config.norm_epsilon)

        def heads(name: str, hidden: Array) -> Array:
            return linear(name, hidden).reshape(rows, length, -1, config.head_dim)

        def rotated(name: str, inputs: Array) -> Array:
            return rotate(norm(name, inputs), attention.cos, attention.sin)

        def mix(projected: tuple[Array, Array, Array]) -> tuple[Array, Any]:
            queries, keys, values = projected
            queries, keys = rotated("q_norm", queries), rotated("k_norm", keys)
            if attend is None:
                mixed, cache = _attend(config, queries, keys, values, attention), (keys, values)
            else:
                mixed, cache = attend(queries, keys, values)
            return mixed.reshape(rows, length, -1), cache

        if cache_alone:
            with jax.named_scope("attention"):
                hidden = norm("input_norm", x)
                keys, values = (heads(name, hidden) for name in GROUPS[0][1:])
                return x, (rotated("k_norm", keys), values)
        maps = Maps(
            heads=lambda hidden: tuple(heads(name, hidden) for name in GROUPS[0]),
            out=functools.partial(linear, "o_proj"),
            gated=lambda hidden: nn.silu(linear("gate_proj", hidden)) * linear("up_proj", hidden),
            down=functools.partial(linear, "down_proj"),
        )
        return apply_layer(x, norm, maps, mix)


def _attend(config: Qwen3Config, queries: Array, keys: Array, values: Array, attention: Attention) -> Array:
    if config.attention in CUDNN and attention.valid is None:
        return jax.nn.dot_product_attention(queries, keys, values, is_causal=True, implementation="cudnn")
    by_rows = config.attention == "rows"
    return attend_causally(queries, keys, values, attention.valid, by_rows=by_rows)


def _attend_behind(
    config: Qwen3Config, before: tuple[Array, Array], attention: Attention, *tokens: Array
) -> tuple[Array, tuple[Array, Array]]:
    """Attention to keys and values of earlier tokens, [N, B, K, E], and to these; for the `attend` of `Block`.

    Where tokens are packed, the earlier ones are those before each sequence, [S, B, K, E].
    """
    queries, *own = tokens
    if attention.packed is not None:
        flat = (leaf[:, 0] for leaf in tokens)
        mixed = attend(*flat, before, attention.packed, cudnn=config.attention == "cudnn_packed")
        return mixed[:, None], tuple(own)
    keys, values = (jnp.concatenate(pair, axis=1) for pair in zip(before, own, strict=True))
    if config.attention in CUDNN:
        causal = jnp.tri(queries.shape[1], keys.shape[1], keys.shape[1] - queries.shape[1], dtype=bool)
        mask = causal & attention.valid[:, None, None]
        return jax.nn.dot_product_attention(queries, keys, values, mask=mask, implementation="cudnn"), tuple(own)
    return _attend(config, queries, keys, values, attention), tuple(own)


class Qwen3(nn.Module):
    """The decoder: embeddings, scanned layers, final norm. `head.unembed` turns hidden states into logits."""

    config: Qwen3Config

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "N T"],
        attention: Attention,
        adapter: AdapterLayer | None = None,
        route: lora2r.Route | None = None,
        *,
        before: tuple[Array, Array] | None = None,
    ) -> Float[Array, "N T D"]:
        """Hidden states of all tokens after all layers and the final norm.

        Args:
            tokens: token ids.
            attention: of `causal_attention`, `aligned_attention`, `continued_attention` or `packed_attention`.
            adapter: the fused adapter, stacked over layers; None: the base model alone.
            route: the masks; needed where an adapter is given.
            before: keys and values of what stands before the tokens, [L, N, B, K, E] each, or None; what of it may
                be read says `attention.valid`.
        """
        config, block = self.config, Block(self.config, parent=None)
        shape = (config.vocab_size, config.hidden_size)
        embed = self.param("embed", nn.initializers.normal(0.02), shape, config.dtype)
        x = embed[tokens]

        def initial(key: Array) -> dict:
            keys = jax.random.split(key, config.num_layers)
            return jax.vmap(lambda key: block.init(key, x, attention, None, None)["params"])(keys)

        def body(carry: Array, inputs: tuple[dict, AdapterLayer | None, Any]) -> tuple[Array, None]:
            weights, layer, earlier = inputs
            attend = None if earlier is None else functools.partial(_attend_behind, config, earlier, attention)
            return block.apply({"params": weights}, carry, attention, layer, route, attend=attend)[0], None

        # `self.param` alone would trace a layer once more in every call, to compare shapes; so does `nn.scan`.
        initialising = self.is_initializing()
        layers = self.param("layers", initial) if initialising else self.get_variable("params", "layers")
        x, _ = jax.lax.scan(_rematerialised(config, body), x, (layers, adapter, before))
        scale = self.param("final_norm", nn.initializers.ones, (config.hidden_size,), config.dtype)
        if not config.tie_embeddings:
            self.param("lm_head", nn.initializers.normal(0.02), shape[::-1], config.dtype)
        return rms_norm(x, scale, config.norm_epsilon)


def keys_and_values(
    config: Qwen3Config,
    parameters: dict,
    tokens: Int[Array, "N T"],
    attention: Attention,
    adapter: AdapterLayer | None = None,
    route: lora2r.Route | None = None,
) -> tuple[Float[Array, "L N T K E"], Float[Array, "L N T K E"]]:
    """Every layer's keys and values of the tokens, and no more than they need: of the last layer nothing else.

    Arguments as of `Qwen3`. For frozen parameters: the loop takes their slices inside, so that none is copied, and a
    gradient of them would be as large as all of them in every layer.
    """
    block, last = Block(config), config.num_layers - 1

    def of_layer(index: Array | int, layer: AdapterLayer | None, x: Array, cache_alone: bool) -> tuple[Array, Any]:
        take = functools.partial(
            jax.lax.dynamic_index_in_dim, index=index, keepdims=False, allow_negative_indices=False
        )
        weights = jax.tree.map(take, parameters["layers"])
        return block.apply({"params": weights}, x, attention, layer, route, cache_alone=cache_alone)

    def body(x: Array, inputs: tuple[Array, AdapterLayer | None]) -> tuple[Array, Any]:
        return of_layer(*inputs, x, False)

    x, layers = parameters["embed"][tokens], (jnp.arange(last), jax.tree.map(lambda leaf: leaf[:last], adapter))
    x, caches = jax.lax.scan(_rematerialised(config, body), x, layers)
    _, of_last = of_layer(last, jax.tree.map(lambda leaf: leaf[last], adapter), x, True)
    return jax.tree.map(lambda earlier, leaf: jnp.concatenate([earlier, leaf[None]]), caches, of_last)


def _rematerialised(config: Qwen3Config, body: Callable) -> Callable:
    """The body of a loop over layers, of which the backward pass computes anew what `config.remat` says."""
    if config.remat == "nothing":
        return body
    return jax.checkpoint(body, prevent_cse=False, policy=_keep_products if config.remat == "cheap" else None)


def positions_of(valid: Bool[Array, "N T"]) -> Int[Array, "N T"]:
    """Positions that count valid tokens only, so that padding on either side shifts nothing."""
    return jnp.maximum(jnp.cumsum(valid, axis=-1) - 1, 0)


def causal_attention(valid: Bool[Array, "N T"], config: Qwen3Config) -> Attention:
    """Causal attention among valid tokens, for whole sequences padded on the left, the right or both."""
    cos, sin = rotary(positions_of(valid), config)
    return Attention(cos=cos, sin=sin, valid=valid)


def aligned_attention(length: int, config: Qwen3Config) -> Attention:
    """Causal attention for sequences that begin at position 0, so that padding only follows."""
    cos, sin = rotary(jnp.arange(length)[None], config)
    return Attention(cos=cos, sin=sin)


def continued_attention(lengths: Int[Array, " N"], tokens: int, slots: int, config: Qwen3Config) -> Attention:
    """Attention of so many tokens behind the first `lengths` ones of `slots` given as keys and values."""
    cos, sin = rotary(lengths[:, None] + jnp.arange(tokens), config)
    earlier = jnp.arange(slots) < lengths[:, None]
    return Attention(
        cos=cos, sin=sin, valid=jnp.concatenate([earlier, jnp.ones((earlier.shape[0], tokens), bool)], 1)
    )


def packed_attention(packed: Packing, config: Qwen3Config) -> Attention:
    """Attention of packed tokens, every one of them a row of its own, [C, 1, ...], behind what stands before them."""
    before = packed.before.at[packed.sequence].get(mode="fill", fill_value=0)
    cos, sin = rotary((before + packed.place)[:, None], config)
    return Attention(cos=cos, sin=sin, packed=packed)
