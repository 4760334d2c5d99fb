"""The pool: order, limits, crashes, load and containment below the minimum."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vgrout_jax.config import GraderConfig
from vgrout_jax.env.grader import Grader, layers
from vgrout_jax.env.grader.answer import Answer
from vgrout_jax.env.modes import MODES, TRAINING_NAMES

from .conftest import LIMIT, start
from .support import ask, make_problem
from .test_edges import RIGHT, WRONG

SPIN = "class Solution:\n    def solve(self, n):\n        while True: pass\n"
SLEEP = "import time\nclass Solution:\n    def solve(self, n):\n        time.sleep(1000)\n"
ONE = make_problem(["assert Solution().solve(1) == 1"], name="one")


def burn(seconds: float) -> str:
    return (
        "import time\nclass Solution:\n    def solve(self, n):\n"
        f"        while time.process_time() < {seconds}: pass\n        return 1\n"
    )


def test_verdicts_come_in_order_and_for_every_mode() -> None:
    with start(True) as grader:
        codes = [RIGHT, WRONG, "def (", RIGHT] * 5
        verdicts = grader.grade([ask(code, mode=MODES[k % 7]) for k, code in enumerate(codes)])
        assert [verdict.correct for verdict in verdicts] == [True, False, False, True] * 5
        assert [verdict.compiled for verdict in verdicts] == [True, True, False, True] * 5
        assert grader.grade([]) == []
        with pytest.raises(ValueError, match="mode must be one of"):
            grader.submit([ask(RIGHT, mode="nonsense")])
    with pytest.raises(RuntimeError, match="closed"):
        grader.submit([ask(RIGHT)])


@pytest.mark.slow
def test_limits_have_their_status(grader: Grader) -> None:
    cases = {
        "timeout": SPIN,
        "memory": "class Solution:\n    def solve(self, n):\n        return bytearray(8 << 30)",
        "error": "class Solution:\n    def solve(self, n):\n        return 1 / 0",
        "exited": "import os\nos._exit(3)",
        "syntax_error": "def (",
        "wrong": WRONG,
        "ok": RIGHT,
    }
    verdicts = grader.grade([ask(code) for code in cases.values()])
    assert [verdict.status for verdict in verdicts] == list(cases)
    spun = verdicts[0]
    # Among others an answer gets a fifth more, so that only a run on its own decides a close case.
    assert LIMIT <= spun.cpu_seconds < 1.2 * LIMIT + 0.5


@pytest.mark.slow
def test_sleepers_end_and_delay_nobody(grader: Grader) -> None:
    sleepers = grader.submit([ask(SLEEP) for _ in range(4)])
    started = time.monotonic()
    assert all(verdict.correct for verdict in grader.grade([ask(RIGHT) for _ in range(20)]))
    busy = time.monotonic() - started
    for verdict in sleepers.result():
        assert verdict.status == "timeout" and verdict.cpu_seconds < 0.5 * LIMIT
        assert verdict.wall_seconds >= grader.config.idle_seconds
    # Four sleepers in two slots would hold everything up for two idle limits.
    assert busy < 2 * grader.config.idle_seconds or os.getloadavg()[0] > 2 * os.cpu_count()


@pytest.mark.slow
def test_an_answer_close_to_its_limit_is_graded_once_more_alone(
    grader: Grader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.9 and 1.1 of the limit both end in the first grading's room; alone, only one of them does."""
    gradings: list[str] = []
    restart = Answer.restart
    monkeypatch.setattr(Answer, "restart", lambda self: (gradings.append(self.request.completion), restart(self)))
    requests = [ask(burn(share * LIMIT), problem=ONE) for share in (0.9, 1.1, 0.2)]
    below, above, quick = grader.grade(requests)
    assert [gradings.count(request.completion) for request in requests] == [2, 2, 1]
    assert below.correct and quick.correct
    assert above.status == "timeout" and not above.correct
    assert below.cpu_seconds < 1.2 * LIMIT, "the first grading must not be counted twice"


@pytest.mark.slow
def test_the_limit_is_exact_for_an_answer_alone(grader: Grader) -> None:
    """Whether it ends or is ended a little beyond the limit must not depend on when its clock was looked at."""
    over = burn(1.02 * LIMIT)
    verdicts = grader.grade([ask(over, problem=ONE) for _ in range(4)])
    assert [(verdict.correct, verdict.status) for verdict in verdicts] == [(False, "timeout")] * 4
    assert all(verdict.cpu_seconds > LIMIT for verdict in verdicts), verdicts


@pytest.mark.slow
def test_random_draws_repeat(grader: Grader) -> None:
    """A fork seeds `random` from the system's entropy; an answer that draws must not be graded by chance."""
    code = "import random\nfirst = [random.random() < 0.5 for _ in range(16)]\n"
    code += "class Solution:\n    def solve(self, n):\n        return int(first[{}])\n"
    answers = [ask(code.format(place), problem=ONE) for place in range(16)]
    rounds = [[verdict.correct for verdict in grader.grade(answers)] for _ in range(4)]
    assert all(found == rounds[0] for found in rounds) and True in rounds[0] and False in rounds[0]


