"""Stored probe gradients: what lets any gate setting be replayed offline (docs/method.md section 15)."""

from pathlib import Path

import jax
import numpy as np

from vgrout_jax.rl.step import StepMetrics
from vgrout_jax.routing.direction import Routing

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
    """Writes gradients/direction_NNNNNN.npz: v [M, r], the bands [M], and both sides' gradients [2P, M, r]."""
    bands = routing.bands
    _save(
        workdir / FOLDER / f"direction_{step:06d}.npz",
        v=np.asarray(routing.v),
        low_edge=np.asarray(bands.low_edge),
        high_edge=np.asarray(bands.high_edge),
        width=np.asarray(bands.width),
        usable=np.asarray(bands.usable),
        sides=_bits(sides),
    )


def _save(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)
