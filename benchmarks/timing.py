"""Seconds of a piece of work: CPU, wall, and how many of them were JAX tracing and compiling."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a piece of work took, in seconds.

    Attributes:
        cpu: of all threads of this process, compilation included.
        wall: likewise.
        compiling: the part of `wall` in which JAX traced, lowered and compiled, or loaded a compiled program.
    """

    cpu: float
    wall: float
    compiling: float

    @property
    def running(self) -> float:
        """Wall seconds without compilation."""
        return self.wall - self.compiling


class Compilations:
    """Hears of every compilation of this process, from its making on; JAX has no way to stop listening."""

    def __init__(self):
        self.intervals: list[tuple[float, float]] = []
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, name: str, seconds: float, **_: Any) -> None:
        if name.startswith("/jax/core/compile/"):
            now = time.perf_counter()
            self.intervals.append((now - seconds, now))

    def seconds(self, begin: float, end: float) -> float:
        """Seconds between two readings of `time.perf_counter` in which something was compiled."""
        total, reached = 0.0, begin
        for first, last in sorted(self.intervals):  # a program that is traced inside of another is heard of twice
            first, last = max(first, reached), min(last, end)
            if last > first:
                total, reached = total + last - first, last
        return total

    def measured(self, work: Callable[[], Any]) -> tuple[Any, Cost]:
        """What `work` returns, once its arrays are there, and what it took."""
        cpu, wall = time.process_time(), time.perf_counter()
        result = jax.block_until_ready(work())
        end = time.perf_counter()
        return result, Cost(time.process_time() - cpu, end - wall, self.seconds(wall, end))


def best(costs: list[Cost]) -> Cost:
    """The least of each, over repeats of the same work."""
    return Cost(*(min(getattr(cost, field.name) for cost in costs) for field in dataclasses.fields(Cost)))
