"""Verdicts given before a kill are given again; everything else goes to the grader."""

import gzip

import pytest

from tests.rl.made_up import FakeGrader, problem
from vgrout_jax.config.scales import make_config
from vgrout_jax.env.grader import GradeRequest
from vgrout_jax.env.modes import TRAINING_NAMES
from vgrout_jax.env.recall import Recall, read_rows
from vgrout_jax.run.writer import RunWriter

FIELDS = ("compiled", "correct", "channel", "passed", "exploited", "reward", "status")


def stored(request, verdict, **changes):
    names = ("compiled", "correct", "channel", "exploited", "status")
    fields = {"problem": request.problem.id, "mode": request.mode, "completion": request.completion, "source": "own"}
    return {**fields, "reward": verdict.reward, "verdict": {n: getattr(verdict, n) for n in names}, **changes}


def values(verdicts):
    return [[getattr(verdict, name) for name in FIELDS] for verdict in verdicts]


REQUESTS = [
    GradeRequest(problem("a"), mode, text, TRAINING_NAMES) for mode in ("sentinel", "gt_only") for text in "xyz"
]


def test_stored_verdicts_are_given_again_and_only_the_rest_is_graded():
    verdicts = FakeGrader().grade(REQUESTS)
    rows = [stored(request, verdict) for request, verdict in zip(REQUESTS, verdicts, strict=True)]
    grader = FakeGrader()
    assert values(Recall(grader, rows).grade(REQUESTS)) == values(verdicts) and grader.requests == []
    recall = Recall(grader, [rows[0], rows[5]])
    assert values(recall.grade(REQUESTS)) != values(verdicts)  # its turns are others, with four to grade
    assert grader.requests == REQUESTS[1:5]


@pytest.mark.parametrize(
    "change", [{"problem": "b"}, {"mode": "run_tests"}, {"completion": "w"}, {"source": "teacher"}]
)
def test_a_verdict_is_of_one_answer_to_one_prompt(change):
    [verdict] = FakeGrader().grade(REQUESTS[:1])
    grader = FakeGrader()
    Recall(grader, [stored(REQUESTS[0], verdict, **change)]).grade(REQUESTS[:1])
    assert len(grader.requests) == 1


def test_rows_come_from_the_file_that_a_run_writes(tmp_path):
    verdicts = FakeGrader().grade(REQUESTS)
    rows = [stored(request, verdict) for request, verdict in zip(REQUESTS, verdicts, strict=True)]
    config = make_config("none", "smoke")
    config.log.tensorboard = False
    with RunWriter(tmp_path, config) as writer:
        writer.write_verdicts(3, rows)
        path = writer.verdicts_path(3)
        assert [path.name] == [file.name for file in (tmp_path / "rollouts").iterdir()]
        grader = FakeGrader()
        assert values(Recall(grader, read_rows(path)).grade(REQUESTS)) == values(verdicts) and not grader.requests
        writer.drop_verdicts(3)
    assert not path.exists() and read_rows(path) == []


def test_a_damaged_file_means_grading_again(tmp_path):
    path = tmp_path / "graded_000000.jsonl.gz"
    whole = gzip.compress(b'{"a": 1}\n' * 100)
    for data in (whole[:-9], b"", b"text", gzip.compress(b"{")):
        path.write_bytes(data)
        assert read_rows(path) == []
    path.write_bytes(whole)
    assert len(read_rows(path)) == 100
