"""What one training step leaves to the next, and its way into a resume state and back."""

import dataclasses
import importlib.metadata
import logging
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vgrout_jax.config import Config
from vgrout_jax.model import lora2r, sharding
from vgrout_jax.model.policy import Frozen
from vgrout_jax.rl import divergence
from vgrout_jax.rl.collapse import Memory
from vgrout_jax.rl.state import TrainState
from vgrout_jax.run import continuation, snapshots
from vgrout_jax.weights import checkpoint

logger = logging.getLogger(__name__)

SAMPLES = 8  # values of each frozen array, by which another model is recognised
_PACKAGES = ("jax", "jaxlib", "numpy", "optax")


@dataclasses.dataclass(frozen=True)
class Progress:
    """Everything that hangs on the steps before; what hangs on the configuration and the step's number is not here.

    Attributes:
        step: steps done, which is the number of the next one.
        state: of the optimiser.
        watch: the divergence guard's memory; a step works on a copy.
        good: differences of the last step at which the guard saw nothing wrong, and its number of updates.
        memory: what the arm's source has learnt from the pairs, a pytree that it alone knows; or None.
        direction_seconds: cost of the last extraction, spread over the steps that it serves.
        live_groups: groups with something to learn from, so far.
        collapse: what the warnings of a collapsed policy remember.
    """

    step: int
    state: TrainState
    watch: divergence.Guard
    good: tuple[lora2r.Factors, int] | None = None
    memory: Any = None
    direction_seconds: float | None = None
    live_groups: int = 0
    collapse: Memory = dataclasses.field(default_factory=Memory)


def begin(
    config: Config,
    found: continuation.Found,
    snapshot: snapshots.Snapshot | None,
    identity: dict[str, Any],
    fresh: Progress,
    memory: Any = None,
) -> Progress:
    """What the run begins with: the snapshot's content, or `fresh`; says which, and refuses another run's.

    `memory`: the shapes of the arm's memory, None where it has none.
    """
    continuation.check_provenance(found.workdir, found.provenance, identity["provenance"])
    if snapshot is None:
        if found.started:
            logger.warning(
                "%s holds a run that was interrupted before its first resume state; it starts again from step 0",
                found.workdir,
            )
        return fresh
    path = found.workdir / continuation.STATES / f"{snapshot.step:06d}"
    continuation.check_config(found.workdir, snapshot.record["config"], config)
    continuation.check_provenance(found.workdir, snapshot.record["provenance"], identity["provenance"])
    check_identity(path, snapshot.record, identity)
    missing = sorted(set(range(snapshot.step)) - set(continuation.recorded_steps(found.workdir)))
    if missing:
        logger.warning("%s: metrics.jsonl lacks the steps %s", found.workdir, ", ".join(map(str, missing[:10])))
    before, steps = snapshot.record["config"]["train"]["steps"], config.train.steps
    if before != steps:
        logger.warning(
            "train.steps was %d and is %d: from step %d on the learning rate follows the schedule of the new number, "
            "so the run is not the one that the same number from the start would be",
            *(before, steps, snapshot.step),
        )
    logger.info("continuing from %s with step %d", path, snapshot.step)
    return from_snapshot(snapshot, config, fresh.state, memory)


def to_snapshot(progress: Progress, identity: Mapping[str, Any]) -> snapshots.Snapshot:
    """A copy on the host, with what identifies the run.

    Args:
        progress: between two steps.
        identity: of `identity_of`.
    """
    good, good_step = progress.good or (None, None)
    record = {
        **identity,
        "guard": {"best": progress.watch.best, "low_steps": progress.watch.low_steps},
        "good_step": good_step,
        "direction_seconds": progress.direction_seconds,
        "live_groups": progress.live_groups,
        "collapse": dataclasses.asdict(progress.collapse),
    }
    arrays = snapshots.pack({"state": progress.state, "good": good, "memory": progress.memory})
    return snapshots.Snapshot(progress.step, arrays, record)


def from_snapshot(snapshot: snapshots.Snapshot, config: Config, like: TrainState, memory: Any) -> Progress:
    """Back on the devices, bit for bit.

    Args:
        snapshot: of `to_snapshot`.
        config: of the run.
        like: a state of the same shapes, such as the initial one; it is not changed.
        memory: the shapes of the arm's memory, or None where it has none.

    Raises:
        ValueError: the arrays are those of another model.
    """
    record, mesh = snapshot.record, like.step.sharding.mesh
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding.replicated(mesh)), memory
    )
    found = snapshots.unpack(snapshot.arrays, {"state": like, "good": like.deltas, "memory": shapes})
    good = found["good"]
    best = record["guard"]["best"]  # JSON has no infinity: None is a guard that has seen nothing
    watch = divergence.Guard(config.guard, -np.inf if best is None else best, record["guard"]["low_steps"])
    return Progress(
        step=snapshot.step,
        state=found["state"],
        watch=watch,
        good=None if good is None else (good, record["good_step"]),
        memory=found["memory"],
        direction_seconds=record["direction_seconds"],
        live_groups=record["live_groups"],
        collapse=Memory(**record["collapse"]),
    )


def identity_of(config: Config, provenance: Mapping[str, Any], frozen: Frozen) -> dict[str, Any]:
    """What a resumed run must agree in, and what it is warned about where it does not."""
    return {
        "config": config.to_dict(),
        "provenance": dict(provenance),
        "frozen_samples": _samples(frozen),
        "code_version": checkpoint.code_version(),
        "machine": {
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
            "python": platform.python_version(),
            "device": jax.devices()[0].device_kind,
            "processor": _processor(),
        },
    }


def check_identity(path: Path, stored: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses a state that belongs to another model, and warns where the machine or the code is another.

    Raises:
        ValueError: names a frozen array that differs: other weights, or another generator of A0 and B0.
    """
    for name, values in now["frozen_samples"].items():
        before = stored["frozen_samples"].get(name)
        if before is None or not np.allclose(before, values, rtol=0, atol=checkpoint.SAMPLE_TOLERANCE):
            raise ValueError(
                f"resume state {path} belongs to another model: {name} is not what it was when the run was "
                "started; the weights at model.path or the generator of A0/B0 have changed"
            )
    before, after = ({**part["machine"], **part["code_version"]} for part in (stored, now))
    differing = [f"{name} {before.get(name)} -> {after[name]}" for name in after if before.get(name) != after[name]]
    if differing:
        logger.warning(
            "continuing with %s: from here on the run may differ in its last bits from an uninterrupted one",
            ", ".join(differing),
        )


def _samples(frozen: Frozen) -> dict[str, list[float]]:
    """Values of every frozen array, evenly spread over it."""

    def pick(leaf: jax.Array) -> jax.Array:
        places = np.linspace(0, leaf.size - 1, SAMPLES).astype(int)
        return leaf[np.unravel_index(places, leaf.shape)]

    arrays = {"base": frozen.base, "init": frozen.init}
    picked = jax.device_get(jax.jit(lambda arrays: jax.tree.map(pick, arrays))(arrays))  # one program for all
    names = jax.tree_util.tree_leaves_with_path(picked)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(values, np.float32).tolist()
        for path, values in names
    }


def _processor() -> str:
    """The CPU's model, on which the last bits of a run on the CPU hang."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
