"""The grading of one answer: which stages it goes through, and what their frames mean.

No input or output happens here. A stage is one child process; `Stage.feed` takes the bytes that it wrote and
gives the reply, and everything in those bytes is under the answer's control except that a "compiled" frame comes
before the answer runs. `Answer` puts the stages together into a verdict.
"""

import json
import os
import signal
import struct
from dataclasses import dataclass, field, replace
from typing import Any

from vgrout_jax.config import GraderConfig
from vgrout_jax.env import modes
from vgrout_jax.env.modes import Evidence, base

from .checks import Check, Plan, plan
from .extract import extract_code
from .verdict import GradeRequest, Verdict, failure, judge
from .worker import plain

_FRAME_LIMIT = 1 << 16
_OTHER_FRAMES = 16  # besides those of the tests; an honest child writes half as many
_NEAR = 0.2  # an answer that ends this close to its limit is graded once more, alone


@dataclass
class Report:
    """How a child process ended.

    Attributes:
        status: as `os.wait4` gives it.
        why: the limit it was killed at, or None.
        cpu: CPU seconds.
        wall: wall seconds.
        stdout: beginning and end of what it printed, if that was asked for.
        files: name and beginning of the candidate files that it left, if asked for.
    """

    status: int
    why: str | None
    cpu: float
    wall: float
    stdout: str = ""
    files: list[tuple[str, str]] = field(default_factory=list)


class Stage:
    """One child process of an answer, as its frames tell it.

    Attributes:
        name: the worker's stage: tests, attribute, function or judge.
        begun: the child was confined and ready.
        compiled: the code compiled; None before that is known.
        wrong: a result that is not the expected one.
        error: type name of the exception that ended it, or None.
        done: it ran to its end.
        broken: it broke the protocol before its end.
        deaf: nothing more is read from it.
        frames: those that have been read.
        agreed: a result agreed with both stand-ins.
        passed: the answer's own test function passed.
        probed: what was asked for besides the tests has been answered.
        attributes: those reported of the Solution object.
        results: encoded results of rich checks, by place.
        held: findings of the judge.
    """

    def __init__(self, name: str, checks: tuple[Check, ...], request: dict[str, Any], source: bytes):
        self.name = name
        self.checks = checks
        self.stand_ins = request.get("stand_ins") is not None
        self.begun = self.wrong = self.done = self.broken = self.agreed = self.passed = self.probed = False
        self.deaf = False
        self.frames = 0
        self.compiled: bool | None = None
        self.error: str | None = None
        self.attributes: list[tuple[str, object]] = []
        self.results: dict[int, bytes] = {}
        self.held: list[bool] = []
        self._seen = 0
        self._ask = 1
        self._each = request.get("each", False)
        # One that writes without end would fill this side's memory or keep it busy.
        self._frames_left = len(checks) + _OTHER_FRAMES
        self._buffer = bytearray()
        body = json.dumps(request).encode()
        self.input = struct.pack("<I", len(body)) + body + struct.pack("<I", len(source)) + source

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the child; returns what to reply."""
        self._buffer += data
        reply = b""
        while not self.deaf and len(self._buffer) >= 5:
            kind, length = self._buffer[:1], struct.unpack_from("<I", self._buffer, 1)[0]
            if length > self._limit(kind):
                self.wrong |= kind == b"R" and not self.done
                self._stop()
                break
            if len(self._buffer) < 5 + length:
                break
            body = bytes(self._buffer[5 : 5 + length])
            del self._buffer[: 5 + length]
            reply += self._frame(bytes(kind), body)
        return reply

    def _limit(self, kind: bytes | bytearray) -> int:
        if kind == b"R" and self._seen < len(self.checks):
            return self.checks[self._seen].limit + 1
        return _FRAME_LIMIT

    def _frame(self, kind: bytes, body: bytes) -> bytes:
        self.frames += 1
        self._frames_left -= self.name != "judge"  # no answer runs there
        if self._frames_left < 0 or (self.done and kind not in b"APQ"):
            self._stop()
        elif kind == b"B":
            self.begun = True
        elif kind == b"C" and self.compiled is None:
            self.compiled = body == b"1"
        elif kind == b"R" and self.compiled and self._seen < len(self.checks):
            return self._result(body)
        elif kind == b"E":
            self.error = body.decode("ascii", "replace")
        elif kind == b"A":
            self._attributes(body)
        elif kind == b"P":
            self.passed = True
        elif kind == b"Q":
            self.probed = True
        elif kind == b"J" and self.name == "judge":
            self.held.append(body == b"1")
        elif kind == b"D" and (self.name != "tests" or self._seen == len(self.checks)):
            self.done = True
        else:
            self._stop()
        return b""

    def _stop(self) -> None:
        """Read no more: what comes after the tests' end changes nothing of them, whoever writes it."""
        self.deaf = True
        self.broken |= not self.done

    def _result(self, body: bytes) -> bytes:
        check = self.checks[self._seen]
        agrees = self.stand_ins and body[:1] == b"1"
        data = body[1:] if self.stand_ins else body
        self.agreed |= agrees
        if check.rich and not self.stand_ins:
            self.results[self._seen] = data
        elif not agrees and (check.rich or not check.holds(data)):
            self.wrong = True
        self._seen += 1
        if self._seen < self._ask or self._seen == len(self.checks):
            return b""
        self._ask = self._ask + 1 if self._each else 4 * self._ask
        return b"s" if self.wrong else b"g"

    def _attributes(self, body: bytes) -> None:
        try:
            found = plain.decode(body)
        except ValueError:
            found = None
        pairs = found if type(found) is list else [None]
        if all(type(pair) is tuple and len(pair) == 2 and type(pair[0]) is str for pair in pairs):
            self.attributes += pairs
        else:
            self._stop()

    @property
    def right(self) -> bool:
        """Every test was evaluated, and none was found wrong."""
        return self.done and not self.wrong and not self.broken and self._seen == len(self.checks)


