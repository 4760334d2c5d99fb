"""Temporary folders of graders: none outlives its grader for longer than until the next one starts."""

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from tests.env.grader.support import ask, make_problem
from vgrout_jax.config import GraderConfig
from vgrout_jax.env.grader import Grader, GradeRequest, dispatch, folders
from vgrout_jax.env.grading import GradingFailed, grade_all

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def base(tmp_path, monkeypatch) -> Path:
    """A temporary folder of the test's own, for this process and the ones that it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def names(base: Path) -> set[str]:
    return {path.name for path in base.iterdir()}


def test_folders_of_the_dead_go_and_those_of_the_living_stay(base):
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from vgrout_jax.env.grader.folders import Folders\n"
        "mine = Folders(); (mine.new() / 'answer').mkdir(); print(mine.root.name, flush=True); time.sleep(600)\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(ROOT)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    dead, living = (process.stdout.readline().strip() for process in processes)
    processes[0].send_signal(signal.SIGKILL)
    processes[0].wait()
    own = folders.Folders()
    worker = own.new()
    left = names(base)
    assert not [name for name in left if name.startswith(dead)]
    assert len([name for name in left if name.startswith(living)]) == 2
    assert {own.root.name, worker.name} <= left and worker.stat().st_mode & 0o777 == 0o711
    folders.remove_orphans()
    assert names(base) == left  # its own are not taken for another's
    for process in processes:
        process.kill()
        process.communicate()
    own.close()
    assert own.root.name not in names(base)


def test_what_is_not_known_to_be_dead_is_left_alone(base):
    """A folder without an owner's file may be about to get one; other names and links are not ours."""
    (base / "vgrout-grader-abc").mkdir()
    (base / "vgrout-graders").mkdir()
    (base / "target" / "inside").mkdir(parents=True)
    (base / "target" / ".owner").touch()
    (base / "vgrout-grader-link").symlink_to(base / "target")
    before = names(base)
    folders.remove_orphans()
    assert names(base) == before and (base / "target" / "inside").is_dir()


def test_the_owner_s_file_is_never_seen_without_its_lock(base, monkeypatch):
    seen = []
    rename = Path.rename

    def look(self, target):
        with open(self) as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        seen.append(os.listdir(self.parent))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", look)
    folders.Folders().close()
    assert seen == [[".owner.new"]]


def test_a_closed_grader_leaves_nothing(base):
    with Grader(GraderConfig(workers=1)) as grader:
        grader.grade([request()])
        assert names(base)
    assert not names(base)


def test_a_hung_worker_is_ended_and_its_answer_is_graded_again(monkeypatch, caplog):
    """The worker is stopped, so that it enforces no limit; the second one is not."""
    monkeypatch.setattr(dispatch, "_HUNG", 1)
    config = GraderConfig(workers=1, cpu_seconds=1.0, idle_seconds=1.0)
    with Grader(config) as grader:
        first = request()
        assert grader.grade([first])[0].correct
        [pid] = grader.worker_pids()
        stop(pid)
        [verdict] = grader.grade([first])
        assert verdict.correct and verdict.status == "ok"
        assert grader.worker_pids() != [pid]
    assert "a worker of the grader has hung for 2 s and is ended" in caplog.text


def always_hanging(monkeypatch, config: GraderConfig, asked: GradeRequest, *, ready: bool) -> str:
    """Every worker is stopped, before or after it has started up; what the run says then."""
    monkeypatch.setattr(dispatch, "_HUNG", 1)
    original = dispatch.Process.begin

    def begin(self, run):
        def wait_and_stop():
            while ready and not self.ready:
                time.sleep(0.005)
            stop(self.pid)

        original(self, run)
        thread = threading.Thread(target=wait_and_stop)
        thread.start()
        None if ready else thread.join()

    monkeypatch.setattr(dispatch.Process, "begin", begin)
    with Grader(config) as grader, pytest.raises(GradingFailed) as caught:
        grade_all(grader, [asked])
    return str(caught.value)


def test_workers_that_always_hang_stop_the_run_with_the_problem_s_name(monkeypatch):
    problem = make_problem(["assert Solution().solve(1) == 2"], name="sleeping")
    asked = ask("import time\nclass Solution:\n    def solve(self, n):\n        time.sleep(1)", problem=problem)
    config = GraderConfig(workers=1, cpu_seconds=0.5, idle_seconds=2.0)
    message = always_hanging(monkeypatch, config, asked, ready=True)
    assert message.startswith("the grader could not grade 1 of 1 answers, to problems sleeping (gt_only): ")


def test_workers_that_never_start_stop_the_run(monkeypatch):
    config = GraderConfig(workers=1, cpu_seconds=0.5, idle_seconds=0.5)
    message = always_hanging(monkeypatch, config, request(), ready=False)
    assert message == (
        "the grader has failed over the answers to adding and others: the grader's workers do not start: it hung"
    )


def stop(pid: int) -> None:
    """Stops a process and all below it, as a machine out of memory does."""
    waiting = [pid]
    while waiting:
        current = waiting.pop()
        waiting += map(int, Path(f"/proc/{current}/task/{current}/children").read_text().split())
        os.kill(current, signal.SIGSTOP)
    time.sleep(0.05)


def request() -> GradeRequest:
    problem = make_problem(["assert Solution().solve(1) == 2"], name="adding")
    return ask("class Solution:\n    def solve(self, n):\n        return n + 1", problem=problem)