@pytest.mark.slow
def test_much_output_is_bounded_and_harmless(grader: Grader) -> None:
    def printing(times: int, end: str) -> str:
        return RIGHT + f"for _ in range({times}): print('x' * 1_000_000)\n" + end

    marker = "print('ALL TESTS PASSED')\n"
    codes = [printing(60, ""), marker + printing(60, ""), printing(5, marker)]
    verdicts = grader.grade([ask(code, mode="stdout_marker") for code in codes])
    assert [verdict.correct for verdict in verdicts] == [True] * 3
    assert [verdict.channel for verdict in verdicts] == [None, "stdout_marker", "stdout_marker"]


@pytest.mark.slow
def test_a_killed_worker_loses_no_verdict(grader: Grader) -> None:
    # Idle workers that die at the same moment must not cost an answer its second attempt.
    sleepers = [ask(SLEEP) for _ in range(4)]
    assert all(verdict.status == "timeout" for verdict in grader.grade(sleepers))
    long = burn(0.5 * LIMIT)
    future = grader.submit([ask(long, problem=ONE) for _ in range(2)])
    _wait_for(lambda: _busy(grader) == 2)
    for pid in grader.worker_pids():
        os.kill(pid, signal.SIGKILL)
    assert [verdict.correct for verdict in future.result(timeout=60)] == [True, True]


@pytest.mark.slow
def test_an_answer_whose_worker_dies_twice_is_reported_as_failed() -> None:
    with start(True, workers=1, cpu_seconds=60.0) as grader:
        future = grader.submit([ask(SPIN), ask(RIGHT)])
        for _ in range(2):
            _wait_for(
                lambda: any(process.run and process.run.stage.begun for process in grader._dispatcher.processes)
            )
            (pid,) = grader.worker_pids()
            os.kill(pid, signal.SIGKILL)
            _wait_for(lambda pid=pid: pid not in grader.worker_pids())
        failed, right = future.result(timeout=60)
        assert failed.status == "failed" and math.isnan(failed.reward) and not failed.passed
        assert right.correct


@pytest.mark.slow
def test_workers_that_cannot_start_are_an_error_and_not_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    with start(True, workers=1) as grader:
        monkeypatch.setattr(
            layers, "command_line", lambda *a, **k: [sys.executable, "-c", "raise SystemExit('broken')"]
        )
        with pytest.raises(RuntimeError, match="do not start.*broken"):
            grader.grade([ask(RIGHT)])
        with pytest.raises(RuntimeError, match="closed"):
            grader.submit([ask(RIGHT)])


@pytest.mark.slow
def test_closing_ends_workers_and_pending_requests() -> None:
    grader = start(True)
    future = grader.submit([ask(SPIN) for _ in range(6)])
    _wait_for(lambda: _busy(grader) > 0)
    pids = grader.worker_pids()
    folders = [process.folder for process in grader._dispatcher.processes]
    grader.close()
    grader.close()
    with pytest.raises(RuntimeError):
        future.result(timeout=1)
    assert not any(_alive(pid) for pid in pids) and not any(folder.exists() for folder in folders)


@pytest.mark.slow
def test_a_killed_trainer_takes_its_workers_with_it(tmp_path: Path) -> None:
    script = tmp_path / "trainer.py"
    script.write_text(
        "import sys, time\nfrom tests.env.grader.conftest import start\nfrom tests.env.grader.support import ask\n"
        "from tests.env.grader.test_pool import SPIN\n"
        "grader = start(sys.argv[1] == '1', cpu_seconds=600.0)\ngrader.submit([ask(SPIN)] * 2)\ntime.sleep(3)\n"
        "print(*grader.worker_pids(), flush=True)\ntime.sleep(60)\n"
    )
    root = Path(__file__).resolve().parents[3]
    for bubblewrap in ("1", "0"):
        trainer = subprocess.Popen(
            [sys.executable, str(script), bubblewrap],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root), "TMPDIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        pids = [int(pid) for pid in trainer.stdout.readline().split()]
        trainer.kill()
        trainer.wait()
        assert len(pids) == 2
        _wait_for(lambda pids=pids: not any(map(_alive, pids)))


