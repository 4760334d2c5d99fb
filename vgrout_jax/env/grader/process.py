"""One worker process, seen from the grader, and the descriptors of the child that runs in it."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

from vgrout_jax.config import GraderConfig
from vgrout_jax.env.modes import base

from . import folders
from . import layers as layers_module
from .answer import Answer, Report, Stage
from .checks import Plan
from .layers import Layers

_KNOWN_PROBLEMS = 256  # compiled problems that a worker keeps
_STDOUT_PART = 64 << 10  # bytes kept of the beginning of what is printed, and of its end
_PIPE = 1 << 20  # bytes that a pipe holds, so that it need not be read often
_STDOUT_READ = 8 << 20  # bytes read; what is printed beyond goes nowhere
_FILES_READ = 1 << 20
_LITTLE = 4096  # bytes at a time that are not worth the grader's while


class Run:
    """A stage in a worker: its child's socket, its output and what it leaves.

    Attributes:
        answer: whose stage it is.
        stage: the stage.
        job: this side of the child's socket.
        stdout: reading end of its standard output, or -1.
        files: reading end of what is collected after its end, or -1.
        trickles: what was last read of the socket was little, and completed nothing.
        watched: those of them whose events the grader waits for.
    """

    def __init__(self, answer: Answer, stage: Stage):
        self.answer = answer
        self.stage = stage
        self.job, self._child_job = socket.socketpair()
        self.job.setblocking(False)
        self.stdout = self.files = -1
        self.watched: set[socket.socket | int] = set()
        self._child_stdout = self._child_files = -1
        self.tests = stage is answer.tests
        if self.tests and answer.collects(base.STDOUT):
            self.stdout, self._child_stdout = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            os.set_blocking(self._child_stdout, True)
            with contextlib.suppress(OSError):  # a user has only so many of them
                fcntl.fcntl(self.stdout, fcntl.F_SETPIPE_SZ, _PIPE)
        if self.tests and answer.collects(base.FILES):
            files, child_files = socket.socketpair()
            self.files, self._child_files = files.detach(), child_files.detach()
            os.set_blocking(self.files, False)
        self.outgoing = memoryview(stage.input)
        self.owed = self.trickles = False
        self._head, self._tail, self._read = b"", b"", 0
        self._collected = bytearray()

    def order(self, key: str, config: GraderConfig) -> tuple[dict[str, Any], list[int]]:
        """What the worker is told, and the child's descriptors."""
        answer = self.answer
        candidates: tuple[str, ...] = ()
        if self.files >= 0:
            candidates = answer.mode.candidates(answer.name)
        order = {
            "op": "run",
            "problem": key,
            "stage": self.stage.name,
            "script": self.tests and answer.is_script,
            "stdout": self.stdout >= 0,
            "collect": candidates,
            "cpu": answer.cpu_limit,
            "idle": config.idle_seconds,
            "memory": config.memory_mb << 20,
            "folder": config.folder_mb << 20,
        }
        handed = [self._child_job.fileno(), self._child_stdout, self._child_files]
        return order, [descriptor for descriptor in handed if descriptor >= 0]

    def handed_over(self) -> None:
        """Close the child's ends here, so that its death ends the streams."""
        self._child_job.close()
        for descriptor in (self._child_stdout, self._child_files):
            if descriptor >= 0:
                os.close(descriptor)
        self._child_stdout = self._child_files = -1

    def write(self) -> bool:
        """Write what the socket takes; returns whether more is left."""
        with contextlib.suppress(BlockingIOError, OSError):
            while self.outgoing:
                self.outgoing = self.outgoing[self.job.send(self.outgoing) :]
        return bool(self.outgoing)

    def read(self) -> bool:
        """Read what the child sent and answer it; returns whether more may come."""
        try:
            data = self.job.recv(1 << 18)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data or self.stage.deaf:
            return False
        frames = self.stage.frames
        reply = self.stage.feed(data)
        self.trickles = self.stage.frames == frames and len(data) < _LITTLE
        self.owed = bool(reply)
        if self.stage.deaf:
            with contextlib.suppress(OSError):
                self.job.shutdown(socket.SHUT_RDWR)
            return False
        if reply:
            with contextlib.suppress(OSError):
                self.job.send(reply)
        return True

    def read_stdout(self, null: int) -> bool:
        """Read some of what the child prints; returns whether more may come."""
        try:
            if self._read >= _STDOUT_READ:
                return os.splice(self.stdout, null, _PIPE) > 0
            data = os.read(self.stdout, _PIPE)
        except BlockingIOError:
            return False
        room = _STDOUT_PART - len(self._head)
        self._head += data[:room]
        self._tail = (self._tail + data[room:])[-_STDOUT_PART:]
        self._read += len(data)
        return bool(data)

    def end(self, message: dict[str, Any], null: int) -> Report:
        """Read what is left after the child's end."""
        self.owed = False
        while self.read() and not self._drained():
            pass
        while self.stdout >= 0 and self.read_stdout(null):
            pass
        while self.files >= 0 and self.read_files():
            pass
        text = self._printed()
        return Report(
            status=message["status"],
            why=message["why"],
            cpu=message["cpu"],
            wall=message["wall"],
            stdout=text.decode("utf-8", "replace"),
            files=self._found(),
        )

    def _printed(self) -> bytes:
        """What was printed; where the middle is left out, without the parts of lines on both sides of it."""
        if self._read <= 2 * _STDOUT_PART:
            return self._head + self._tail
        head, _, cut = self._head.rpartition(b"\n")
        first, _, tail = self._tail.partition(b"\n")
        # A line without an end is what it is.
        return (head or cut) + b"\n" + (tail or first)

    def close(self) -> None:
        self.handed_over()
        self.job.close()
        for descriptor in (self.stdout, self.files):
            if descriptor >= 0:
                os.close(descriptor)
        self.stdout = self.files = -1

    def _drained(self) -> bool:
        try:
            return not self.job.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def read_files(self) -> bool:
        """Read some of what is collected; returns whether more may come."""
        try:
            data = os.read(self.files, 1 << 16)
        except BlockingIOError:
            return False
        self._collected += data[: _FILES_READ - len(self._collected)]
        return bool(data)

    def _found(self) -> list[tuple[str, str]]:
        """Name and text of the files that the worker has collected; a part of one does not count."""
        found, data, at = [], self._collected, 0
        while at + 8 <= len(data):
            name, content = struct.unpack_from("<II", data, at)
            middle, end = at + 8 + name, at + 8 + name + content
            if end <= len(data):
                found.append((os.fsdecode(bytes(data[at + 8 : middle])), data[middle:end].decode("utf-8", "replace")))
            at = end
        return found


