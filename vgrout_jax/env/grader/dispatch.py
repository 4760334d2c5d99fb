"""Which answer runs in which worker: the loop of the grader's thread."""

import logging
import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from vgrout_jax.config import GraderConfig

from .answer import Answer
from .folders import Folders
from .layers import Layers, open_library
from .process import Process, Run
from .verdict import Verdict

LOGGER = logging.getLogger("vgrout_jax.env.grader")
_ATTEMPTS = 2  # gradings of an answer, counting those that end through no doing of its own
_MISSES = 20  # workers found dead before they began on an answer, until that counts as an attempt
_START_FAILURES = 3  # workers in a row that die before they are ready
_HUNG = 20  # times an answer's limits together without an end of its stage, until its worker counts as hung
_REST = 0.005  # seconds until output, or a source that gives little at a time, is read again
_PER_CORE = 4  # workers for each core while answers sleep


class Batch:
    """The verdicts of one submission.

    Attributes:
        future: of the list of verdicts, in order.
    """

    def __init__(self, size: int):
        self.future: Future[list[Verdict]] = Future()
        self._verdicts: list[Verdict | None] = [None] * size
        self._left = size
        if not size:
            self.future.set_result([])

    def settle(self, place: int, verdict: Verdict) -> None:
        self._verdicts[place] = verdict
        self._left -= 1
        if not self._left:
            self.future.set_result(list(self._verdicts))

    def give_up(self, reason: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(reason)


class Ticket:
    """An answer, and where its verdict belongs."""

    def __init__(self, answer: Answer, batch: Batch, place: int):
        self.answer = answer
        self.batch = batch
        self.place = place

    def settle(self, verdict: Verdict) -> None:
        self.batch.settle(self.place, verdict)


class Dispatcher:
    """Workers, queues and the selector; used by one thread alone.

    Attributes:
        processes: workers that are alive.
        queue: answers that wait.
        alone: answers that wait until nothing else runs.
    """

    def __init__(self, layers: Layers, config: GraderConfig):
        self.layers = layers
        self.config = config
        self.cores = config.workers or len(os.sched_getaffinity(0))
        self.processes: list[Process] = []
        self.queue: deque[Ticket] = deque()
        self.alone: deque[Ticket] = deque()
        self.selector = selectors.DefaultSelector()
        self._tickets: dict[Process, Ticket] = {}
        self._resting: deque[tuple[float, Run, socket.socket | int, Callable[[], None]]] = deque()
        self._failures = 0
        self._folders = Folders()
        self._library = open_library(layers, self._folders.root)
        self._null = os.open("/dev/null", os.O_WRONLY)

    def watch(self, waker: socket.socket, woken: Callable[[], None]) -> None:
        """Call back when another thread has written to a socket."""
        self.selector.register(waker, selectors.EVENT_READ, woken)

    def turn(self) -> None:
        """Start what can be started, then wait for one round of events and handle it.

        Raises:
            RuntimeError: workers cannot be started.
        """
        self._assign()
        patience = _HUNG * (self.config.cpu_seconds + self.config.idle_seconds)
        wait = patience / 4 if self._tickets else None
        for key, _ in self.selector.select(_REST if self._resting else wait):
            key.data()
        self._wake()
        for process in list(self.processes):
            if process.run is not None and time.monotonic() - process.begun > patience:
                # It enforces an answer's limits and has not: it is stopped, or stuck in the kernel.
                LOGGER.warning("a worker of the grader has hung for %.0f s and is ended", patience)
                self._died(process, "it hung")

    def pending(self) -> list[Ticket]:
        return [*self.queue, *self.alone, *self._tickets.values()]

    def close(self) -> None:
        for process in list(self.processes):
            self._drop(process)
        self._folders.close()
        self.selector.close()
        os.close(self._null)

    def _assign(self) -> None:
        while self.queue and (process := self._free()) is not None:
            self._start(process, self.queue.popleft())
        # One that was close to its limit decides alone, when everything else has ended.
        if self.alone and not self.queue and not self._tickets:
            process = self._free()
            if process is not None:
                self._start(process, self.alone.popleft())

    def _free(self) -> Process | None:
        """A worker for the next answer, or None where every core has one that computes."""
        if any(ticket.answer.alone for ticket in self._tickets.values()):
            return None
        computing = sum(process.run is not None and not process.idle for process in self.processes)
        if computing >= self.cores:
            return None
        for process in self.processes:
            if process.run is None:
                return process
        if len(self.processes) >= self.cores * _PER_CORE:
            return None
        return self._new_process()

    def _new_process(self) -> Process:
        taken = {process.index for process in self.processes}
        index = next(index for index in range(len(taken) + 1) if index not in taken)
        process = Process(self.layers, self.config, index=index, folder=self._folders.new(), library=self._library)
        self.processes.append(process)
        self.selector.register(process.control, selectors.EVENT_READ, lambda: self._control(process))
        return process

    def _start(self, process: Process, ticket: Ticket) -> None:
        self._tickets[process] = ticket
        self._next_stage(process, ticket)

    def _next_stage(self, process: Process, ticket: Ticket) -> None:
        stage = ticket.answer.next_stage()
        if stage is None:
            del self._tickets[process]
            ticket.settle(ticket.answer.verdict())
            return
        run = Run(ticket.answer, stage)
        try:
            process.begin(run)
        except OSError:
            self._died(process)
            return
        self._watch_run(process, run)

    def _watch_run(self, process: Process, run: Run) -> None:
        def job() -> None:
            # The run may have ended earlier in the same round of events.
            if process.run is not run:
                return
            if run.outgoing and not run.write():
                self.selector.modify(run.job, selectors.EVENT_READ, job)
            if not run.read():
                self._unwatch(run, run.job)
            elif run.trickles and not run.outgoing:
                self._rest(run, run.job, job)

        def stdout() -> None:
            if process.run is not run:
                return
            if run.read_stdout(self._null):
                self._rest(run, run.stdout, stdout)
            else:
                self._unwatch(run, run.stdout)

        def files() -> None:
            if process.run is run and not run.read_files():
                self._unwatch(run, run.files)

        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if run.write() else 0)
        self.selector.register(run.job, events, job)
        run.watched.add(run.job)
        if run.stdout >= 0:
            self.selector.register(run.stdout, selectors.EVENT_READ, stdout)
            run.watched.add(run.stdout)
        if run.files >= 0:
            self.selector.register(run.files, selectors.EVENT_READ, files)
            run.watched.add(run.files)

    def _control(self, process: Process) -> None:
        if process not in self.processes:
            return
        try:
            messages = process.messages()
        except (EOFError, OSError):
            self._died(process)
            return
        for message in messages:
            if message["op"] == "ready":
                process.ready = True
                self._failures = 0
            elif message["op"] == "idle":
                process.idle = True
            elif message["op"] == "done":
                self._done(process, message)

    def _done(self, process: Process, message: dict[str, Any]) -> None:
        run, ticket = process.run, self._tickets[process]
        self._unwatch(run)
        report = run.end(message, self._null)
        process.run, process.idle = None, False
        owed = run.owed
        run.close()
        answer = ticket.answer
        if message["retire"]:
            process = self._replaced(process)
        if owed and report.why == "idle":
            # It waited for this side, which was busy: no fault of the answer.
            self._again(process, ticket)
        elif answer.finish(run.stage, report):
            self._next_stage(process, ticket)
        elif answer.wants_alone:
            del self._tickets[process]
            answer.restart()
            answer.alone, answer.wants_alone = True, False
            self.alone.append(ticket)
        else:
            self._again(process, ticket)

    def _replaced(self, process: Process) -> Process:
        """Another worker in the place of one that could not remove what an answer has left."""
        ticket = self._tickets[process]
        self._drop(process)
        other = self._new_process()
        self._tickets[other] = ticket
        return other

    def _again(self, process: Process, ticket: Ticket, *, counts: bool = True) -> None:
        """Grade an answer once more whose grading ended through no doing of its own; then say that it failed."""
        del self._tickets[process]
        answer = ticket.answer
        answer.attempts += counts
        if answer.attempts >= _ATTEMPTS:
            identifier = answer.request.problem.id
            LOGGER.error("an answer to problem %s could not be graded in %d attempts", identifier, _ATTEMPTS)
            ticket.settle(answer.failed())
            return
        answer.restart()
        (self.alone if answer.alone else self.queue).appendleft(ticket)

    def _died(self, process: Process, why: str = "it left no message") -> None:
        ticket = self._tickets.get(process)
        ready = process.ready
        begun = process.run is not None and process.run.stage.begun
        errors = self._drop(process) or why
        LOGGER.warning("a worker of the grader has died; %s", errors)
        if ticket is not None:
            self._tickets[process] = ticket
            # A worker that was dead already says nothing about the answer that was given to it.
            ticket.answer.misses += not begun
            self._again(process, ticket, counts=begun or ticket.answer.misses > _MISSES)
        self._failures += not ready
        if self._failures >= _START_FAILURES:
            raise RuntimeError(f"the grader's workers do not start: {errors}")

    def _drop(self, process: Process) -> str:
        self.processes.remove(process)
        self.selector.unregister(process.control)
        if process.run is not None:
            self._unwatch(process.run)
        self._tickets.pop(process, None)
        return process.close()

    def _rest(self, run: Run, source: socket.socket | int, callback: Callable[[], None]) -> None:
        """Watch a source again in a while: bytes that come one by one would keep this thread busy."""
        self._unwatch(run, source)
        self._resting.append((time.monotonic() + _REST, run, source, callback))

    def _wake(self) -> None:
        while self._resting and self._resting[0][0] <= time.monotonic():
            _, run, source, callback = self._resting.popleft()
            if any(process.run is run for process in self.processes):
                self.selector.register(source, selectors.EVENT_READ, callback)
                run.watched.add(source)

    def _unwatch(self, run: Run, *sources: socket.socket | int) -> None:
        """Stop watching some of a run's sources, or all of them."""
        for source in sources or tuple(run.watched):
            self.selector.unregister(source)
            run.watched.remove(source)