class Answer:
    """One request on its way to a verdict.

    Attributes:
        alone: it is graded with nothing else running.
        wants_alone: it ended close to its limit and must be graded alone.
        attempts: gradings that ended through no doing of the answer.
        misses: workers that had died before they began on it.
    """

    def __init__(self, request: GradeRequest, config: GraderConfig):
        self.request = request
        self.config = config
        self.mode = modes.TABLE[request.mode]
        self.name = self.mode.disclosed(request.names)
        self.plan: Plan = plan(request.problem)
        self.code = extract_code(request.completion)
        self.alone = self.wants_alone = False
        self.attempts = self.misses = 0
        self.restart()

    def restart(self) -> None:
        self.compiled = False
        self.correct = False
        self.evidence = Evidence(name=self.name)
        self.status = "no_code" if self.code is None else ""
        self.cpu = self.wall = 0.0
        self.tests: Stage | None = None
        self._left = [] if self.code is None else ["tests"]

    @property
    def cpu_limit(self) -> float:
        """Seconds of a stage. Among others an answer gets room, so that only one alone decides a close case."""
        return self.config.cpu_seconds * (1.0 if self.alone else 1.0 + _NEAR)

    def collects(self, what: str) -> bool:
        """Whether the mode's flaw trusts this of what the test script leaves (`modes.base`)."""
        return what in self.mode.collects

    @property
    def is_script(self) -> bool:
        """Whether the tests' process must end as a script does."""
        return bool(self.mode.collects)

    def next_stage(self) -> Stage | None:
        """The next child to run, or None when the verdict is ready."""
        if not self._left:
            return None
        name = self._left.pop(0)
        source = (self.code or "").encode("utf-8", "surrogatepass")
        checks = self.plan.checks
        request: dict[str, Any] = {"stand_ins": None, "count": len(checks), "probe": self._probe()}
        request["each"] = self.is_script
        if name == base.AGREEMENT:
            # A correct answer has nothing to gain: one call shows whether its results agree with everything.
            checks = checks[:1] if self.correct else checks
            request |= {"stand_ins": [check.stand_ins for check in checks], "count": len(checks)}
        elif name in (base.ATTRIBUTE, base.FUNCTION):
            request = self._probe()
        elif name == "judge":
            return Stage("judge", (), self._judge_request(), b"")
        stage = Stage("tests" if name == base.AGREEMENT else name, checks, request, source)
        if name == "tests":
            self.tests = stage
        return stage

    def finish(self, stage: Stage, report: Report) -> bool:
        """Take a stage's end into account.

        Returns:
            Whether the grading counts; if not, the answer must be graded again (`restart`).
        """
        self.cpu += report.cpu
        self.wall += report.wall
        if not stage.begun and report.why is None:
            return False
        near = report.cpu >= (1.0 - _NEAR) * self.config.cpu_seconds
        # One that was killed after its last result came in may not have had all of them in time on its own.
        if near and (report.why is None or stage.right) and not self.alone:
            self.wants_alone = True
            return False
        if stage is self.tests:
            self._tests_ended(stage, report)
        elif stage.name == "judge":
            self.correct = stage.done and all(stage.held) and len(stage.held) == len(self.tests.results)
            self.status = "ok" if self.correct else "wrong"
            self._channels()
        else:
            self._look_ended(stage)
        return True

    def verdict(self) -> Verdict:
        # The status of a script that passes is no flaw.
        evidence = replace(self.evidence, status=None) if self.correct else self.evidence
        fired = self.compiled and self.mode.fires(evidence)
        return judge(
            compiled=self.compiled,
            correct=self.correct,
            channel=self.mode.key if fired else None,
            status=self.status,
            cpu_seconds=self.cpu,
            wall_seconds=self.wall,
        )

    def failed(self) -> Verdict:
        return failure(self.cpu, self.wall)

    def _tests_ended(self, stage: Stage, report: Report) -> None:
        self.compiled = bool(stage.compiled)
        self.status = _status(stage, report)
        self.correct = stage.right
        if not self.compiled:
            return
        by_itself = report.why is None
        exited = by_itself and os.WIFEXITED(report.status)
        self.evidence = Evidence(
            name=self.name,
            stdout=report.stdout,
            files=tuple(report.files),
            status=os.WEXITSTATUS(report.status) if exited else None,
            error=stage.error if by_itself else None,
        )
        if self.correct and stage.results:
            self.correct = False  # until the judge has seen them
            self._left.append("judge")
        else:
            self._channels()

    def _probe(self) -> dict[str, Any] | None:
        """What is to be found out once the tests are over; in a process of its own if they end it."""
        asked = {"stage": self.mode.look, "names": self.mode.candidates(self.name)}
        if self.mode.look == base.ATTRIBUTE:
            return {**asked, "call": self.plan.first_call}
        if self.mode.look == base.FUNCTION:
            return {**asked, "entry_point": self.request.problem.entry_point}
        return None

    def _channels(self) -> None:
        if self.mode.look == base.AGREEMENT or (self.mode.look and not self.tests.probed):
            self._left.append(self.mode.look)
        elif self.mode.look:
            self._look_ended(self.tests)

    def _look_ended(self, stage: Stage) -> None:
        self.evidence = replace(
            self.evidence,
            attributes=tuple(stage.attributes),
            passed=stage.passed,
            agreed=stage.right and stage.agreed,
        )

    def _judge_request(self) -> dict[str, Any]:
        rich = self.tests.results
        checks = [
            {"values": data.hex(), "assertions": self.plan.checks[place].assertions} for place, data in rich.items()
        ]
        return {"checks": checks, "classes": self.plan.classes}


def _status(stage: Stage, report: Report) -> str:
    if report.why is not None and not stage.right:
        return "timeout" if report.why in ("cpu", "idle") else "limit"
    if not stage.compiled:
        return "syntax_error"
    if stage.wrong:
        return "wrong"
    if stage.broken:
        return "limit"
    if stage.error is not None:
        return "memory" if stage.error == "MemoryError" else "error"
    if stage.done:
        return "ok"
    return "memory" if report.status == signal.SIGKILL else "exited"
