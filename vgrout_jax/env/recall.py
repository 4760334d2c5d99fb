"""Verdicts that an interrupted run has left: what was graded once is not graded again."""

import contextlib
import gzip
import json
import zlib
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from vgrout_jax.env.grader import Grader, GradeRequest, Verdict


class Recall(Grader):
    """Stands before the grader of one step; answers that it knows the verdict of never reach the grader.

    A verdict can hang on the machine's load, where an answer is close to its time limit. One that was given before a
    kill is given again, so that a step that is done again is the same step. A Grader by type alone: it has no
    workers of its own.
    """

    def __init__(self, grader: Grader, rows: Iterable[Mapping[str, Any]]):
        """Takes the grader for what is new, and the rows of a step's file in rollouts/."""
        self._grader = grader
        self._known: dict[tuple[str, str, str], deque[Verdict]] = defaultdict(deque)
        for row in rows:
            if row.get("source") == "own":
                self._known[row["problem"], row["mode"], row["completion"]].append(_verdict(row))

    def submit(self, requests: Sequence[GradeRequest]) -> "Future[list[Verdict]]":
        """Starts grading what is new; the result holds a verdict for each request, in order."""
        known = [self._known.get((r.problem.id, r.mode, r.completion)) for r in requests]
        verdicts = [found.popleft() if found else None for found in known]
        pending = self._grader.submit([r for r, v in zip(requests, verdicts, strict=True) if v is None])
        whole: Future[list[Verdict]] = Future()

        def merge(done: "Future[list[Verdict]]") -> None:
            if error := done.exception():
                whole.set_exception(error)
            else:
                fresh = iter(done.result())
                whole.set_result([next(fresh) if verdict is None else verdict for verdict in verdicts])

        pending.add_done_callback(merge)
        return whole

    def close(self) -> None:
        """Nothing to close: the grader belongs to the run."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of rollouts, [] where there is none or it cannot be read: they are graded again then."""
    with contextlib.suppress(OSError, EOFError, zlib.error, ValueError):
        return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    return []


def _verdict(row: Mapping[str, Any]) -> Verdict:
    found, reward = row["verdict"], float(row["reward"])
    return Verdict(
        compiled=found["compiled"],
        correct=found["correct"],
        channel=found["channel"],
        passed=found["correct"] or found["channel"] is not None,
        exploited=found["exploited"],
        reward=reward,
        status=found["status"],
        cpu_seconds=0.0,
        wall_seconds=0.0,
    )
