"""Stored probe gradients: what lets any gate setting be replayed offline (docs/method.md section 15).

Gradients are stored in bfloat16, scores, direction and bands in float32. So a run's own labels follow exactly from
what is stored, and so do those of other thresholds; scores that are computed again from the stored gradients, for
another direction or other bands, have bfloat16's rounding in them.
"""

import dataclasses
import io
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vgrout_jax.common import files
from vgrout_jax.rl.step import StepMetrics
from vgrout_jax.routing.direction import Bands, Routing

FOLDER = "gradients"


@dataclasses.dataclass(frozen=True)
class StoredStep:
    """A step's rollouts, as the gate saw them.

    Attributes:
        probe: [N, M, r] float32 values of bfloat16 numbers.
        score: [N] float32, the gate's z.
        scored: [N] bool.
        label: [N] int32.
        advantage: [N] float32.
        placebo_score: [N] float32, z along the random direction of the placebo `direction_matched`, else None.
    """

    probe: np.ndarray
    score: np.ndarray
    scored: np.ndarray
    label: np.ndarray
    advantage: np.ndarray
    placebo_score: np.ndarray | None


def _bits(leaf: jax.Array | np.ndarray) -> np.ndarray:
    """bfloat16 as uint16 bit patterns, which .npz files can hold; `from_bits` undoes it."""
    return np.asarray(leaf.astype("bfloat16")).view(np.uint16)


def from_bits(bits: np.ndarray) -> np.ndarray:
    """Float32 values of stored bfloat16 bit patterns."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def save_step(workdir: Path, step: int, metrics: StepMetrics) -> None:
    """Writes gradients/step_NNNNNN.npz: probe [N, M, r] (bfloat16 bits), score, scored, label, advantage [N].

    The placebo `direction_matched` adds `placebo_score` [N].
    """
    decision = metrics.decision
    extra = {name: np.asarray(leaf) for name, leaf in decision.record.items() if name == "placebo_score"}
    _save(
        workdir / FOLDER / f"step_{step:06d}.npz",
        probe=_bits(metrics.probe),
        score=np.asarray(decision.record["score"]),
        scored=np.asarray(decision.scored),
        label=np.asarray(decision.labels),
        advantage=np.asarray(decision.advantages),
        **extra,
    )


def save_direction(workdir: Path, step: int, routing: Routing, sides: jax.Array) -> None:
    """Writes gradients/direction_NNNNNN.npz: v [M, r], the bands [M], and both sides' gradients [2P, M, r].

    The placebo `direction_matched` adds its random direction and the bands of that, as `placebo_v` and so on.
    """
    arrays = {"v": routing.v, **_bands(routing.bands)}
    if routing.random is not None:
        arrays |= {f"placebo_{name}": leaf for name, leaf in _bands(routing.random.bands).items()}
        arrays["placebo_v"] = routing.random.v
    plain = {name: np.asarray(leaf) for name, leaf in arrays.items()}
    _save(workdir / FOLDER / f"direction_{step:06d}.npz", **plain, sides=_bits(sides))


def stored_steps(workdir: Path) -> list[int]:
    """Steps whose gradients are on disk, ascending."""
    return _numbers(workdir, "step")


def stored_directions(workdir: Path) -> list[int]:
    """Steps before which the direction was extracted and stored, ascending."""
    return _numbers(workdir, "direction")


def load_step(workdir: Path, step: int) -> StoredStep:
    """What `save_step` wrote.

    Raises:
        ValueError: it is missing or damaged.
    """
    stored = _load(workdir / FOLDER / f"step_{step:06d}.npz")
    plain = {name: stored[name] for name in ("score", "scored", "label", "advantage")}
    return StoredStep(probe=from_bits(stored["probe"]), placebo_score=stored.get("placebo_score"), **plain)


def load_direction(workdir: Path, step: int) -> tuple[Routing, np.ndarray]:
    """The routing that `save_direction` wrote, and both sides' gradients, [2P, M, r] float32, hack sides first.

    Raises:
        ValueError: it is missing or damaged.
    """
    stored = _load(workdir / FOLDER / f"direction_{step:06d}.npz")

    def bands(prefix: str) -> Bands:
        leaves = {name: jnp.asarray(stored[prefix + name]) for name in ("low_edge", "high_edge", "width", "usable")}
        return Bands(**leaves, usable_modules=jnp.sum(leaves["usable"], dtype=jnp.int32))

    random = Routing(jnp.asarray(stored["placebo_v"]), bands("placebo_")) if "placebo_v" in stored else None
    return Routing(jnp.asarray(stored["v"]), bands(""), random), from_bits(stored["sides"])


def _numbers(workdir: Path, kind: str) -> list[int]:
    return sorted(int(path.stem.removeprefix(f"{kind}_")) for path in (workdir / FOLDER).glob(f"{kind}_*.npz"))


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as stored:
            return dict(stored)
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; a run stores it with log.gradients=true") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged and cannot be read; leave this run out") from error


def _bands(bands: Bands) -> dict[str, jax.Array]:
    names = ("low_edge", "high_edge", "width", "usable")
    return {name: getattr(bands, name) for name in names}


def _save(path: Path, **arrays: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    path.parent.mkdir(exist_ok=True)
    files.write_atomic(path, buffer.getvalue())
