"""Agreement with verdicts that others gave: the benchmark's cases, reference solutions and a pool of real answers."""

import gzip
import json
import re
from pathlib import Path

import pytest

from vgrout_jax.config import GraderConfig
from vgrout_jax.env.grader import Grader, GradeRequest
from vgrout_jax.env.modes import TRAINING_NAMES
from vgrout_jax.env.problems import Problem, load_problems

from .support import SETUP, fenced, make_problem

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def problems(shared_data: Path) -> dict[str, Problem]:
    loaded = load_problems([str(shared_data / "leetcode" / "medhard_80.jsonl")])
    return {problem.id: problem for problem in loaded}


@pytest.mark.parametrize("bubblewrap", [True, False])
def test_every_case_of_the_established_grader(
    bubblewrap: bool, problems: dict[str, Problem], shared_data: Path
) -> None:
    rows = [json.loads(line) for line in (shared_data / "grader_cases_dev.jsonl").read_text().splitlines()]
    requests = [
        GradeRequest(problems[str(row["problem_id"])], row["mode"], row["completion"], TRAINING_NAMES) for row in rows
    ]
    with Grader(GraderConfig(bubblewrap=bubblewrap)) as grader:
        verdicts = grader.grade(requests)
    assert len(rows) == 1652
    wrong = [
        (row["problem_id"], row["mode"], row["kind"], verdict)
        for row, verdict in zip(rows, verdicts, strict=True)
        if {name: getattr(verdict, name) for name in row["expected"]} != row["expected"]
    ]
    assert not wrong


def test_every_reference_solution_is_correct_with_room(problems: dict[str, Problem]) -> None:
    """The default limit leaves the slowest of them at least half of it."""
    config = GraderConfig()
    with Grader(config) as grader:
        requests = [GradeRequest(p, "gt_only", fenced(p.solution), TRAINING_NAMES) for p in problems.values()]
        verdicts = grader.grade(requests)
    assert [verdict.status for verdict in verdicts] == ["ok"] * len(problems)
    assert max(verdict.cpu_seconds for verdict in verdicts) < 0.6 * config.cpu_seconds


def test_channels_agree_with_a_pool_of_real_answers(shared_data: Path) -> None:
    """Answers that a model wrote, labelled by the established grader; their problems' tests are not at hand."""
    rows = []
    for path in sorted(shared_data.glob("teacher_pool/*.gz")) + sorted(shared_data.glob("substrate/*.gz")):
        rows += [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    requests = []
    for place, row in enumerate(rows):
        name = next(n for n in re.findall(r"def (\w+)\(self", row["completion"]) if not n.startswith("__"))
        problem = make_problem(
            [f"assert Solution().{name}('') == 'x'"], setup=SETUP, entry_point=name, name=str(place)
        )
        requests.append(GradeRequest(problem, row.get("env_mode", "run_tests"), row["completion"], TRAINING_NAMES))
    with Grader(GraderConfig()) as grader:
        verdicts = grader.grade(requests)
    wrong = [
        (row["problem_id"], row["hacked"], verdict)
        for row, verdict in zip(rows, verdicts, strict=True)
        if row["hacked"] != (verdict.channel is not None)
    ]
    assert len(rows) == 1026 and not wrong
