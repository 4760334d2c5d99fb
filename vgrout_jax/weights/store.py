"""Checkpoints out, in the published Hugging Face layout: config.json, safetensors shards, tokenizer.

Values are written tensor by tensor, block of rows by block of rows, so that the host never holds a second copy of
the parameters. A folder appears under its name once it is whole.
"""

import contextlib
import dataclasses
import functools
import json
import math
import operator
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np
from tqdm import tqdm

from vgrout_jax.model import qwen3
from vgrout_jax.model.parameters import Parameter, abstract_parameters, parameter_table
from vgrout_jax.weights import safetensors

SHARD_BYTES = 4 * 10**9
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # name -> safetensors' own
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)

_BLOCK_BYTES = 64 * 2**20  # of a tensor that are converted at one time
# Of the published models; the port itself has no limit to the positions.
_MAX_POSITIONS = 40960
SIZE_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "rms_norm_eps": "norm_epsilon",
    "rope_theta": "rope_theta",
    "tie_word_embeddings": "tie_embeddings",
}


@dataclasses.dataclass(frozen=True)
class Piece:
    """One published tensor, and where its values stand in the parameter tree.

    Attributes:
        name: as published.
        shape: as published, [out, in] for linear maps.
        path: keys into the tree.
        layer: index into the stacked leaf, None for a leaf that is not stacked.
        transposed: the leaf is [in, out].
    """

    name: str
    shape: tuple[int, ...]
    path: tuple[str, ...]
    layer: int | None
    transposed: bool

    def value_in(self, parameters: Mapping[str, Any]) -> np.ndarray:
        """The tensor as published, on the host; a view where the leaf is already there."""
        leaf = functools.reduce(operator.getitem, self.path, parameters)
        value = np.asarray(jax.device_get(leaf if self.layer is None else leaf[self.layer]))
        return value.T if self.transposed else value


def pieces(model: qwen3.Qwen3Config) -> list[Piece]:
    """Every published tensor of a model: embeddings, layer after layer, final norm, the head if it is separate."""

    def of_row(path: tuple[str, ...], row: Parameter) -> list[Piece]:
        stacked = "{layer}" in row.published
        shape = row.shape[1:] if stacked else row.shape
        shape = shape[::-1] if row.transposed else shape
        layers = range(row.shape[0]) if stacked else [None]
        return [Piece(row.published.format(layer=n), shape, path, n, row.transposed) for n in layers]

    table = parameter_table(model)
    stacked = [piece for name, row in table["layers"].items() for piece in of_row(("layers", name), row)]
    ends = {name: of_row((name,), row) for name, row in table.items() if name != "layers"}
    layers = sorted(stacked, key=lambda piece: piece.layer)  # stable: the table's order within a layer
    return [*ends.pop("embed"), *layers, *(piece for found in ends.values() for piece in found)]


def save_checkpoint(
    folder: str | Path,
    parameters: Mapping[str, Any],
    model: qwen3.Qwen3Config,
    *,
    dtype: Any,
    tokenizer_files: Sequence[str | Path],
    eos_ids: Sequence[int],
    pad_id: int,
    shard_bytes: int = SHARD_BYTES,
    extra_files: Mapping[str, str] | None = None,
    config_fields: Mapping[str, Any] | None = None,
    change: Callable[[Piece, np.ndarray], np.ndarray] | None = None,
) -> Path:
    """Writes a checkpoint that transformers and `hub` load as they load a published one.

    Args:
        folder: created; it appears when everything is in it.
        parameters: tree of `layout.parameter_table`, NumPy or jax arrays of any float type, sharded or not.
        model: their shape.
        dtype: of the file: float32, bfloat16 or float16, as a name or a dtype.
        tokenizer_files: copied by name (`find_tokenizer_files` lists those of a model's folder).
        eos_ids: end a completion; go into generation_config.json, the first into config.json.
        pad_id: goes into generation_config.json.
        shard_bytes: most bytes of tensors in one file; a larger tensor has a file to itself.
        extra_files: name -> text of further files, which replace those of the same name.
        config_fields: fields of config.json beyond the shape, such as max_position_embeddings.
        change: (piece, value as published) -> value that is written, before the cast to `dtype`.

    Returns:
        The folder.

    Raises:
        ValueError: the folder exists or cannot be written, the parameters have another shape than the model,
            a value is not finite in `dtype`, a file to copy is missing, or an argument is out of range.
    """
    kind = np.dtype(dtype)
    if kind.name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {kind.name}")
    if not eos_ids:
        raise ValueError("eos_ids must hold at least one token id, got none")
    missing = [file for file in map(Path, tokenizer_files) if not file.is_file()]
    if missing:
        raise ValueError(f"tokenizer_files must exist, but {missing[0]} is missing")
    check_parameters(parameters, model)
    plan = plan_shards(pieces(model), kind.itemsize, shard_bytes)
    with staged_folder(folder) as staged:
        with _progress(plan, kind) as progress:
            for name, members in plan.items():
                values = (_changed(piece, piece.value_in(parameters), change) for piece in members)
                with open(staged / name, "wb") as file:
                    write_tensors(file, members, values, kind, progress)
        for file in map(Path, tokenizer_files):
            shutil.copyfile(file, staged / file.name)
        texts = {"generation_config.json": _json(generation_fields(eos_ids, pad_id)), **(extra_files or {})}
        if len(plan) > 1:
            texts[safetensors.INDEX] = _json(_index(plan, kind.itemsize))
        # The configuration comes last: without it nothing takes the folder for a model.
        texts["config.json"] = _json(config_json(model, kind.name, eos_ids[0]) | dict(config_fields or {}))
        for name, text in texts.items():
            _write_text(staged / name, text)
    return Path(folder)


