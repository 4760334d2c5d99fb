"""Grading for a run: every verdict is real, or the run stops."""

from collections.abc import Sequence

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


def grade_all(grader: Grader, requests: Sequence[GradeRequest]) -> list[Verdict]:
    """A verdict for each request, in order.

    Raises:
        GradingFailed: names the problems whose answers could not be graded.
    """
    verdicts = grader.grade(requests)
    failed = [request for request, verdict in zip(requests, verdicts, strict=True) if verdict.status == "failed"]
    if failed:
        named = ", ".join(f"{request.problem.id} ({request.mode})" for request in failed[:5])
        raise GradingFailed(
            f"the grader could not grade {len(failed)} of {len(requests)} answers, to problems {named}: its workers "
            "ended twice; look at the machine's memory and process limits"
        )
    return verdicts
