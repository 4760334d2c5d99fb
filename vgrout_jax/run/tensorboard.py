"""TensorBoard's event files: scalars that are on disk when the call returns, and cutting a file back to a step."""

import importlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from vgrout_jax.common import files


def _tensorboard(name: str) -> ModuleType:
    """A module of tensorboardX, which imports PyTorch for its own use wherever that is installed: seconds of a start.

    It gets on without. What has been imported before stays as it is.
    """
    if "torch" in sys.modules or "tensorboardX" in sys.modules:
        return importlib.import_module(f"tensorboardX.{name}")
    sys.modules["torch"] = None  # an import of it is an ImportError
    try:
        return importlib.import_module(f"tensorboardX.{name}")
    finally:
        del sys.modules["torch"]


class EventFile:
    """Appends scalars to an event file of its own.

    tensorboardX's `SummaryWriter` hands events to a thread, and its flush does not wait for it: a run that is killed
    would lose points of steps that are done. This one writes in the caller's thread.
    """

    def __init__(self, folder: Path):
        """Creates the folder and a file in it whose name no other process has had."""
        folder.mkdir(parents=True, exist_ok=True)
        # The name itself holds the second alone; TensorBoard reads the files in the order of their names.
        self._writer = _tensorboard("event_file_writer").EventsWriter(str(folder / "events"), f".{time.time_ns()}")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the scalars of a step.

        Raises:
            OSError: the disk takes no more.
        """
        make_event, scalar = _tensorboard("proto.event_pb2").Event, _tensorboard("summary").scalar
        now = time.time()
        for tag, value in scalars.items():
            self._writer.write_event(make_event(wall_time=now, step=step, summary=scalar(tag, value)))
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()


def cut_events(path: Path, step: int) -> None:
    """Keeps the events of a file before a step; a record that a kill has cut short goes too.

    A record is a length of 8 bytes, its checksum of 4, the event, and the event's checksum of 4.
    """
    parse = _tensorboard("proto.event_pb2").Event.FromString
    data, kept, place = path.read_bytes(), [], 0
    while place + 12 <= len(data):
        end = place + 16 + int.from_bytes(data[place : place + 8], "little")
        if end > len(data):
            break
        event = parse(data[place + 12 : end - 4])
        if not event.HasField("summary") or event.step < step:
            kept.append(data[place:end])
        place = end
    if b"".join(kept) != data:
        files.write_atomic(path, b"".join(kept))
