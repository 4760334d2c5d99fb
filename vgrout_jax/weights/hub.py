"""Published Qwen3 weights in: config.json and safetensors, from a local folder or a hub name.

Weights are read tensor by tensor into one stacked leaf at a time, in the target dtype, and placed in their
sharding before the next leaf is begun. On a CPU the device takes the leaf's memory over as it is; on an
accelerator the host holds one leaf at a time.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from vgrout_jax.common.packaged import packaged
from vgrout_jax.config import TOY
from vgrout_jax.model import parameters, qwen3
from vgrout_jax.weights import safetensors
from vgrout_jax.weights.safetensors import model_error

# Configuration, weights, tokenizer, chat template.
_DOWNLOADS = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
_FLOAT_TYPES = ("BF16", "F16", "F32")
_ALIGNMENT = 64  # bytes; a CPU device takes over aligned host memory without a copy

_SIZE_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
}
_REQUIRED_VALUES = {"use_sliding_window": False, "attention_bias": False, "hidden_act": "silu"}


def model_folder(path: str | Path) -> Path:
    """The folder of a model: `path` itself, or for a hub name the cached snapshot, downloaded on first use.

    A complete snapshot in the cache is used without asking the network. A download shows its progress on a
    terminal.

    Args:
        path: a local folder, a hub name such as Qwen/Qwen3-4B, or builtin:toy, the toy world's base policy.

    Returns:
        A folder that holds config.json, the weights and the tokenizer.

    Raises:
        ValueError: if there is no such folder and no such model can be downloaded.
    """
    name = str(path)
    if name.startswith("builtin:"):
        return _builtin(name)
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise ValueError(f"model.path must be a folder or a hub name like Qwen/Qwen3-4B, got {name}")
    return _cached_snapshot(name) or _download(name)


def _builtin(name: str) -> Path:
    if name != TOY:
        raise ValueError(f"model.path: {name} is unknown; the only built-in model is {TOY}")
    return packaged("toy_policy")


def _cached_snapshot(name: str) -> Path | None:
    # Imported here because a run from a local folder needs no hub client.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=_DOWNLOADS, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return None if _absent_files(folder) else folder


def _absent_files(folder: Path) -> list[str]:
    """Files that a snapshot lacks: a tokenizer loaded by name, or a broken download, leaves one without weights."""
    wanted = [folder / "config.json"]
    wanted += safetensors.weight_files(folder) if safetensors.has_weights(folder) else [folder / safetensors.SINGLE]
    return [file.name for file in wanted if not file.is_file()]


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=_DOWNLOADS))
        # Without a network the client falls back on whatever part of the snapshot is cached.
        if absent := _absent_files(folder):
            raise FileNotFoundError(f"{absent[0]} could not be fetched")
    except Exception as error:  # the client lets several libraries' exceptions through
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise model_error(
            f"{name} is neither a local folder nor complete in the cache, and cannot be downloaded: {reason}"
        ) from error
    return folder


def load_config(path: str | Path, *, dtype: Any = jnp.float32, remat: str = "nothing") -> qwen3.Qwen3Config:
    """The model's shape from its config.json, in the layout of transformers 4 or 5.

    Args:
        path: a local folder or a hub name.
        dtype: of parameters and activations, whatever the checkpoint was saved in.
        remat: what of a layer the backward pass computes anew, one of `qwen3.REMATS`.

    Raises:
        ValueError: naming the field, if one is missing or malformed, or asks for what the port does not have
            (another architecture, sliding windows, scaled rotary embeddings, biases, quantised weights).
    """
    fields = safetensors.read_json(model_folder(path) / "config.json")
    _check_supported(fields)
    sizes = {ours: _number(fields, published, int) for ours, published in _SIZE_FIELDS.items()}
    if sizes["num_heads"] % sizes["num_kv_heads"]:
        raise model_error(
            f"config.json: num_attention_heads must be a multiple of num_key_value_heads, "
            f"got {sizes['num_heads']} and {sizes['num_kv_heads']}"
        )
    if sizes["head_dim"] % 2:
        raise model_error(f"config.json: head_dim must be even, got {sizes['head_dim']}")
    tied = _field(fields, "tie_word_embeddings")
    if not isinstance(tied, bool):
        raise model_error(f"config.json: tie_word_embeddings must be true or false, got {tied!r}")
    return qwen3.Qwen3Config(
        **sizes,
        rope_theta=_rope_theta(fields),
        norm_epsilon=_number(fields, "rms_norm_eps", float),
        tie_embeddings=tied,
        dtype=dtype,
        remat=remat,
    )


def _field(fields: dict[str, Any], name: str) -> Any:
    if fields.get(name) is None:
        raise model_error(f"config.json has no field {name}")
    return fields[name]


def _number(fields: dict[str, Any], name: str, kind: type) -> Any:
    value = _field(fields, name)
    accepted = int if kind is int else (int, float)
    # NaN fails every comparison, so it is refused too.
    if isinstance(value, bool) or not isinstance(value, accepted) or not 0 < value < math.inf:
        what = "a positive whole number" if kind is int else "a positive number"
        raise model_error(f"config.json: {name} must be {what}, got {value!r}")
    return kind(value)


def _check_supported(fields: dict[str, Any]) -> None:
    architectures = _field(fields, "architectures")
    if architectures != ["Qwen3ForCausalLM"]:
        raise model_error(
            f"config.json: architectures must be ['Qwen3ForCausalLM'], got {architectures}; only dense Qwen3 "
            "is supported (no mixture of experts, no other family)"
        )
    for name, wanted in _REQUIRED_VALUES.items():
        if fields.get(name, wanted) != wanted:
            raise model_error(f"config.json: {name} must be {json.dumps(wanted)}, got {json.dumps(fields[name])}")
    for kind in fields.get("layer_types") or ():
        if kind != "full_attention":
            raise model_error(f"config.json: layer_types must all be full_attention, got {kind}")
    if fields.get("quantization_config"):
        raise model_error("config.json: quantization_config is not supported; use unquantised weights")


def _rope_theta(fields: dict[str, Any]) -> float:
    """The rotary base, from rope_parameters (transformers 5) or from the top level (before)."""
    merged = {"rope_theta": fields.get("rope_theta")}
    for section in ("rope_scaling", "rope_parameters"):
        rope = fields.get(section) or {}
        if not isinstance(rope, dict):
            raise model_error(f"config.json: {section} must be an object or null, got {rope!r}")
        for key in ("rope_type", "type"):
            if rope.get(key) not in (None, "default", "none"):
                raise model_error(
                    f"config.json: {section}.{key} must be default, got {rope[key]}; scaled rotary "
                    "embeddings are not supported"
                )
        if rope.get("partial_rotary_factor", 1) != 1:
            raise model_error(f"config.json: {section}.partial_rotary_factor is not supported")
        merged |= {name: value for name, value in rope.items() if value is not None}
    return _number(merged, "rope_theta", float)


def load_parameters(
    path: str | Path, config: qwen3.Qwen3Config, shardings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The base parameters from safetensors, in `config.dtype` and in their shardings.

    Args:
        path: a local folder or a hub name.
        config: of `load_config`.
        shardings: in the structure of the parameters (`sharding.parameter_shardings`); None: default device.

    Returns:
        The tree of `layout.parameter_table`. The lm_head.weight that some tied checkpoints store as well is
        compared with the embeddings and dropped.

    Raises:
        ValueError: naming the tensor or file, if a tensor is missing, surplus, of a wrong shape or type, or a
            file is missing, truncated or corrupt.
    """
    found = safetensors.list_tensors(model_folder(path))
    table = parameters.parameter_table(config)
    _check_tensors(found, table, config)
    rows = jax.tree.leaves(table, is_leaf=parameters.is_parameter)
    total = sum(math.prod(row.shape) for row in rows) * np.dtype(config.dtype).itemsize

    with tqdm(total=total, desc="weights", unit="B", unit_scale=True, disable=None) as progress:

        def load(row: parameters.Parameter, sharding: Any = None) -> jax.Array:
            leaf = _aligned_empty(row.shape, np.dtype(config.dtype))
            _fill(leaf, row, found, progress)
            if sharding is None:
                array = jax.device_put(leaf)
            else:
                array = jax.make_array_from_callback(row.shape, sharding, leaf.__getitem__)
            return jax.block_until_ready(array)  # else the host would hold the next leaf besides this one

        trees = (table,) if shardings is None else (table, shardings)
        return jax.tree.map(load, *trees, is_leaf=parameters.is_parameter)


