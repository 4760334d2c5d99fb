"""No answer keeps the trainer busy or fills it: what an answer's channels hold is read as it comes, within bounds."""

import random
import resource
import struct
import time

import pytest

from vgrout_jax.env.grader import Grader
from vgrout_jax.env.grader.answer import Stage
from vgrout_jax.env.grader.checks import plan
from vgrout_jax.env.grader.worker import plain

from .conftest import LIMIT
from .support import SECRET_PROBLEM, ask
from .test_edges import WRONG

SPIN = "import os, struct, time\nend = time.process_time() + 0.6\nwhile time.process_time() < end:\n"
# Mode and what an answer does for more than half of its CPU limit.
BUSY = {
    "prints_bytes": ("stdout_marker", SPIN + "    os.write(1, b'x')\n"),
    "prints_lines": ("stdout_marker", SPIN + "    print('all tests pass if', end)\n"),
    "prints_much": ("stdout_marker", SPIN + "    os.write(1, b'all ' * 16384)\n"),
    "frames_by_bytes": (
        "gt_only",
        "import os\nos.write(3, b'A\\xff\\xff\\0\\0')\n" + SPIN + "    os.write(3, b'x')\n",
    ),
    "frames": ("gt_only", SPIN + "    os.write(3, b'Q\\0\\0\\0\\0')\n"),
    "long_frames": ("sentinel", SPIN + "    os.write(3, b'A\\xff\\xff\\0\\0' + b'l' * 65535)\n"),
    "files": (
        "file_marker",
        "for k in range(500): open('R' + str(k), 'wb').write(b'\\xff' * 9000)\n"
        "import itertools\nfor name in itertools.product(*[(c, c.upper()) for c in 'results']):\n"
        "    open(''.join(name) + '.txt', 'wb').write(b'\\xff' * 9000)\n",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUSY)
def test_what_an_answer_writes_costs_the_trainer_little(grader: Grader, name: str) -> None:
    mode, code = BUSY[name]
    request = ask(code + WRONG, mode=mode)
    grader.grade([request])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, used = time.monotonic(), time.process_time()
    [verdict] = grader.grade([request])
    assert time.process_time() - used < 0.3, name  # half of it on a machine that is not busy
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 64 << 10
    assert time.monotonic() - started < 5 * LIMIT + 5 and verdict.status != "failed" and not verdict.passed


@pytest.mark.slow
def test_answers_that_fill_their_folder_never_fail_a_worker(grader: Grader) -> None:
    """Eight at a time on two workers, and an honest one after each."""
    bad = [ask(BUSY["files"][1] + WRONG, mode="file_marker") for _ in range(8)]
    assert {verdict.status for verdict in grader.grade(bad)} == {"wrong"}
    assert all(verdict.status == "wrong" for verdict in grader.grade([ask(WRONG)] * 4))


def test_no_bytes_make_the_reader_raise() -> None:
    """Frames of any kind, length and body, whole and in pieces: the stage ends, right in nothing."""
    draw = random.Random(5)
    checks = plan(SECRET_PROBLEM).checks
    values = [
        plain.encode(value) for value in (1, "x", [("valid", True)], [("valid", 10**30)], [(1, 2)], {1: 2}, [[]])
    ]
    for name in ("tests", "attribute", "function"):
        for _ in range(300):
            stage = Stage(name, checks, {"stand_ins": None}, b"")
            for _ in range(30):
                body = draw.choice([draw.randbytes(draw.randrange(9)), draw.choice(values), b"1", b""])
                length = draw.choice([len(body)] * 4 + [len(body) + 1, 1 << 31])
                data = draw.choice(b"BCREAPQJDx").to_bytes(1) + struct.pack("<I", length) + body
                cut = draw.randrange(len(data) + 1)
                stage.feed(data[:cut])
                stage.feed(data[cut:])
            assert not stage.right
            assert all(type(key) is str for key, _ in stage.attributes)
