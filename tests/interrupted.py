"""Runs of the real command that are killed, and the comparison of what they leave. Shared by the tests of resuming.

A program compiled once is read from a cache in every restart; the machine code, and so every bit, is the same.
"""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from vgrout_jax.run import snapshots
from vgrout_jax.run.continuation import state_steps

ROOT = Path(__file__).resolve().parents[1]
STEPS = 6
# A short run in which every part has its turn: two directions, three evaluations, states of the steps 2, 4 and 6.
FLAGS = (
    f"--config.train.steps={STEPS}",
    "--config.gate.refresh_every=3",
    "--config.eval.every_steps=3",
    "--config.eval.samples=1",
    "--config.eval.problems=2",
    "--config.log.gradients=True",
    "--config.grader.workers=2",
    "--config.checkpoint.keep=2",
)
TIMES = ("time/", "tokens_per_second")


def environment(cache: Path) -> dict[str, str]:
    """Of a run: the compiler's usual effort, and a cache of compiled programs."""
    kept = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "PYTHONPATH")}
    return kept | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONUNBUFFERED": "1",
    }


def start(workdir: Path, cache: Path, *flags: str, point: str = "", arm: str = "routeV") -> subprocess.Popen:
    """Starts the command; `point` names where tests/killed_at.py ends it with SIGKILL."""
    program = [str(ROOT / "tests" / "killed_at.py"), point] if point else ["-m", "vgrout_jax.main"]
    command = [sys.executable, *program, f"--config={ROOT}/configs/{arm}.py:smoke", f"--workdir={workdir}"]
    return subprocess.Popen(
        [*command, *FLAGS, *flags],
        cwd=workdir.parent,
        env=environment(cache),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(workdir: Path, cache: Path, *flags: str, **options: Any) -> tuple[int, str]:
    """Exit status and output of the command, awaited."""
    process = start(workdir, cache, *flags, **options)
    output, _ = process.communicate(timeout=600)
    return process.returncode, output


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def points(folder: Path) -> list[tuple[int, str, float]]:
    """Every point of a folder's event files, times left out."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            data = data[16 + length :]
    return [point for point in found if not point[1].startswith(TIMES)]


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """Of a folder that Orbax wrote."""
    import orbax.checkpoint as ocp

    tree = ocp.PyTreeCheckpointer().restore(folder)
    flat = {}
    for name, node in tree.items():
        flat |= {f"{name}.{key}": leaf for key, leaf in node.items()} if isinstance(node, dict) else {name: node}
    return {name: np.asarray(leaf) for name, leaf in flat.items()}


def content(workdir: Path) -> dict[str, Any]:
    """Everything in a workdir that two equal runs share: all of it but times and the names of temporary files."""
    found: dict[str, Any] = {"names": sorted(path.name for path in workdir.iterdir())}
    for name in ("config.json", "summary.json"):
        found[name] = json.loads((workdir / name).read_text())
    metrics = lines(workdir / "metrics.jsonl")
    found["metrics"] = [{k: v for k, v in line.items() if not k.startswith(TIMES)} for line in metrics]
    found["eval"] = (workdir / "eval.jsonl").read_text()
    for path in sorted([*workdir.glob("rollouts/*"), *workdir.glob("gradients/*")]):
        data = path.read_bytes()
        found[f"{path.parent.name}/{path.name}"] = gzip.decompress(data) if path.suffix == ".gz" else data
    found["tensorboard"] = sorted(points(workdir / "tensorboard"))
    found["adapter"] = {name: leaf.tobytes() for name, leaf in arrays(workdir / "adapter" / "factors").items()}
    found["adapter record"] = json.loads((workdir / "adapter" / "metadata.json").read_text())
    found["states"] = [state(workdir, step) for step in state_steps(workdir / "resume")]
    return found


def state(workdir: Path, step: int) -> tuple[int, dict, dict]:
    """A resume state: step, bytes of every array, record without times."""
    snapshot = snapshots.read(workdir / "resume", step)
    record = {name: value for name, value in snapshot.record.items() if name != "direction_seconds"}
    return snapshot.step, {name: leaf.tobytes() for name, leaf in snapshot.arrays.items()}, record


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Two contents, part by part, so that a failure names the part."""
    assert list(one) == list(other)
    for name in one:
        assert one[name] == other[name], f"{name} differs"
