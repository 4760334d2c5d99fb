"""The folder of a run: who may write into it, what a run that was there before means, and cutting it back.

`--workdir` alone decides. A folder with a resume state continues from it, one with the result of a finished run is
left alone, one with files but no state starts again; a configuration that differs is refused (docs/reliability.md).
"""

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vgrout_jax.common import files
from vgrout_jax.config import Config
from vgrout_jax.run.tensorboard import cut_events

logger = logging.getLogger(__name__)

LINE_FILES = ("metrics.jsonl", "eval.jsonl")
LOCK, STATES = ".lock", "resume"
# What a run may be continued with, though it was started with another value. Nothing here reaches the adapter's
# bits but the number of steps, on which the learning rate's schedule hangs.
MAY_CHANGE = ("train.steps", "eval.every_steps", "grader.workers", "checkpoint.", "log.", "profile.")
_STEP_FILE = re.compile(r"(?:step|eval|direction)_(\d{6,})\.(?:jsonl\.gz|npz)")


@dataclasses.dataclass(frozen=True)
class Found:
    """What a workdir holds of an earlier run.

    Attributes:
        workdir: the folder.
        started: there are files of a run.
        states: steps of its resume states, ascending, whole or damaged.
        lines: complete lines of metrics.jsonl, the steps that were recorded.
        config: what config.json holds without the provenance, None without the file.
        provenance: the hashes in it.
        finished: `steps` of summary.json, None without the file.
    """

    workdir: Path
    started: bool
    states: tuple[int, ...]
    lines: int
    config: Mapping[str, Any] | None
    provenance: Mapping[str, Any]
    finished: int | None


@contextlib.contextmanager
def claim(workdir: Path) -> Iterator[None]:
    """Holds the workdir's lock, which ends with the process however that ends; creates the folder.

    A folder in which nothing was written is removed again.

    Raises:
        ValueError: another process holds the lock, or the folder cannot be written.
    """
    try:
        created = not workdir.exists()
        workdir.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(workdir)
    except OSError as error:
        raise ValueError(folder_problem(workdir, error)) from error
    try:
        yield
    finally:
        if created and [path.name for path in workdir.iterdir()] == [LOCK]:
            (workdir / LOCK).unlink()
            with contextlib.suppress(OSError):
                workdir.rmdir()
        os.close(descriptor)


def _lock(workdir: Path) -> int:
    """The descriptor that holds the lock."""
    path = workdir / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise ValueError(f"workdir {workdir} is in use by {holder}; wait for it or choose another") from error
        # Whoever held the lock may have removed the file meanwhile; then this is the lock of nothing.
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            break
        os.close(descriptor)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return descriptor


def folder_problem(workdir: Path, error: OSError) -> str:
    """Why a workdir cannot be used, in one line."""
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        candidates = (workdir / "rollouts", workdir, *workdir.parents)
        file = next((path for path in candidates if path.is_file()), workdir)
        return f"workdir {workdir} must be a folder, but {file} is a file; choose another"
    return f"workdir {workdir} cannot be written ({error.strerror or error}); choose another"


