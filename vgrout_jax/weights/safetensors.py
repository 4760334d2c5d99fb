"""The safetensors files of a checkpoint folder: which tensors they hold, and their values block by block."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

_BLOCK_BYTES = 64 * 2**20  # of a tensor that are read at one time


class Tensor(NamedTuple):
    """Where a published tensor stands, and what its file says of it."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


def model_error(message: str) -> ValueError:
    """The error of a model that cannot be read, in one line that names the field to change."""
    return ValueError(f"model.path: {message}")


def read_json(file: Path) -> dict[str, Any]:
    """A file's one JSON object.

    Raises:
        ValueError: if there is no such file or it holds something else.
    """
    if not file.is_file():
        raise model_error(f"{file} is missing")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise model_error(f"{file} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise model_error(f"{file} must hold one JSON object, got {type(fields).__name__}")
    return fields


def has_weights(folder: Path) -> bool:
    """Whether the folder has a weights file or the index of several; the shards themselves may be missing."""
    return (folder / SINGLE).is_file() or (folder / INDEX).is_file()


def weight_files(folder: Path) -> list[Path]:
    """The single weights file, or every shard that the index lists."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise model_error(f"{folder} has neither {SINGLE} nor {INDEX}; weights must be in safetensors format")
    names = read_json(folder / INDEX).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise model_error(f"{folder / INDEX} has no field weight_map of tensor and file names")
    return [folder / name for name in sorted(set(names.values()))]


def list_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the checkpoint by name, from the files' headers alone.

    Raises:
        ValueError: if a file is missing, truncated or corrupt, or a tensor is stored twice.
    """
    found: dict[str, Tensor] = {}
    for file in weight_files(folder):
        if not file.is_file():
            raise model_error(f"{file} is missing, but {INDEX} lists it; download it again")
        try:
            with safe_open(file, framework="numpy") as handle:
                for name in handle.keys():  # noqa: SIM118 (the handle is no dict)
                    piece = handle.get_slice(name)
                    if name in found:
                        raise model_error(f"tensor {name} is in {found[name].file} and in {file}")
                    found[name] = Tensor(file, name, tuple(piece.get_shape()), piece.get_dtype())
        except SafetensorError as error:
            raise model_error(
                f"{file} is truncated or corrupt at {_first_cut(file)} ({error}); download it again"
            ) from error
    return found


def _first_cut(file: Path) -> str:
    """What the file is too short to hold: the name of its first such tensor, or its header."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        header_size = int.from_bytes(handle.read(8), "little")
        if size < 8 + header_size:
            return "its header"
        try:
            header = json.loads(handle.read(header_size))
            ends = {name: row["data_offsets"][1] for name, row in header.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError):
            return "its header"
    cut = [name for name in sorted(ends, key=ends.__getitem__) if 8 + header_size + ends[name] > size]
    return f"tensor {cut[0]}" if cut else "its end"


def blocks(tensor: Tensor) -> Iterator[tuple[int, np.ndarray]]:
    """A tensor's rows in blocks, each with the index of its first row.

    The file is mapped anew for every block: pages that were read stay resident while a mapping lives, and
    would add up to a second copy of the checkpoint.
    """
    row_bytes = math.prod(tensor.shape[1:]) * (4 if tensor.dtype == "F32" else 2)
    rows = max(1, _BLOCK_BYTES // row_bytes)
    for start in range(0, tensor.shape[0], rows):
        stop = min(start + rows, tensor.shape[0])  # the library refuses a slice that ends beyond the tensor
        with safe_open(tensor.file, framework="numpy") as handle:
            block = handle.get_slice(tensor.name)[start:stop]
        yield start, block
