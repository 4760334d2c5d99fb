"""The grader: a pool of warm, confined workers, and the thread that feeds them."""

import contextlib
import logging
import socket
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

from vgrout_jax.config import GraderConfig
from vgrout_jax.env.modes import MODES

from . import layers
from .answer import Answer
from .dispatch import Batch, Dispatcher, Ticket
from .verdict import GradeRequest, Verdict

LOGGER = logging.getLogger("vgrout_jax.env.grader")


class Grader:
    """Grades answers in confined worker processes; docs/grader.md describes how.

    Args:
        config: limits, number of workers and the minimum of containment.

    Raises:
        RuntimeError: containment below the minimum; the message names what mends it.
        ValueError: a field of `config` out of its range.
    """

    def __init__(self, config: GraderConfig | None = None):
        self.config = config or GraderConfig()
        _validate(self.config)
        self.layers = layers.detect(self.config)
        layers.require(self.layers, self.config)
        self._lock = threading.Lock()
        self._closed: Exception | None = None
        self._incoming: deque[Ticket] = deque()
        self._waker, self._wake = socket.socketpair()
        self._waker.setblocking(False)
        self._wake.setblocking(False)
        self._dispatcher = Dispatcher(self.layers, self.config)
        self._dispatcher.watch(self._waker, self._woken)
        # Workers die with the thread that started them, so that none outlives a grader that was not closed.
        self._thread = threading.Thread(target=self._main, name="grader", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def submit(self, requests: Sequence[GradeRequest]) -> "Future[list[Verdict]]":
        """Start grading; the result holds a verdict for each request, in order.

        Raises:
            ValueError: an unknown mode, or a problem with a test that cannot be used.
            RuntimeError: the grader is closed, or its workers cannot be started.
        """
        for request in requests:
            if request.mode not in MODES:
                raise ValueError(f"mode must be one of {', '.join(MODES)}, got {request.mode!r}")
        batch = Batch(len(requests))
        answers = [Answer(request, self.config) for request in requests]
        tickets = [Ticket(answer, batch, place) for place, answer in enumerate(answers)]
        with self._lock:
            if self._closed is not None:
                raise RuntimeError(f"the grader is closed: {self._closed}")
            self._incoming += tickets
            self._notify()
        return batch.future

    def grade(self, requests: Sequence[GradeRequest]) -> list[Verdict]:
        """Grade answers; a verdict for each request, in order. Raises as `submit` does."""
        return self.submit(requests).result()

    def close(self) -> None:
        """End the workers; the futures of what is not graded yet raise."""
        with self._lock:
            if self._closed is None:
                self._closed = RuntimeError("close() was called")
                self._notify()
        self._thread.join()

    def worker_pids(self) -> list[int]:
        """Process ids of the workers that run now."""
        return [process.pid for process in list(self._dispatcher.processes)]

    def _notify(self) -> None:
        # A full pipe of wake-ups wakes as well.
        with contextlib.suppress(BlockingIOError):
            self._wake.send(b"w")

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._waker.recv(4096)
        with self._lock:
            self._dispatcher.queue += self._incoming
            self._incoming.clear()

    def _main(self) -> None:
        try:
            while self._closed is None:
                self._dispatcher.turn()
        except Exception as error:
            LOGGER.exception("the grader's thread has ended")
            with self._lock:
                self._closed = error
        finally:
            with self._lock:
                pending = [*self._incoming, *self._dispatcher.pending()]
            self._dispatcher.close()
            for ticket in pending:
                ticket.batch.give_up(self._closed)
            self._waker.close()
            self._wake.close()


def _validate(config: GraderConfig) -> None:
    if config.workers is not None and config.workers < 1:
        raise ValueError(f"grader.workers must be >= 1 or None, got {config.workers}")
    for name in ("cpu_seconds", "idle_seconds"):
        if not getattr(config, name) > 0:
            raise ValueError(f"grader.{name} must be > 0, got {getattr(config, name)}")
    if config.memory_mb < 128:
        raise ValueError(f"grader.memory_mb must be >= 128, got {config.memory_mb}")
    if config.folder_mb < 1:
        raise ValueError(f"grader.folder_mb must be >= 1, got {config.folder_mb}")
    if config.minimum not in layers.MINIMA:
        raise ValueError(f"grader.minimum must be one of {', '.join(layers.MINIMA)}, got {config.minimum!r}")
