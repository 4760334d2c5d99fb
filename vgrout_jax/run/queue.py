"""Runs one after the other, each a process of its own, from where an earlier queue was stopped."""

import contextlib
import dataclasses
import fcntl
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclasses.dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        name: of its folder below OUT/runs, and of its log below OUT/logs.
        flags: of the run, but for its workdir.
    """

    name: str
    flags: Sequence[str]


class Queue:
    """Starts jobs in order; a failed one stops nothing, and a finished one is not done again."""

    def __init__(self, out: Path, command: Sequence[str], environment: Mapping[str, str]):
        """`out` gets runs/ and logs/; `command` starts a run, which is given its flags and its workdir."""
        self.out, self.command, self.environment = out, list(command), dict(environment)

    def run(self, jobs: Sequence[Job]) -> list[str]:
        """Runs all of them and tells how it goes; returns the names of those that failed."""
        failed, seconds = [], []
        for number, job in enumerate(jobs, start=1):
            where = f"[{number}/{len(jobs)}] {job.name}"
            if (self.out / "runs" / job.name / "summary.json").exists():
                print(f"{where}: finished before", flush=True)
                continue
            mean = sum(seconds) / len(seconds) if seconds else None
            left = "" if mean is None else f", about {duration(mean * (len(jobs) - number + 1))} left"
            print(f"{where}: running{left}", flush=True)
            began = time.monotonic()
            status = self._start(job)
            if status == 0:
                seconds.append(time.monotonic() - began)
                print(f"{where}: done in {duration(seconds[-1])}", flush=True)
            else:
                failed.append(job.name)
                print(f"{where}: FAILED with status {status}: {self._last_line(job)}", file=sys.stderr, flush=True)
        return failed

    def _start(self, job: Job) -> int:
        """Runs a job to its end; its output goes to its log."""
        command = [*self.command, f"--workdir={self.out / 'runs' / job.name}", *job.flags]
        with open(self._log(job), "ab") as log:
            child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=self.environment)
            try:
                with told_to_stop():
                    return child.wait()
            except Stopped as request:
                for number in SIGNALS:
                    signal.signal(number, signal.SIG_IGN)
                print("stopping; the same command goes on from here", file=sys.stderr, flush=True)
                child.terminate()  # a run that is asked to end keeps its state
                child.wait()
                sys.exit(128 + request.args[0])

    def _log(self, job: Job) -> Path:
        return self.out / "logs" / f"{job.name}.log"

    def _last_line(self, job: Job) -> str:
        lines = self._log(job).read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[-1] if lines else "it said nothing"


class Stopped(BaseException):
    """A signal asks the queue to end; its number is the argument."""


@contextlib.contextmanager
def told_to_stop() -> Iterator[None]:
    """SIGTERM and Ctrl-C raise `Stopped` inside."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def claim(out: Path) -> Iterator[None]:
    """Makes the folder and holds it for this process.

    Raises:
        ValueError: another queue holds it.
    """
    for name in ("runs", "logs"):
        (out / name).mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"--out={out} is in use by another decision run") from error
        yield


def duration(seconds: float) -> str:
    """`2 min 05 s`, `1 h 03 min`."""
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s"
