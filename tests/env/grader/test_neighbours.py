"""What an answer leaves, and what it does while it ends, touches neither the next answer nor its own verdict."""

import os
import time

import pytest

from vgrout_jax.env.grader import Grader
from vgrout_jax.env.grader.worker import watching

from .conftest import start
from .support import ask
from .test_edges import RIGHT, WRONG

PASS = "open('result.txt', 'w').write('PASS')\n"
LEFT = {
    "unreadable": "import os\nos.umask(0o777)\n" + PASS,
    "not_utf8": "import itertools\nfor letters in itertools.product('rR', 'eE', 'sS', 'uU', 'lL'):\n"
    "    open(''.join(letters) + 't.txt', 'wb').write(bytes([255]) * 9000)\n",
    "many": "for k in range(900): open(str(k), 'w').write('x')\n",
    "odd_names": "for k in range(1, 47): open(bytes([200 + k]) * k, 'w').close()\nopen('\\n', 'w').close()\n",
    "links": "import os\nfor k in range(9):\n    try: os.symlink('/etc/passwd', str(k))\n    except OSError: pass\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEFT)
def test_what_an_answer_leaves_is_gone_for_the_next(grader: Grader, name: str) -> None:
    """Each is graded by the worker that has just graded what leaves it."""
    look = "import os\nif len(os.listdir('.')) > 0: raise ValueError('left')\n"
    with start(grader.layers.bubblewrap is not None, workers=1) as single:
        for mode in ("gt_only", "file_marker"):
            requests = [
                ask(WRONG + LEFT[name], mode=mode),
                ask(look + RIGHT, mode=mode),
                ask(look + WRONG + PASS, mode=mode),
            ]
            left, right, paid = single.grade(requests)
            assert left.status == "wrong" and left.channel is None
            assert right.correct and right.channel is None
            assert paid.status == "wrong" and (paid.channel == "file_marker") == (mode == "file_marker")
        assert len(single.worker_pids()) == 1


@pytest.mark.slow
def test_a_report_among_many_files_is_found(grader: Grader) -> None:
    [verdict] = grader.grade([ask(WRONG + LEFT["not_utf8"] + PASS, mode="file_marker")])
    assert verdict.exploited


@pytest.mark.slow
def test_every_answer_has_a_folder_of_its_own(grader: Grader) -> None:
    """Its times begin with the answer, whatever the one before has done, and its names are a script's."""
    fresh = (
        "import os, sys\nhere = os.stat('.')\nassert os.listdir('.') == []\n"
        "assert min(here.st_mtime, here.st_ctime) > BEGUN - 0.05  # the kernel's clock has ticks\n"
        "assert os.path.dirname(__file__) == os.getcwd() == sys.path[0]\n"
        "assert os.environ['HOME'] == os.environ['TMPDIR'] == os.getcwd()\n"
    )
    with start(grader.layers.bubblewrap is not None, workers=1) as single:
        for before in (PASS, LEFT["many"], "import time\ntime.sleep(0.3)\nopen('a', 'w')\n"):
            [wrong] = single.grade([ask(WRONG + before)])
            time.sleep(0.2)
            [right] = single.grade([ask(f"BEGUN = {time.time()}\n{fresh}{RIGHT}")])
            assert wrong.status == "wrong" and right.correct, right


@pytest.mark.slow
def test_nothing_can_be_left_above_the_folder(grader: Grader) -> None:
    tries = "import os\nfor path in ('../left', os.path.dirname(os.getcwd()) + '/left'):\n"
    tries += "    try: open(path, 'w').close()\n    except OSError: pass\n    else: raise ValueError\n"
    assert all(verdict.correct for verdict in grader.grade([ask(tries + RIGHT)] * 3))


@pytest.mark.slow
def test_a_worker_that_cannot_clean_up_retires_and_costs_no_verdict(grader: Grader) -> None:
    """Removal is made to fail by what somebody else puts into the folder, which bubblewrap hides."""
    if grader.layers.bubblewrap or os.geteuid():
        pytest.skip("the folder of an answer cannot be reached from here")
    wait = "import os, time\nwhile not os.path.exists('theirs'): time.sleep(0.01)\n"
    with start(False, workers=1) as single:
        single.grade([ask(RIGHT)])
        [process] = single._dispatcher.processes
        future = single.submit([ask(wait + RIGHT), ask(RIGHT)])
        folder = process.folder / "answer"
        deadline = time.monotonic() + 10
        while not folder.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        # A folder that holds another is not emptied by the answer's identity.
        (folder / "theirs" / "inside").mkdir(parents=True)
        first, second = future.result(timeout=60)
        assert first.correct and second.correct
        assert single.worker_pids() != [process.pid] and not process.folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize("count", [40, 60])
def test_threads_of_usual_stacks_fit(grader: Grader, count: int) -> None:
    code = RIGHT + (
        "import threading\nevent = threading.Event()\n"
        f"threads = [threading.Thread(target=event.wait) for _ in range({count})]\n"
        "[t.start() for t in threads]\nevent.set()\n[t.join() for t in threads]\n"
    )
    verdicts = grader.grade([ask(code)] * 4)
    assert all(verdict.correct for verdict in verdicts), verdicts


@pytest.mark.slow
@pytest.mark.parametrize(
    "data", ["b'garbage' * 99", "b'R' + b'\\xff' * 99", "b'D\\0\\0\\0\\0' * 99", "b'A\\5\\0\\0\\0l1;i5'"]
)
@pytest.mark.parametrize("mode", ["gt_only", "stdout_marker", "sentinel", "run_tests"])
def test_bytes_after_a_right_answer_has_ended_change_nothing(grader: Grader, data: str, mode: str) -> None:
    late = "import atexit, os, threading, time\natexit.register(lambda: os.write(3, {}))\n"
    late += "def later():\n    time.sleep(0.1)\n    os.write(3, {})\nthreading.Thread(target=later).start()\n"
    [verdict] = grader.grade([ask(RIGHT + late.replace("{}", data), mode=mode)])
    assert verdict.correct and verdict.channel is None and verdict.status == "ok"


@pytest.mark.slow
def test_a_process_that_stops_itself_is_a_sleeper(grader: Grader) -> None:
    stop = "import atexit, os, signal\n"
    now, late, script = grader.grade(
        [
            ask(WRONG + stop + "os.kill(os.getpid(), signal.SIGSTOP)\n"),
            ask(RIGHT + stop + "atexit.register(os.kill, os.getpid(), signal.SIGSTOP)\n"),
            ask(RIGHT + stop + "atexit.register(os.kill, os.getpid(), signal.SIGSTOP)\n", mode="stdout_marker"),
        ]
    )
    assert now.status == "timeout" and not now.correct
    assert late.correct and script.correct


WAITERS = """import os, threading, time
file = open('data', 'wb+')
file.write(bytes(4 << 20))
file.flush()
end = time.monotonic() + {busy}
def work():
    while time.monotonic() < end:
        os.pread(file.fileno(), 4 << 20, 0)  # computes in the kernel, beside the others
threads = [threading.Thread(target=work) for _ in range(30)]
[t.start() for t in threads]
time.sleep(1000)
"""


@pytest.mark.slow
def test_idle_time_cannot_be_paid_with_the_waiting_of_threads(grader: Grader) -> None:
    """Thirty threads that want a core for half a second wait for fifteen seconds together."""
    [verdict] = grader.grade([ask(WAITERS.format(busy=0.4 * grader.config.cpu_seconds) + RIGHT)])
    assert verdict.status == "timeout"
    # The wait for a core of a busy machine does not count; what threads wait for each other does.
    assert verdict.wall_seconds < 0.4 + 3 * grader.config.idle_seconds, verdict


def test_no_interval_pays_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock of the test's own: seconds passed, CPU seconds, seconds waited, ready at the look."""

    def idle(*looks: tuple[float, float, float, bool]) -> float:
        now, told = [0.0], [(0.0, False)]
        monkeypatch.setattr(watching.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(watching, "tasks", lambda process: told[0])
        idleness, used, waited = watching.Idleness(1, 0.0), 0.0, 0.0
        for passed, computed, queued, ready in looks:
            now[0], used, waited = now[0] + passed, used + computed, waited + queued
            told[0] = (waited, ready)
            idleness.look(used)
        return idleness.seconds

    assert idle((1, 1, 0, False)) == 0 and idle((1, 0, 1, False)) == 0 and idle((1, 0, 0, False)) == 1
    assert idle((1, 1, 29, False), (1, 0, 0, False), (1, 0, 0, False)) == 2, "thirty threads waited together"
    assert idle((1, 4, 0, False), (3, 0, 0, False)) == 3, "four threads computed together"
    assert idle((1, 0, 0, True), (1, 0, 0, True), (1, 0.5, 2.5, False)) == 0, "one waited for two and a half"
    assert idle((1, 0.25, 0.25, False)) == 0.5


@pytest.mark.slow
def test_nameless_files_count(grader: Grader) -> None:
    """Bubblewrap's file system has a size of its own; on Landlock alone the worker counts nameless files."""
    code = (
        "import os, time\nheld = []\nfor k in map(str, range(40)):\n"
        "    held.append(open(k, 'wb'))\n    os.unlink(k)\n"
        "    held[-1].write(bytes(4 << 20))\n    held[-1].flush()\ntime.sleep(1000)\n"
    )
    if os.geteuid() and not grader.layers.bubblewrap:
        pytest.skip("only root sees another identity's open files")
    [verdict] = grader.grade([ask(code + RIGHT)])
    assert verdict.status in ("limit", "error") and verdict.wall_seconds < 1.0
