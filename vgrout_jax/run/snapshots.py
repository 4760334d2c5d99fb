"""The state that a run resumes from: written in the background, checked byte for byte before it is used.

    WORKDIR/resume/000012/arrays/        Orbax: dA, dB, moments, the arm's memory, the last good differences
    WORKDIR/resume/000012/manifest.json  everything else, and a checksum of every file, its own included

A state stands between two steps: that of step 12 holds what steps 0 to 11 have left. It is written under a hidden
name and renamed once it is whole and on disk. Reference: docs/method.md section 15, docs/reliability.md.
"""

import concurrent.futures
import dataclasses
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vgrout_jax.common import files
from vgrout_jax.run.continuation import remove_state, state_steps

logger = logging.getLogger(__name__)

FORMAT = 2  # raised when a reader of the old one would misread the new one
_BLOCK = 1 << 22


class Damaged(Exception):
    """A state that is not what was written; the message says which of its files is wrong."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A run between two steps, on the host.

    Attributes:
        step: updates done, which is the number of the next step.
        arrays: name -> array, by `pack`.
        record: JSON values that go with them.
    """

    step: int
    arrays: Mapping[str, np.ndarray]
    record: Mapping[str, Any]


class Store:
    """Writes snapshots below one folder, one at a time, in the background; the newest few are kept."""

    def __init__(self, folder: Path, *, keep: int):
        """Removes what an interrupted write, or a kill before the last clearing, has left.

        Args:
            folder: `WORKDIR/resume`; created with the first state.
            keep: states that are kept, `checkpoint.keep`.
        """
        self.folder, self.keep = folder, keep
        self._writer = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="resume")
        self._pending: tuple[int, concurrent.futures.Future[None]] | None = None
        for leftover in folder.glob(".*") if folder.is_dir() else ():
            shutil.rmtree(leftover, ignore_errors=True)
        self._prune()

    def save(self, snapshot: Snapshot) -> None:
        """Starts to write a snapshot, when the one before it is on disk; one that is there already is left alone.

        A write that fails costs nothing but its state: a warning names it and the one that remains.
        """
        try:
            self.wait()
        except OSError as error:
            logger.warning("%s; the run goes on", error)
        if snapshot.step not in state_steps(self.folder):
            self._pending = (snapshot.step, self._writer.submit(self._write, snapshot))

    def wait(self) -> None:
        """Waits until the last snapshot is on disk.

        Raises:
            OSError: it could not be written; names the state that a resume would take instead.
        """
        if self._pending is None:
            return
        (step, future), self._pending = self._pending, None
        try:
            future.result()
        except Exception as error:  # Orbax and TensorStore raise a dozen kinds for a disk that is full
            reason = _reason(error)
            remaining = state_steps(self.folder)
            rest = f"the last one is that of step {remaining[-1]}" if remaining else "there is no earlier one"
            raise OSError(f"the resume state of step {step} could not be written ({reason}); {rest}") from error

    def close(self) -> None:
        """Waits for the writer's thread; what went wrong in it is logged."""
        try:
            self.wait()
        except OSError as error:
            logger.warning("%s", error)
        self._writer.shutdown()

    def _write(self, snapshot: Snapshot) -> None:
        temporary, path = self.folder / f".{snapshot.step:06d}.tmp", self.folder / f"{snapshot.step:06d}"
        try:
            temporary.mkdir(parents=True)
            write_arrays(temporary / "arrays", snapshot.arrays)
            content = {
                "format": FORMAT,
                "step": snapshot.step,
                "arrays": {name: [list(leaf.shape), leaf.dtype.name] for name, leaf in snapshot.arrays.items()},
                "files": _digests(temporary),
                "record": files.to_plain(snapshot.record),
            }
            files.write_json(temporary / "manifest.json", {"content": content, "sha256": _content_digest(content)})
            _sync_folder(temporary)
            temporary.rename(path)
            _sync_folder(self.folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._prune()

    def _prune(self) -> None:
        for step in state_steps(self.folder)[: -self.keep]:
            remove_state(self.folder, step)


def newest(folder: Path) -> Snapshot | None:
    """The newest state that is whole; None where there is none at all.

    Every newer one that is damaged is named in a warning, together with the one that is used instead.

    Raises:
        ValueError: there are states, and all of them are damaged.
    """
    damaged: list[str] = []
    for step in reversed(state_steps(folder)):
        try:
            snapshot = read(folder, step)
        except Damaged as error:
            damaged.append(f"resume state {folder / f'{step:06d}'} is damaged ({error})")
            continue
        for text in damaged:
            logger.warning("%s; using %s instead", text, folder / f"{step:06d}")
        return snapshot
    if damaged:
        raise ValueError(
            f"{'; '.join(damaged)}; there is no whole one, so the run cannot continue: restore one of them from a "
            "copy, or choose another workdir"
        )
    return None


def read(folder: Path, step: int) -> Snapshot:
    """One state, every byte of it checked.

    Raises:
        Damaged: a file is missing, cut short or changed.
        ValueError: it was written by a version with another format.
    """
    path = folder / f"{step:06d}"
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="ascii"))
        content, digest = manifest["content"], manifest["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged("manifest.json cannot be read") from error
    if _content_digest(content) != digest:
        raise Damaged("manifest.json has another checksum")
    if content["format"] != FORMAT:
        raise ValueError(
            f"resume state {path} has format {content['format']}, this version reads {FORMAT}: continue the run with "
            "the version that began it, or choose another workdir"
        )
    found = _digests(path)
    for name, expected in content["files"].items():
        if found.get(name) != expected:
            raise Damaged(f"{name} has another checksum" if name in found else f"{name} is missing")
    like = {name: np.zeros(shape, dtype) for name, (shape, dtype) in content["arrays"].items()}
    try:
        arrays = read_arrays(path / "arrays", like)
    except Exception as error:  # Orbax and TensorStore raise a dozen kinds
        raise Damaged(f"arrays/ cannot be read: {type(error).__name__}") from error
    return Snapshot(content["step"], arrays, content["record"])


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays with Orbax."""
    import orbax.checkpoint as ocp  # here, because the import takes about a second

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), dict(arrays))
        checkpointer.wait_until_finished()


def read_arrays(folder: Path, like: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Reads named arrays of known shapes and types."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder.absolute(), dict(like))


def pack(tree: Any) -> dict[str, np.ndarray]:
    """Every array of a tree as a copy on the host, by name; the next step may take the memory of the originals."""
    leaves = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return {name: np.array(leaf, copy=True) for name, leaf in jax.device_get(leaves).items()}


def unpack(arrays: Mapping[str, np.ndarray], like: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a tree that `pack` was given, on the devices.

    Args:
        arrays: of a snapshot.
        like: part -> a tree of arrays or `jax.ShapeDtypeStruct`s with the shapes, types and shardings of this run;
            it is not changed. A part of which nothing was stored comes back as None.

    Raises:
        ValueError: an array is missing or has another shape or type: the state belongs to another model.
    """
    found: dict[str, Any] = {}
    for part, tree in like.items():
        stored = any(name.startswith(f"{part}.") for name in arrays)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, tree)
        found[part] = jax.device_put(_fill({part: tree}, arrays)[part], shardings) if stored else None
    return found