def state_steps(folder: Path) -> list[int]:
    """The steps of the resume states in a folder, ascending, whole or damaged."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def remove_state(folder: Path, step: int) -> None:
    """Removes a state; under a hidden name first, so that no half of one is ever taken for a state."""
    hidden = folder / f".{step:06d}.old"
    (folder / f"{step:06d}").rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def look(workdir: Path) -> Found:
    """What a workdir holds.

    Raises:
        ValueError: config.json or summary.json is there and cannot be read.
    """
    config, summary = (_read_json(workdir / name) for name in ("config.json", "summary.json"))
    provenance = (config or {}).pop("provenance", {})
    steps = recorded_steps(workdir)
    return Found(
        workdir=workdir,
        started=config is not None or any((workdir / name).exists() for name in LINE_FILES),
        states=tuple(state_steps(workdir / STATES)),
        lines=len(steps),
        config=config,
        provenance=provenance,
        finished=None if summary is None else int(summary["steps"]),
    )


def recorded_steps(workdir: Path) -> list[int]:
    """The step of every complete line of metrics.jsonl."""
    return [step for step, _ in _lines(workdir / "metrics.jsonl")]


def check_continuable(found: Found, config: Config) -> None:
    """Refuses what would mix two runs in one folder, or throw a run away.

    Raises:
        ValueError: a field differs that must not; the run has gone further than `train.steps`; or its resume
            states have disappeared.
    """
    if found.config is not None:
        check_config(found.workdir, found.config, config)
    steps = config.train.steps
    if found.states and found.finished is None and found.states[-1] > steps:
        raise ValueError(
            f"train.steps must be >= {found.states[-1]}, which the run in {found.workdir} has done, got {steps}"
        )
    wanted = found.finished is None or found.finished < steps
    every = ((found.config or {}).get("checkpoint") or {}).get("every_steps", config.checkpoint.every_steps)
    # A state is written while the steps after it are done, so a kill can leave twice the distance without one.
    if wanted and not found.states and found.lines > 2 * every:
        raise ValueError(
            f"workdir {found.workdir} holds {found.lines} steps of a run but no resume state to continue from; "
            "choose another workdir or delete this one to start again"
        )


def check_config(workdir: Path, stored: Mapping[str, Any], config: Config) -> None:
    """Compares a run's stored configuration with the one it shall be continued with.

    Raises:
        ValueError: names every field that differs and may not, with both values.
    """
    before, now = _flat(stored), _flat(files.to_plain(config.to_dict()))
    differing = [
        f"{name} (started with {before.get(name, 'nothing')!r}, now {now.get(name, 'nothing')!r})"
        for name in sorted({*before, *now})
        if before.get(name, ...) != now.get(name, ...) and not name.startswith(MAY_CHANGE)
    ]
    if differing:
        raise ValueError(
            f"workdir {workdir} holds a run with another configuration: {', '.join(differing)}; continue it with "
            "the configuration in its config.json, or choose another workdir"
        )


def check_provenance(workdir: Path, stored: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compares the hashes of what a run reads: pairs, tokenizer, problems and pool.

    Raises:
        ValueError: names what has changed since the run was started.
    """
    differing = [name for name in now if name in stored and stored[name] != now[name]]
    if differing:
        names = ", ".join(name.removesuffix("_sha256") for name in differing)
        raise ValueError(
            f"workdir {workdir} holds a run over other data: {names} changed since it was started; restore them, "
            "or choose another workdir"
        )


def cut_back(workdir: Path, step: int) -> None:
    """Removes what lies at or after a step, so that each step that is done from here on is there once.

    Lines, rollouts, stored gradients, event files, newer states and what interrupted writes have left. Killed in
    between, it does the rest when it is called again.
    """
    for name in LINE_FILES:
        path = workdir / name
        if path.exists():
            kept = b"".join(line for number, line in _lines(path) if number < step)
            if kept != path.read_bytes():
                files.write_atomic(path, kept)
    for path in [*workdir.glob("rollouts/*"), *workdir.glob("gradients/*")]:
        match = _STEP_FILE.fullmatch(path.name)
        if match and int(match[1]) >= step:
            if path.name.startswith("step_") and path.parent.name == "rollouts":
                path.rename(graded_path(workdir, int(match[1])))  # its verdicts serve when the step is done again
            else:
                path.unlink()
        elif path.name.endswith(".tmp"):
            path.unlink()
    for path in workdir.glob("tensorboard/events.out.tfevents.*"):
        cut_events(path, step)
    for number in state_steps(workdir / STATES):
        if number > step:
            remove_state(workdir / STATES, number)
    (workdir / "summary.json").unlink(missing_ok=True)
    for path in workdir.glob(".*.[0-9]*.*"):  # of `files.write_atomic` and of the adapter's move
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def graded_path(workdir: Path, step: int) -> Path:
    """Where the verdicts of a step lie that is not done."""
    return workdir / "rollouts" / f"graded_{step:06d}.jsonl.gz"


def drop_graded(workdir: Path) -> None:
    """Removes verdicts of steps that will not be done: of a run that was made shorter."""
    for path in workdir.glob("rollouts/graded_*"):
        path.unlink()


def _lines(path: Path) -> list[tuple[int, bytes]]:
    """(step, line) of every complete line; a line that a kill has cut short is none."""
    found = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            step = json.loads(line)["step"]
            if line.endswith(b"\n"):
                found.append((int(step), line))
    return found


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, Mapping):
        return {prefix: node}
    return {
        name: value
        for key, inner in node.items()
        for name, value in _flat(inner, f"{prefix}.{key}" if prefix else key).items()
    }


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read ({reason}); restore it or remove it") from error