def _published(row: parameters.Parameter) -> tuple[list[str], tuple[int, ...]]:
    """The published names that one leaf is stacked from, in order, and the shape of each."""
    stacked = "{layer}" in row.published
    layers = range(row.shape[0]) if stacked else range(1)
    shape = row.shape[1:] if stacked else row.shape
    return [row.published.format(layer=n) for n in layers], shape[::-1] if row.transposed else shape


def _check_tensors(found: dict[str, safetensors.Tensor], table: dict[str, Any], config: qwen3.Qwen3Config) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for row in jax.tree.leaves(table, is_leaf=parameters.is_parameter):
        names, shape = _published(row)
        expected |= dict.fromkeys(names, shape)
    missing = [name for name in expected if name not in found]
    if missing:
        raise model_error(f"tensor {missing[0]} is missing from the checkpoint{_more(missing)}")
    if config.tie_embeddings and "lm_head.weight" in found:
        expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
    surplus = [name for name in found if name not in expected]
    if surplus:
        raise model_error(f"tensor {surplus[0]} has no place in the model{_more(surplus)}")
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise model_error(f"tensor {name} must have shape {shape}, got {found[name].shape}")
        if found[name].dtype not in _FLOAT_TYPES:
            raise model_error(f"tensor {name} must be of type {', '.join(_FLOAT_TYPES)}, got {found[name].dtype}")
    if config.tie_embeddings and "lm_head.weight" in found:
        _check_tied_head(found["lm_head.weight"], found["model.embed_tokens.weight"])


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _check_tied_head(head: safetensors.Tensor, embed: safetensors.Tensor) -> None:
    pairs = zip(safetensors.blocks(head), safetensors.blocks(embed), strict=True)
    if head.dtype != embed.dtype or not all(np.array_equal(ours[1], theirs[1]) for ours, theirs in pairs):
        raise model_error(
            "tensor lm_head.weight differs from model.embed_tokens.weight, but config.json says "
            "tie_word_embeddings; set it to false to use both"
        )


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Uninitialised host memory that a CPU device can take over as it is."""
    size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)


def _fill(leaf: np.ndarray, row: parameters.Parameter, found: dict[str, safetensors.Tensor], progress: tqdm) -> None:
    """Reads the leaf's published tensors into it, layer by layer and block by block."""
    parts = leaf if "{layer}" in row.published else leaf[None]
    for name, part in zip(_published(row)[0], parts, strict=True):
        target = part.T if row.transposed else part
        for start, block in safetensors.blocks(found[name]):
            target[start : start + len(block)] = block
            progress.update(block.size * leaf.itemsize)
