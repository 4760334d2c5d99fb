"""Adapters out, in the layout of Hugging Face PEFT: adapter_config.json and adapter_model.safetensors."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from vgrout_jax.model import lora2r
from vgrout_jax.weights import as_lora, store

# Values that vLLM takes for --max-lora-rank; an adapter's own rank may be anything up to it.
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)

_PARTS = {name: "self_attn" if index < 4 else "mlp" for index, name in enumerate(lora2r.MODULES)}


@dataclasses.dataclass(frozen=True)
class Compression:
    """What a truncation to a lower rank lost, in the Frobenius norm, before any rounding.

    Attributes:
        error: sqrt(sum of squared errors / sum of squared norms), over all maps.
        worst: the greatest relative error of one map.
        worst_map: its name.
    """

    error: float
    worst: float
    worst_map: str


def map_name(module: str, layer: int) -> str:
    """The published name of an adapted map."""
    return f"model.layers.{layer}.{_PARTS[module]}.{module}"


def rank_of(factors: lora2r.Factors) -> int:
    """K of a LoRA's factors."""
    return next(iter(factors.a.values())).shape[-2]


def compress(factors: lora2r.Factors, rank: int) -> tuple[lora2r.Factors, Compression]:
    """The closest LoRA of a lower rank, map by map, with a progress bar on terminals.

    Args:
        factors: of `fuse.lora_factors`, float32.
        rank: of the result, at most that of `factors`.

    Returns:
        The factors as NumPy arrays, float32, and what was lost.
    """
    a: dict[str, list[np.ndarray]] = {name: [] for name in factors.a}
    b: dict[str, list[np.ndarray]] = {name: [] for name in factors.b}
    lost, total, worst = 0.0, 0.0, (0.0, map_name(next(iter(factors.a)), 0))
    layers = next(iter(factors.a.values())).shape[0]
    maps = [(name, layer) for layer in range(layers) for name in factors.a]
    for name, layer in tqdm(maps, desc="compressing", unit="map", disable=None):
        full_a, full_b = np.asarray(factors.a[name][layer]), np.asarray(factors.b[name][layer])
        down, up, values = as_lora.truncate(full_a, full_b, rank)
        a[name].append(down)
        b[name].append(up)
        missed, whole = float(np.sum(values[rank:] ** 2)), float(np.sum(values**2))
        lost, total = lost + missed, total + whole
        worst = max(worst, (_ratio(missed, whole), map_name(name, layer)))
    stacked = lora2r.Factors(
        a={name: np.stack(leaves) for name, leaves in a.items()},
        b={name: np.stack(leaves) for name, leaves in b.items()},
    )
    return stacked, Compression(_ratio(lost, total), *worst)


def _ratio(part: float, whole: float) -> float:
    return math.sqrt(part / whole) if whole else 0.0


def adapter_config(rank: int, base: str) -> dict[str, Any]:
    """adapter_config.json of a plain LoRA on the seven maps of every layer, with scaling alpha / r = 1."""
    return {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": list(lora2r.MODULES),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def write_adapter(folder: Path, factors: lora2r.Factors, *, base: str, dtype: str, files: Mapping[str, str]) -> int:
    """Writes an adapter into a folder that is there; the configuration comes last.

    Args:
        folder: of the adapter.
        factors: a[module] [L, K, d_in], b[module] [L, d_out, K], of any float type.
        base: base_model_name_or_path.
        dtype: of the file, of `store.DTYPES`.
        files: name -> text of further files.

    Returns:
        The number of parameters.

    Raises:
        ValueError: a value is not finite in `dtype`.
    """
    members = pieces(factors)
    sources = {"a": factors.a, "b": factors.b}
    size = sum(math.prod(piece.shape) for piece in members)
    with tqdm(
        total=size * jnp.dtype(dtype).itemsize, desc="saving", unit="B", unit_scale=True, disable=None
    ) as progress:
        values = (piece.value_in(sources) for piece in members)
        with open(folder / "adapter_model.safetensors", "wb") as file:
            store.write_tensors(file, members, values, np.dtype(jnp.dtype(dtype)), progress)
    texts = {**files, "adapter_config.json": json.dumps(adapter_config(rank_of(factors), base), indent=2) + "\n"}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return size


def pieces(factors: lora2r.Factors) -> list[store.Piece]:
    """Every tensor of the adapter's file, by PEFT's name for it."""
    found = []
    for layer in range(next(iter(factors.a.values())).shape[0]):
        for module in factors.a:
            for letter, leaves in (("a", factors.a), ("b", factors.b)):
                name = f"base_model.model.{map_name(module, layer)}.lora_{letter.upper()}.weight"
                found.append(store.Piece(name, leaves[module].shape[1:], (letter, module), layer, False))
    return found


def vllm_rank(rank: int) -> int | None:
    """The least --max-lora-rank that vLLM takes and that holds an adapter of `rank`, None above its greatest."""
    return min((limit for limit in VLLM_RANKS if limit >= rank), default=None)
