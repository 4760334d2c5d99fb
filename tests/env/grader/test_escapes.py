"""Attempts to leave the sandbox: none succeeds, with and without the strongest layer, and nothing is left behind."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from vgrout_jax.env.grader import Grader, Verdict

from .escapes import ESCAPES, answer
from .support import ask, make_problem

pytestmark = pytest.mark.slow
BLOCKED = make_problem(["assert Solution().solve() == 'blocked'"], name="blocked")
# These end the process instead of raising; that is a way of being stopped as well.
_KILLED = {"old_abi", "many_threads", "many_allocations"}
_PROJECT = Path(__file__).resolve().parents[3]


class Outside:
    """What an answer must not reach, and whether it did."""

    def __init__(self, folder: Path):
        self.folder = folder / "outside"
        self.folder.mkdir(mode=0o777)
        self.folder.chmod(0o777)
        self.secret = self.folder / "secret"
        self.secret.write_text("secret")
        self.secret.chmod(0o644)
        self.name = f"vgrout-escape-{os.getpid()}"
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(self.tcp.getsockname())
        self.abstract = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.abstract.bind("\0" + self.name)
        for listener in (self.tcp, self.udp, self.abstract):
            listener.setblocking(False)

    def fill(self, code: str) -> str:
        return code.format(
            secret=self.secret,
            folder=self.folder,
            port=self.tcp.getsockname()[1],
            name=self.name,
            trainer=os.getpid(),
            project=_PROJECT,
        )

    def reached(self) -> list[str]:
        """What has come through."""
        found = [str(path) for path in self.folder.iterdir() if path != self.secret]
        with contextlib.suppress(BlockingIOError):
            found.append(f"a connection from {self.tcp.accept()[1]}")
        for listener in (self.udp, self.abstract):
            with contextlib.suppress(BlockingIOError):
                found.append(f"a datagram {listener.recv(10)!r}")
        return found


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    folder = tmp_path_factory.mktemp("escapes")
    for path in (folder, *folder.parents):
        # Open on the way down, so that only the sandbox stands between an answer and the files.
        with contextlib.suppress(PermissionError):
            path.chmod(path.stat().st_mode | 0o111)
    yield Outside(folder)


@pytest.fixture(scope="module")
def verdicts(grader: Grader, outside: Outside) -> dict[str, Verdict]:
    os.environ["VGROUT_TEST_SECRET"] = "secret"
    requests = [ask(answer(outside.fill(code)), problem=BLOCKED) for code in ESCAPES.values()]
    return dict(zip(ESCAPES, grader.grade(requests), strict=True))


@pytest.mark.parametrize("name", ESCAPES)
def test_no_attempt_succeeds(name: str, verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts[name]
    stopped = verdict.correct or (name in _KILLED and verdict.status in ("exited", "limit", "timeout", "memory"))
    assert stopped, verdict


def test_nothing_came_through(verdicts: dict[str, Verdict], outside: Outside) -> None:
    assert verdicts and outside.reached() == []
    assert not any(Path(path).exists() for path in ("/escaped", "/var/tmp/escaped", "/dev/shm/escaped"))


def test_the_attempts_work_where_nothing_confines_them(outside: Outside, tmp_path: Path) -> None:
    """Otherwise their failing inside would show nothing."""
    for name in (
        "tcp_loopback",
        "read_secret",
        "fork",
        "write_outside",
        "listen",
        "memory_file",
        "pidfd",
        "symlink",
    ):
        space: dict[str, object] = {}
        exec(answer(outside.fill(ESCAPES[name])), space)
        before = os.getcwd()
        os.chdir(tmp_path)
        try:
            assert space["Solution"]().solve() == "escaped", name
        finally:
            os.chdir(before)
    (outside.folder / "escaped").unlink()
    outside.reached()


def test_answers_are_nobody_without_capabilities(grader: Grader) -> None:
    code = """
import ctypes, os
class Solution:
    def solve(self):
        header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        ctypes.CDLL(None).capget(header, data)
        ids = {*os.getresuid(), *os.getresgid(), *os.getgroups()}
        return 'blocked' if 0 not in ids and not any(data) else [ids, list(data)]
"""
    (verdict,) = grader.grade([ask(code, problem=BLOCKED)])
    if grader.layers.root or grader.layers.bubblewrap:
        assert verdict.correct, verdict


def test_the_environment_is_empty(grader: Grader) -> None:
    code = """
import os
class Solution:
    def solve(self):
        own = {'HOME', 'TMPDIR', 'PATH'}
        return 'blocked' if set(os.environ) <= own else dict(os.environ)
"""
    (verdict,) = grader.grade([ask(code, problem=BLOCKED)])
    assert verdict.correct, verdict


def test_only_four_descriptors_are_open(grader: Grader) -> None:
    code = """
import os
class Solution:
    def solve(self):
        found = []
        for fd in range(4096):
            try:
                os.fstat(fd)
                found.append(fd)
            except OSError:
                pass
        return 'blocked' if found == [0, 1, 2, 3] else found
"""
    for mode in ("gt_only", "stdout_marker", "file_marker"):
        (verdict,) = grader.grade([ask(code, problem=BLOCKED, mode=mode)])
        assert verdict.correct, (mode, verdict)


def test_files_do_not_outlive_their_answer(grader: Grader) -> None:
    leave = """
import os
class Solution:
    def solve(self):
        for k in range(30):
            open(f'left-{k}', 'w').write('x')
        return 'blocked' if len(os.listdir('.')) == 30 else 'escaped'
"""
    find = """
import os
class Solution:
    def solve(self):
        return 'blocked' if os.listdir('.') == [] else os.listdir('.')
"""
    verdicts = grader.grade([ask(code, problem=BLOCKED) for code in (leave, find) * 6])
    assert all(verdict.correct for verdict in verdicts), verdicts


def test_files_beyond_the_limit_end_the_answer(grader: Grader) -> None:
    code = """
class Solution:
    def solve(self):
        for k in range(100000):
            with open(f'file-{k}', 'wb') as file:
                file.write(bytes(1 << 20))
        return 'blocked'
"""
    before, (verdict,) = _files(grader), grader.grade([ask(code, problem=BLOCKED)])
    assert not verdict.correct and verdict.status in ("limit", "error"), verdict
    assert _files(grader) == before


def test_no_process_outlives_its_answer(grader: Grader) -> None:
    hang = "import threading, time\nfor _ in range(20): threading.Thread(target=time.sleep, args=(90,)).start()\n"
    code = hang + "class Solution:\n    def solve(self, n):\n        return n\n"
    grader.grade([ask(code) for _ in range(4)])
    assert _descendants(grader) == 0


def _files(grader: Grader) -> set[str]:
    """What lies in the folders of this grader's answers; other graders may be at work beside it."""
    root = grader._dispatcher._folders.root
    workers = list(root.parent.glob(f"{root.name}-*"))
    assert workers
    return {path.name for worker in workers for path in worker.glob("answer/*")}


def _descendants(grader: Grader) -> int:
    """Processes below the workers, apart from the worker itself inside bubblewrap's own two."""
    parents = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    own = set(grader.worker_pids())
    below = [pid for pid in parents if pid not in own and _reaches(pid, own, parents)]
    return len(below) - (2 * len(own) if grader.layers.bubblewrap else 0)


def _reaches(pid: int, own: set[int], parents: dict[int, int]) -> bool:
    while pid in parents:
        pid = parents[pid]
        if pid in own:
            return True
    return False