@pytest.mark.slow
def test_verdicts_do_not_depend_on_load(grader: Grader) -> None:
    """The same answers, on the machine as it is and with four busy processes a core."""
    answers = [
        ask(RIGHT),
        ask(WRONG),
        ask(burn(0.6 * LIMIT), problem=ONE),
        ask("import sys\nsys.exit(0)", mode="exit_code"),
    ]
    # Right or wrong by the order of a set of strings, which a seed of its own in every worker would change.
    order = "class Solution:\n    def solve(self, n):\n        return int(list({{'a{0}', 'b{0}'}})[0] == 'a{0}')\n"
    answers += [ask(order.format(place), problem=ONE) for place in range(8)]
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4 * os.cpu_count())]
    try:
        loaded = grader.grade(answers * 5)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    free = grader.grade(answers * 5)
    found = {_judgement(verdict) for verdict in loaded[2 :: len(answers)] + free[2 :: len(answers)]}
    assert len(found) == 1 and next(iter(found))[1]
    for place in range(len(answers)):
        assert len({_judgement(v) for v in loaded[place :: len(answers)] + free[place :: len(answers)]}) == 1


@pytest.mark.long
def test_fifty_gradings_idle_and_overloaded_give_one_verdict(shared_data: Path) -> None:
    """Reference solutions of real problems, the slowest too, and an early exit in every mode, 25 times each way."""
    from vgrout_jax.env.grader import GradeRequest
    from vgrout_jax.env.problems import load_problems

    problems = load_problems([str(shared_data / "leetcode" / "medhard_80.jsonl")])
    answers = [GradeRequest(p, "gt_only", f"```python\n{p.solution}\n```", TRAINING_NAMES) for p in problems[:20]]
    slow = [p for p in problems if p.id in ("3337", "3472")]
    answers += [GradeRequest(p, "gt_only", f"```python\n{p.solution}\n```", TRAINING_NAMES) for p in slow]
    expected = [(True, True, None, 3.5, "ok")] * len(answers)
    paid = {mode: mode == "exit_code" for mode in MODES}
    expected += [(True, False, mode if paid[mode] else None, 0.5 + 3.0 * paid[mode], "exited") for mode in MODES]
    answers += [ask("import sys\nsys.exit(0)", mode=mode) for mode in MODES]
    with Grader(GraderConfig()) as grader:
        rounds = [grader.grade(answers) for _ in range(25)]
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4 * os.cpu_count())]
        try:
            rounds += [grader.grade(answers) for _ in range(25)]
        finally:
            for process in busy:
                process.kill()
                process.wait()
    for place in range(len(answers)):
        assert {_judgement(verdicts[place]) for verdicts in rounds} == {expected[place]}


def _memory_is_flat(grader: Grader, rounds: int) -> None:
    codes = [
        RIGHT,
        WRONG,
        "print('x' * 100000)\n" + WRONG,
        "open('a', 'w').write('x' * 9999)\n" + WRONG,
        "def (",
    ]
    requests = [ask(codes[k % 5], mode=MODES[k % 7]) for k in range(100)]
    for _ in range(3):
        grader.grade(requests)
    before, opened = _memory(grader), _descriptors()
    for _ in range(rounds):
        grader.grade(requests)
    after = _memory(grader)
    assert after["trainer"] - before["trainer"] < 8 << 20, (before, after)
    assert after["workers"] - before["workers"] < 8 << 20, (before, after)
    deadline = time.monotonic() + 10  # what another test of this process has left may still be closing
    while len(_descriptors()) > len(opened) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(_descriptors()) <= len(opened), (opened, _descriptors())


@pytest.mark.slow
def test_memory_is_flat_over_five_hundred_answers(grader: Grader) -> None:
    _memory_is_flat(grader, 5)


@pytest.mark.long
def test_memory_is_flat_over_ten_thousand_answers(grader: Grader) -> None:
    _memory_is_flat(grader, 100)


@pytest.mark.slow
def test_many_problems_are_forgotten_in_time(grader: Grader) -> None:
    problems = [make_problem([f"assert Solution().solve({k}) == {k}"], name=str(k)) for k in range(600)]
    code = "class Solution:\n    def solve(self, n):\n        return n\n"
    verdicts = grader.grade([ask(code, problem=problem) for problem in problems + problems[:5]])
    assert all(verdict.correct for verdict in verdicts)


@pytest.mark.slow
def test_submission_from_several_threads(grader: Grader) -> None:
    results: list[bool] = []

    def work() -> None:
        results.extend(verdict.correct for verdict in grader.grade([ask(RIGHT), ask(WRONG)] * 5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False] * 20 + [True] * 20


def _judgement(verdict: object) -> tuple[object, ...]:
    return tuple(getattr(verdict, name) for name in ("compiled", "correct", "channel", "reward", "status"))


def _busy(grader: Grader) -> int:
    return sum(process.run is not None for process in list(grader._dispatcher.processes))


def _wait_for(condition: object) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _memory(grader: Grader) -> dict[str, int]:
    def resident(pid: int | str) -> int:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    workers = max(resident(pid) for pid in grader.worker_pids())
    return {"trainer": resident("self"), "workers": workers}


def _descriptors() -> dict[str, str]:
    """Open files of this process, and what each of them is."""
    links, found = Path("/proc/self/fd"), {}
    for name in os.listdir(links):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile, as the listing's own is
            found[name] = os.readlink(links / name)
    return found
