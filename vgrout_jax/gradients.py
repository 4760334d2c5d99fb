"""Stored probe gradients: what lets any gate setting be replayed offline (docs/method.md section 15)."""

import io
from pathlib import Path

import jax
import numpy as np

from vgrout_jax import files
from vgrout_jax.rl.step import StepMetrics
from vgrout_jax.routing.direction import Bands, Routing

FOLDER = "gradients"


def _bits(leaf: jax.Array | np.ndarray) -> np.ndarray:
    """bfloat16 as uint16 bit patterns, which .npz files can hold; `from_bits` undoes it."""
    return np.asarray(leaf.astype("bfloat16")).view(np.uint16)


def from_bits(bits: np.ndarray) -> np.ndarray:
    """Float32 values of stored bfloat16 bit patterns."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def save_step(workdir: Path, step: int, metrics: StepMetrics) -> None:
    """Writes gradients/step_NNNNNN.npz: probe [N, M, r] (bfloat16 bits), score, scored, label, advantage [N]."""
    _save(
        workdir / FOLDER / f"step_{step:06d}.npz",
        probe=_bits(metrics.probe),
        score=np.asarray(metrics.gate.scores),
        scored=np.asarray(metrics.gate.scored),
        label=np.asarray(metrics.gate.labels),
        advantage=np.asarray(metrics.advantages),
    )


def save_direction(workdir: Path, step: int, routing: Routing, sides: jax.Array) -> None:
    """Writes gradients/direction_NNNNNN.npz: v [M, r], the bands [M], and both sides' gradients [2P, M, r].

    The placebo `direction_matched` adds its random direction and the bands of that, as `placebo_v` and so on.
    """
    arrays = {"v": routing.v, **_bands(routing.bands)}
    if routing.placebo_v is not None:
        arrays |= {f"placebo_{name}": leaf for name, leaf in _bands(routing.placebo_bands).items()}
        arrays["placebo_v"] = routing.placebo_v
    plain = {name: np.asarray(leaf) for name, leaf in arrays.items()}
    _save(workdir / FOLDER / f"direction_{step:06d}.npz", **plain, sides=_bits(sides))


def _bands(bands: Bands) -> dict[str, jax.Array]:
    names = ("low_edge", "high_edge", "width", "usable")
    return {name: getattr(bands, name) for name in names}


def _save(path: Path, **arrays: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    path.parent.mkdir(exist_ok=True)
    files.write_atomic(path, buffer.getvalue())