class Process:
    """A worker process: its control socket, the problems it knows and what it runs.

    Attributes:
        control: this side of the control socket.
        run: the stage that it runs, or None.
        ready: it has started up.
        idle: its child neither computes nor waits for a core.
        begun: when it was given its stage, on the monotonic clock.
    """

    def __init__(self, layers: Layers, config: GraderConfig, *, index: int, folder: Path, library: Path):
        self.index = index
        self.config = config
        self.run: Run | None = None
        self.ready = self.idle = False
        self.folder = folder
        self.begun = 0.0
        self._known: OrderedDict[str, None] = OrderedDict()
        self._buffer = b""
        self.control, other = socket.socketpair()
        with other:
            command = layers_module.command_line(
                layers,
                config,
                index=index,
                folder=self.folder,
                control=other.fileno(),
                library=library,
            )
            self._process = subprocess.Popen(
                command,
                env=layers_module.environment(),
                pass_fds=(other.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd="/",
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def begin(self, run: Run) -> None:
        """Order a stage.

        Raises:
            OSError: the worker has died.
        """
        self.run = run
        self.idle = False
        self.begun = time.monotonic()
        self._teach(run.answer.plan)
        order, descriptors = run.order(run.answer.plan.key, self.config)
        self._send(json.dumps(order).encode(), descriptors)
        run.handed_over()

    def messages(self) -> list[dict[str, Any]]:
        """What the worker reports.

        Raises:
            EOFError: it has died.
        """
        data = self.control.recv(1 << 16)
        if not data:
            raise EOFError
        self._buffer += data
        found = []
        while len(self._buffer) >= 4:
            (size,) = struct.unpack_from("<I", self._buffer)
            if len(self._buffer) < 4 + size:
                break
            found.append(json.loads(self._buffer[4 : 4 + size]))
            self._buffer = self._buffer[4 + size :]
        return found

    def close(self) -> str:
        """Kill the worker and all that is in it; returns the last lines that it wrote on standard error."""
        self.control.close()
        # What was stopped while it started up has not yet bound its life to its parent's.
        for inner in _below(self.pid):
            with contextlib.suppress(OSError):
                os.kill(inner, signal.SIGKILL)
        self._process.kill()
        # Only a dead worker's pipe ends; what it holds by then fits into the pipe.
        errors = self._process.stderr.read()
        self._process.stderr.close()
        self._process.wait()
        if self.run is not None:
            self.run.close()
            self.run = None
        folders.remove(self.folder)
        return errors.decode(errors="replace").strip()[-1000:]

    def _teach(self, plan: Plan) -> None:
        if plan.key in self._known:
            self._known.move_to_end(plan.key)
            return
        if len(self._known) == _KNOWN_PROBLEMS:
            oldest, _ = self._known.popitem(last=False)
            self._send(json.dumps({"op": "forget", "key": oldest}).encode(), [])
        self._known[plan.key] = None
        self._send(plan.order, [])

    def _send(self, data: bytes, descriptors: list[int]) -> None:
        socket.send_fds(self.control, [struct.pack("<I", len(data))], descriptors)
        self.control.sendall(data)


def _below(pid: int) -> list[int]:
    """Every process below one, as this process sees them."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [number for child in map(int, children) for number in (child, *_below(child))]
