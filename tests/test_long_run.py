"""What grows with the number of steps: nothing."""

import json
import subprocess
import sys

import pytest

from tests import interrupted

FLAT = """
import gc, json, os, resource, sys
from vgrout_jax import main, train

original, seen = train.train_step, []

def measured(loop):
    original(loop)
    if loop.progress.step in (100, 200, 300):
        loop.store.wait()
        gc.collect()
        pages = int(open("/proc/self/statm").read().split()[1])
        threads = len(os.listdir("/proc/self/task"))
        seen.append([loop.progress.step, len(os.listdir("/proc/self/fd")), threads, pages * resource.getpagesize()])

train.train_step = measured
try:
    main.run()
finally:
    print("measured", json.dumps(seen), file=sys.stderr)
"""


@pytest.mark.long
def test_three_hundred_steps_keep_memory_and_descriptors_flat(tmp_path):
    """With a state every second step, an evaluation every third and all logs on: 150 states, 100 evaluations."""
    arguments = [f"--config={interrupted.ROOT}/configs/routeV.py:smoke", f"--workdir={tmp_path / 'run'}"]
    flags = [*interrupted.FLAGS[1:], "--config.train.steps=300"]
    done = subprocess.run(
        [sys.executable, "-c", FLAT, *arguments, *flags],
        env=interrupted.environment(tmp_path / "compiled"),
        cwd=interrupted.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [line] = [line for line in done.stderr.splitlines() if line.startswith("measured ")]
    rows = json.loads(line.removeprefix("measured "))
    print(line)
    assert [row[0] for row in rows] == [100, 200, 300]
    (_, files, threads, memory), *later = rows
    for _, other_files, other_threads, other_memory in later:
        assert other_files <= files + 2 and other_threads <= threads + 4
        assert other_memory < memory * 1.05 + 16e6