def _fill(like: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """A tree in the structure of `like` with the arrays of its leaves' names."""
    named, structure = jax.tree_util.tree_flatten_with_path(like)
    leaves = []
    for path, leaf in named:
        name, wanted = _name(path), (leaf.shape, leaf.dtype)
        found = arrays.get(name)
        if found is None or (found.shape, found.dtype) != wanted:
            there = "nothing" if found is None else f"{found.dtype}{list(found.shape)}"
            raise ValueError(
                f"the resume state belongs to another model: {name} is {there} there, "
                f"{leaf.dtype}{list(leaf.shape)} in this run"
            )
        leaves.append(found)
    return jax.tree_util.tree_unflatten(structure, leaves)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _reason(error: Exception) -> str:
    """Why a write failed, in one line; TensorStore words a full disk in its own way."""
    if "RESOURCE_EXHAUSTED" in str(error):
        return os.strerror(errno.ENOSPC)
    return " ".join((getattr(error, "strerror", None) or str(error)).split())[:300]


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder but its manifest, by relative name."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / "manifest.json")
    return {path.relative_to(folder).as_posix(): _file_digest(path) for path in found}


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _content_digest(content: Any) -> str:
    return hashlib.sha256(files.dumps(content, sort_keys=True).encode("ascii")).hexdigest()


def _sync_folder(folder: Path) -> None:
    """Puts a folder's names on disk, as fsync does for a file's bytes."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
