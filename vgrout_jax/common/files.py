"""Strict JSON and atomic writes, for everything that a run leaves on disk."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def to_plain(value: Any) -> Any:
    """The value in types that strict JSON holds; NaN and infinities become None.

    Mappings, sequences, NumPy and jax arrays and scalars (bfloat16 too) are converted, paths become text.

    Raises:
        TypeError: for a type that has no JSON form.
    """
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if hasattr(value, "__array__"):
        return to_plain(np.asarray(value).tolist())
    raise TypeError(f"a value of type {type(value).__name__} has no JSON form")


def dumps(value: Any, *, indent: int | None = None, sort_keys: bool = False) -> str:
    """Strict JSON in ASCII: no NaN, and lone surrogates in a completion survive as escapes."""
    return json.dumps(to_plain(value), indent=indent, sort_keys=sort_keys, allow_nan=False)


def write_atomic(path: Path, content: bytes) -> None:
    """Writes a file that is seen either whole or not at all: a temporary neighbour, then a rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes readable strict JSON with sorted keys, atomically."""
    write_atomic(path, (dumps(value, indent=2, sort_keys=True) + "\n").encode())
