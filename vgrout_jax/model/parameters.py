"""Every parameter of the model: `parameter_table` gives its shape, logical axes and published name.

Initialisation, loading, storing, sharding and the abstract tree all come from this one table.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from vgrout_jax.model.qwen3 import Qwen3Config


class Parameter(NamedTuple):
    """One row of the parameter table: stacked shape, logical axes, published name, and whether that is [out, in]."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    published: str  # with {layer} where layers are stacked
    transposed: bool = False


_MAP_AXES = {
    "q_proj": ("embed", "heads"),
    "k_proj": ("embed", "kv_heads"),
    "v_proj": ("embed", "kv_heads"),
    "o_proj": ("heads", "embed"),
    "gate_proj": ("embed", "mlp"),
    "up_proj": ("embed", "mlp"),
    "down_proj": ("mlp", "embed"),
}


def parameter_table(config: Qwen3Config) -> dict[str, Any]:
    """The tree of `Parameter` rows, in the structure of the parameters themselves."""
    layers, d, e, v = config.num_layers, config.hidden_size, config.head_dim, config.vocab_size

    def layer_row(shape: tuple, axes: tuple, name: str, transposed: bool = False) -> Parameter:
        published = "model.layers.{layer}." + name + ".weight"
        return Parameter((layers, *shape), ("layers", *axes), published, transposed)

    rows = {
        name: layer_row(shape, _MAP_AXES[name], ("self_attn." if index < 4 else "mlp.") + name, transposed=True)
        for index, (name, shape) in enumerate(config.module_shapes().items())
    }
    rows["input_norm"] = layer_row((d,), (None,), "input_layernorm")
    rows["post_norm"] = layer_row((d,), (None,), "post_attention_layernorm")
    rows["q_norm"] = layer_row((e,), (None,), "self_attn.q_norm")
    rows["k_norm"] = layer_row((e,), (None,), "self_attn.k_norm")
    table = {
        "embed": Parameter((v, d), ("vocab", "embed"), "model.embed_tokens.weight"),
        "layers": rows,
        "final_norm": Parameter((d,), (None,), "model.norm.weight"),
    }
    if not config.tie_embeddings:
        table["lm_head"] = Parameter((d, v), ("embed", "vocab"), "lm_head.weight", transposed=True)
    return table


def is_parameter(leaf: Any) -> bool:
    """Whether a node of the table is a row (a NamedTuple is a pytree node of its own otherwise)."""
    return isinstance(leaf, Parameter)


def abstract_parameters(config: Qwen3Config) -> dict[str, Any]:
    """The parameter tree as `jax.ShapeDtypeStruct`s, without allocating."""
    return jax.tree.map(
        lambda row: jax.ShapeDtypeStruct(row.shape, config.dtype),
        parameter_table(config),
        is_leaf=is_parameter,
    )


def init_parameters(config: Qwen3Config, seed: int) -> dict[str, Any]:
    """Random parameters on the host, NumPy arrays from `seed`: norms one, all else Normal(0, 0.02)."""
    generator = np.random.default_rng(seed)

    def draw(row: Parameter) -> np.ndarray:
        if "norm" in row.published:
            return np.ones(row.shape, config.dtype)
        return (0.02 * generator.standard_normal(row.shape, np.float32)).astype(config.dtype)

    return jax.tree.map(draw, parameter_table(config), is_leaf=is_parameter)
