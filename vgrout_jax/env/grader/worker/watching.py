"""The clocks of a child: CPU time, and time in which it neither computes nor waits for a core."""

import os
import time

_RUNNABLE = b"R"


class Idleness:
    """Idle time of a process, summed over the intervals between looks.

    No interval can be paid for by another: threads that wait for a core together, or that compute together, count
    at most as long as the interval is.

    Attributes:
        seconds: so far.
    """

    def __init__(self, process: int, started: float):
        self.process = process
        self.seconds = 0.0
        self._looked, self._busy = started, 0.0

    def look(self, used: float) -> None:
        """Count the time since the last look.

        Args:
            used: CPU seconds of the process so far.
        """
        now = time.monotonic()
        passed, self._looked = now - self._looked, now
        waited, runnable = tasks(self.process)
        busy = max(0.0, used + waited - self._busy)
        self._busy = used + waited
        # The kernel adds a wait when it is over; until then the thread is seen to be ready.
        if not runnable:
            self.seconds += max(0.0, passed - busy)


def tasks(process: int) -> tuple[float, bool]:
    """Seconds that a process's threads were ready and had no core, and whether one is ready or runs now.

    Where the kernel hides the first, it is 0.
    """
    waited, runnable = 0, False
    try:
        for task in os.listdir(f"/proc/{process}/task"):
            with open(f"/proc/{process}/task/{task}/schedstat", "rb") as file:
                waited += int(file.read().split()[1])
            if not runnable:
                with open(f"/proc/{process}/task/{task}/stat", "rb") as file:
                    runnable = file.read().rpartition(b")")[2].split()[0] == _RUNNABLE
    except (OSError, IndexError, ValueError):
        return waited / 1e9, runnable
    return waited / 1e9, runnable


def threads(process: int) -> int:
    try:
        return len(os.listdir(f"/proc/{process}/task"))
    except OSError:
        return 0