def check_parameters(parameters: Mapping[str, Any], model: qwen3.Qwen3Config) -> None:
    """Compares the tree with the model's.

    Raises:
        ValueError: naming the leaf that is missing, surplus or of another shape.
    """
    expected = {jax.tree_util.keystr(path): row.shape for path, row in _rows(abstract_parameters(model))}
    found = {jax.tree_util.keystr(path): leaf.shape for path, leaf in _rows(parameters)}
    for name in {**expected, **found}:
        if expected.get(name) != found.get(name):
            wanted, got = expected.get(name, "absent"), found.get(name, "absent")
            raise ValueError(f"parameters{name} must be {wanted} for this model, got {got}")


def plan_shards(members: Sequence[Piece], itemsize: int, shard_bytes: int) -> dict[str, list[Piece]]:
    """File name -> its tensors, in order, none above `shard_bytes` unless a single tensor is.

    Raises:
        ValueError: if `shard_bytes` is below 1.
    """
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes must be >= 1, got {shard_bytes}")
    groups: list[list[Piece]] = [[]]
    filled = 0
    for piece in members:
        size = math.prod(piece.shape) * itemsize
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(piece)
        filled += size
    if len(groups) == 1:
        return {safetensors.SINGLE: groups[0]}
    return {f"model-{n:05d}-of-{len(groups):05d}.safetensors": group for n, group in enumerate(groups, start=1)}


def write_tensors(
    file: BinaryIO,
    members: Sequence[Piece],
    values: Iterator[np.ndarray],
    kind: np.dtype,
    progress: tqdm,
) -> None:
    """Writes a safetensors file: the header's length, the header, then values as they come.

    Raises:
        ValueError: naming the tensor that is not finite in `kind`.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for piece in members:
        start, end = end, end + math.prod(piece.shape) * kind.itemsize
        header[piece.name] = {"dtype": DTYPES[kind.name], "shape": list(piece.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for piece, value in zip(members, values, strict=True):
        if value.shape != piece.shape:
            raise ValueError(f"tensor {piece.name} must have shape {piece.shape}, got {value.shape}")
        rows = max(1, _BLOCK_BYTES // (math.prod(piece.shape[1:]) * kind.itemsize))
        for at in range(0, piece.shape[0], rows):
            with np.errstate(over="ignore"):  # what overflows is not finite, and refused
                block = np.ascontiguousarray(value[at : at + rows], dtype=kind)
            if not np.isfinite(block).all():
                raise ValueError(f"tensor {piece.name} must be finite in {kind.name}; nothing was saved")
            file.write(block.view(np.uint8).data)
            progress.update(block.nbytes)
    file.flush()
    os.fsync(file.fileno())


def config_json(model: qwen3.Qwen3Config, dtype: str, eos_id: int) -> dict[str, Any]:
    """config.json as the dense Qwen3 models are published with it, which transformers 4 and 5 both read."""
    sizes = {published: getattr(model, ours) for published, ours in SIZE_FIELDS.items()}
    fixed = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": _MAX_POSITIONS,
        "max_window_layers": model.num_layers,
        "rope_scaling": None,
        "sliding_window": None,
        "use_cache": True,
        "use_sliding_window": False,
    }
    return {**fixed, **sizes, "torch_dtype": dtype, "eos_token_id": int(eos_id)}


def generation_fields(eos_ids: Sequence[int], pad_id: int) -> dict[str, Any]:
    """generation_config.json: every id that ends a completion, and the one of padding."""
    return {"eos_token_id": [int(token) for token in eos_ids], "pad_token_id": int(pad_id)}


def find_tokenizer_files(folder: str | Path) -> list[Path]:
    """The tokenizer's files in a model's folder, chat template included."""
    return [Path(folder) / name for name in TOKENIZER_FILES if (Path(folder) / name).is_file()]


@contextlib.contextmanager
def staged_folder(folder: str | Path) -> Iterator[Path]:
    """A hidden neighbour to write into, which gets the folder's name at the end of the block.

    If the block raises, nothing remains; a process that is killed leaves the hidden neighbour alone.

    Raises:
        ValueError: the folder exists, or cannot be written.
    """
    target = Path(folder).absolute()
    staged = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    if target.exists() or target.is_symlink():
        raise ValueError(f"{folder} already exists; choose another folder or delete it")
    try:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        yield staged
        if target.exists():  # a rename would replace an empty folder without a word
            raise ValueError(f"{folder} already exists; choose another folder or delete it")
        staged.rename(target)
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _changed(piece: Piece, value: np.ndarray, change: Callable[[Piece, np.ndarray], np.ndarray] | None) -> np.ndarray:
    return value if change is None else change(piece, value)


def _rows(tree: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(dict(tree))


def _progress(plan: Mapping[str, Sequence[Piece]], kind: np.dtype) -> tqdm:
    total = sum(math.prod(piece.shape) for members in plan.values() for piece in members) * kind.itemsize
    return tqdm(total=total, desc="saving", unit="B", unit_scale=True, disable=None)


def _index(plan: Mapping[str, Sequence[Piece]], itemsize: int) -> dict[str, Any]:
    weight_map = {piece.name: file for file, members in plan.items() for piece in members}
    total = sum(math.prod(piece.shape) for members in plan.values() for piece in members) * itemsize
    return {"metadata": {"total_size": total}, "weight_map": weight_map}


def _json(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, indent=2, allow_nan=False) + "\n"


def _write_text(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
