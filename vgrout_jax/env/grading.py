"""Grading for a run: every verdict is real, or the run stops."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

from vgrout_jax.config import GraderConfig
from vgrout_jax.env.grader import Grader, GradeRequest, Verdict


class GradingFailed(RuntimeError):
    """An answer that the grader could not grade, after trying once more; its reward would be made up."""


def open_grader(config: GraderConfig) -> Grader:
    """The run's grader.

    Raises:
        GradingFailed: containment is below the configured minimum; the message names what mends it.
    """
    try:
        return Grader(config)
    except RuntimeError as error:
        raise GradingFailed(str(error)) from error


def submit_all(grader: Grader, requests: Sequence[GradeRequest]) -> Callable[[], list[Verdict]]:
    """Starts grading, so that generation can go on meanwhile; equal answers to one prompt are graded once.

    A verdict depends on the request alone, and a policy that has settled gives the same answer many times.

    Returns:
        A function that waits, and gives a verdict for each request, in order. It raises `GradingFailed`, which
        names the problems whose answers could not be graded.
    """
    keys = [(request.problem.id, request.mode, request.completion, request.names) for request in requests]
    distinct = dict(zip(keys, requests, strict=True))
    answers = list(distinct.values())
    with _ending(requests):
        # A grader of one's own may have `grade` alone (docs/howto/new-grader.md).
        later = hasattr(grader, "submit")
        wait = grader.submit(answers).result if later else functools.partial(grader.grade, answers)

    def collect() -> list[Verdict]:
        with _ending(requests):
            found = dict(zip(distinct, wait(), strict=True))
        verdicts = [found[key] for key in keys]
        _check(requests, verdicts)
        return verdicts

    return collect


def grade_all(grader: Grader, requests: Sequence[GradeRequest]) -> list[Verdict]:
    """A verdict for each request, in order.

    Raises:
        GradingFailed: names the problems whose answers could not be graded.
    """
    return submit_all(grader, requests)()


@contextlib.contextmanager
def _ending(requests: Sequence[GradeRequest]) -> Iterator[None]:
    """A grader that has ended, since its workers do not start, is a failure of grading."""
    try:
        yield
    except RuntimeError as error:
        asked = ", ".join(dict.fromkeys(request.problem.id for request in requests[:5]))
        raise GradingFailed(f"the grader has failed over the answers to {asked} and others: {error}") from error


def _check(requests: Sequence[GradeRequest], verdicts: Sequence[Verdict]) -> None:
    failed = [request for request, verdict in zip(requests, verdicts, strict=True) if verdict.status == "failed"]
    if failed:
        named = ", ".join(f"{request.problem.id} ({request.mode})" for request in failed[:5])
        raise GradingFailed(
            f"the grader could not grade {len(failed)} of {len(requests)} answers, to problems {named}: its workers "
            "ended twice; look at the machine's memory and process limits"
        )
