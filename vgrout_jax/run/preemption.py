"""SIGTERM and SIGINT: a run gives up the step that it is in, keeps what it has, and says so."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preempted(BaseException):
    """A run that was asked to end; like KeyboardInterrupt it is no error, and no `except Exception` stops it.

    Attributes:
        number: of the signal.
        status: the exit status that a shell would report of a process that the signal ended: 143 for SIGTERM.
    """

    def __init__(self, number: int, message: str = ""):
        super().__init__(message)
        self.number = number
        self.status = 128 + number

    @property
    def name(self) -> str:
        """Such as SIGTERM."""
        return signal.Signals(self.number).name


class Watch:
    """Raises `Preempted` after a signal, but only where the caller says that nothing is half done.

    Inside `with watch.abandonable()` it is raised at once, as soon as Python runs; a compiled program that is
    under way ends first. Elsewhere the signal is kept until `check` or the next `abandonable`. A second Ctrl-C ends
    the process at once; further SIGTERMs change nothing, as they may come in numbers.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._abandonable = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Watch":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def check(self) -> None:
        """Raises Preempted if a signal has come."""
        if self.received is not None:
            raise Preempted(self.received)

    @contextlib.contextmanager
    def abandonable(self) -> Iterator[None]:
        """Work that may be given up at any point without a trace."""
        self._abandonable = True
        try:
            self.check()
            yield
        finally:
            self._abandonable = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self.received = self.received is None, number
        if number == signal.SIGINT and not first:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if self._abandonable and first:
            self._abandonable = False
            raise Preempted(number)
