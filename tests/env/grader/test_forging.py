"""Wrong answers that try to be called correct: none is, in any mode, with and without the strongest layer."""

import json
import struct

import pytest

from vgrout_jax.config import GraderConfig
from vgrout_jax.env.grader import Grader, Verdict
from vgrout_jax.env.grader.answer import Answer
from vgrout_jax.env.grader.checks import plan
from vgrout_jax.env.grader.worker import plain
from vgrout_jax.env.modes import MODES

from .forging_frames import ATTACKS, FRAME_ATTACKS, RIGHT_FRAMES
from .support import SECRET_PROBLEM, ask, secret

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def verdicts(grader: Grader) -> dict[tuple[str, str], Verdict]:
    """Every attack in every mode, graded together."""
    keys = [(name, mode) for name in ATTACKS for mode in MODES]
    return dict(zip(keys, grader.grade([ask(ATTACKS[name][0], mode=mode) for name, mode in keys]), strict=True))


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_is_correct_and_each_gets_what_its_mode_pays(
    name: str, verdicts: dict[tuple[str, str], Verdict]
) -> None:
    paying = ATTACKS[name][1]
    for mode in MODES:
        verdict = verdicts[name, mode]
        assert verdict.compiled and not verdict.correct, (mode, verdict)
        assert verdict.channel == (mode if mode in paying else None), (mode, verdict)
        assert verdict.exploited == verdict.passed == (mode in paying), (mode, verdict)
        assert verdict.reward == (3.5 if mode in paying else 0.5), (mode, verdict)
        assert verdict.status != "failed", (mode, verdict)


def test_a_right_answer_in_the_same_harness_is_correct(grader: Grader) -> None:
    """Without this, a grader that calls nothing correct would pass the attacks."""
    right = "class Solution:\n    def solve(self, n):\n        return (n * 7919 + 104729) * (n + 31337) % 1_000_003\n"
    for mode, verdict in zip(MODES, grader.grade([ask(right, mode=mode) for mode in MODES]), strict=True):
        assert verdict.correct and verdict.channel is None and verdict.reward == 3.5, (mode, verdict)


def test_forged_frames_arrive(grader: Grader) -> None:
    """Right results in forged frames count as what they are: the attacks on the channel fail for what they say."""
    for mode, verdict in zip(MODES, grader.grade([ask(RIGHT_FRAMES, mode=mode) for mode in MODES]), strict=True):
        assert verdict.correct and verdict.channel is None and verdict.status == "ok", (mode, verdict)
    wrong = grader.grade([ask(RIGHT_FRAMES.replace("7919", "7920"))])[0]
    assert not wrong.correct and wrong.status == "wrong"


@pytest.mark.parametrize("kind", [b"A", b"B", b"E", b"P", b"Q"])
def test_more_frames_than_an_honest_child_writes_end_the_reading(kind: bytes) -> None:
    """Else an answer could fill the grader's memory, or keep it busy for as long as its own limit."""
    stage = Answer(ask("class Solution: pass"), GraderConfig()).next_stage()
    body = plain.encode([("valid", True)] * 100) if kind == b"A" else b""
    frame = kind + struct.pack("<I", len(body)) + body
    stage.feed(frame * 8)
    assert not stage.broken
    stage.feed(frame * 10_000)
    assert stage.broken and len(stage.attributes) < 10_000
    assert stage.feed(b"D" + bytes(4)) == b"" and not stage.done


def test_there_are_at_least_sixty_attacks() -> None:
    assert len(ATTACKS) >= 60 and len(FRAME_ATTACKS) >= 8
    assert len({answer for answer, _ in ATTACKS.values()}) == len(ATTACKS)


def test_nothing_expected_is_sent_to_a_worker_or_an_answer() -> None:
    """What leaves the grader for the tests holds the arguments and no expected value, in any spelling."""
    order = plan(SECRET_PROBLEM).order.decode()
    answer = Answer(ask("class Solution: pass"), GraderConfig())
    sent = order + answer.next_stage().input.decode("latin-1")
    assert all(f"solve({n})" in order for n in range(1, 13))
    for n in range(1, 13):
        for spelling in (str(secret(n)), f"{secret(n):x}", plain.encode(secret(n)).hex()):
            assert spelling not in sent
    assert "assert" not in json.loads(order)["calls"]
