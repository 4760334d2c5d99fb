"""A run that is killed anywhere and started again is, bit for bit, the run that nothing disturbed.

Every test starts the real command in a process of its own, ends it with SIGKILL, and compares everything in the
workdir with that of an undisturbed run. docs/reliability.md says what is promised.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests import interrupted
from tests.interrupted import STEPS, assert_same, content, lines, run, start

pytestmark = pytest.mark.slow

# The parts of a run in which tests/killed_at.py ends it.
POINTS = (
    "start:1",
    "built:1",
    "direction:5",
    "generation:9",
    "generated:8",
    "grading:9",
    "graded:5",
    "update:5",
    "updated:4",
    "line:6",
    "file:9",
    "evaluation:4",
    "arrays:2",
    "manifest:2",
    "rename:2",
    "renamed:2",
    "pruning:1",
    "adapter:1",
    "summary:1",
)
# Kills of one run, one after the other, those of a continued run among them.
OFTEN = ("generation:9", "update:2", "arrays:1", "grading:3", "evaluation:1")
MORE_OFTEN = ("update:4", "line:3", "cut_back:1", "arrays:1", "evaluation:1", "rename:1", "summary:1")
RANDOM_MOMENTS = 20


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, cache) -> Path:
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    status, output = run(workdir, cache)
    assert status == 0, output[-3000:]
    return workdir


def continued(workdir: Path, cache: Path, *flags: str) -> str:
    """Starts the run again, which must end well; returns what it said."""
    status, output = run(workdir, cache, *flags)
    assert status == 0, output[-3000:]
    return output


@pytest.mark.parametrize("points", [OFTEN, pytest.param(MORE_OFTEN, marks=pytest.mark.long)], ids=["often", "more"])
def test_a_run_killed_again_and_again_ends_the_same(points, tmp_path, cache, undisturbed):
    check_killed_at(points, tmp_path / "run", cache, undisturbed)


def check_killed_at(points: tuple[str, ...], workdir: Path, cache: Path, undisturbed: Path) -> None:
    for point in points:
        status, output = run(workdir, cache, point=point)
        assert status == -signal.SIGKILL, f"the run never came to {point}: {output[-2000:]}"
    continued(workdir, cache)
    assert_same(content(undisturbed), content(workdir))


@pytest.mark.long
@pytest.mark.parametrize("point", POINTS)
def test_a_run_killed_in_any_part_ends_the_same(point, tmp_path, cache, undisturbed):
    check_killed_at((point,), tmp_path / "run", cache, undisturbed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(RANDOM_MOMENTS))
def test_a_run_killed_at_a_random_moment_ends_the_same(seed, tmp_path, cache, undisturbed):
    """A moment between the start and the end: half of them in a step drawn at random, as a step is milliseconds."""
    workdir, drawn = tmp_path / "run", random.Random(seed)
    process = killed_at_random(workdir, cache, drawn, in_a_step=bool(seed % 2))
    while process.returncode != -signal.SIGKILL:
        assert process.returncode == 0
        shutil.rmtree(workdir)  # it had ended before its moment came
        process = killed_at_random(workdir, cache, drawn, in_a_step=bool(seed % 2))
    at = steps_done(workdir), sorted(path.name for path in workdir.glob("resume/*"))
    output = continued(workdir, cache)
    print(f"killed at step {at[0]}, states {at[1]}, status {process.returncode}; {said(output)}")
    assert_same(content(undisturbed), content(workdir))


def killed_at_random(workdir: Path, cache: Path, drawn: random.Random, *, in_a_step: bool) -> subprocess.Popen:
    process = start(workdir, cache)
    deadline = time.monotonic() + 300
    if in_a_step:
        wanted = drawn.randint(1, STEPS)
        while process.poll() is None and steps_done(workdir) < wanted and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(drawn.uniform(0.0, 0.3))
    else:
        time.sleep(drawn.uniform(0.5, 15.0))
    process.kill()
    process.communicate(timeout=60)
    return process


def steps_done(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def said(output: str) -> str:
    """The line in which a run says how it goes on."""
    told = ("continuing from", "starts again", "holds a finished run")
    return next((line.split("] ")[-1] for line in output.splitlines() if any(text in line for text in told)), "new")


@pytest.mark.long
@pytest.mark.parametrize("arm,kind", [("none", None), ("absorb", None), ("routeV_literal", None)] + [
    ("placebo", kind) for kind in ("direction", "direction_matched", "labels", "lazy_pairs")
])  # fmt: skip
def test_every_arm_continues_bit_for_bit(arm, kind, tmp_path, cache):
    """That includes the placebos' direction, which is drawn once, and their permuted labels."""
    flags = [f"--config.placebo.kind={kind}"] if kind else []
    whole, workdir = tmp_path / "whole", tmp_path / "run"
    assert run(whole, cache, *flags, arm=arm)[0] == 0
    assert run(workdir, cache, *flags, arm=arm, point="updated:5")[0] == -signal.SIGKILL
    status, output = run(workdir, cache, *flags, arm=arm)
    assert status == 0, output[-3000:]
    assert_same(content(whole), content(workdir))


def test_the_comparison_can_fail(undisturbed, tmp_path):
    """One bit of one moment, one line twice, one event twice."""
    whole = content(undisturbed)
    for name in ("metrics.jsonl", "eval.jsonl"):
        workdir = tmp_path / name
        shutil.copytree(undisturbed, workdir)
        text = (workdir / name).read_text()
        (workdir / name).write_text(text + text.splitlines(keepends=True)[-1])
        with pytest.raises(AssertionError, match=f"{name.removesuffix('.jsonl')} differs"):
            assert_same(whole, content(workdir))
    step, arrays, record = whole["states"][0]
    name = next(name for name in arrays if ".mu." in name)
    data = bytearray(arrays[name])
    data[5] ^= 1
    changed = {**whole, "states": [(step, {**arrays, name: bytes(data)}, record), *whole["states"][1:]]}
    with pytest.raises(AssertionError, match="states differs"):
        assert_same(whole, changed)
    doubled = {**whole, "tensorboard": [whole["tensorboard"][0], *whole["tensorboard"]]}
    with pytest.raises(AssertionError, match="tensorboard differs"):
        assert_same(whole, doubled)
    assert [line["step"] for line in lines(undisturbed / "metrics.jsonl")] == list(range(STEPS))
    assert len(whole["states"]) == 2 and any(np.any(np.frombuffer(v, np.uint8)) for v in arrays.values())


def test_sigterm_keeps_the_state_and_says_so(tmp_path, cache, undisturbed):
    """It comes while the steps run; status 143, one line, and nothing is lost but the step that was given up."""
    workdir = tmp_path / "run"
    process = start(workdir, cache, "--config.checkpoint.every_steps=0")
    deadline = time.monotonic() + 300
    while steps_done(workdir) < 1 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 143, output[-3000:]
    done = steps_done(workdir)
    last = output.splitlines()[-1]
    assert (
        last == f"interrupted by SIGTERM: the state of step {done} is kept; --workdir={workdir} continues from there"
    )
    assert "Traceback" not in output and not (workdir / "summary.json").exists()
    assert [path.name for path in (workdir / "resume").iterdir()] == [f"{done:06d}"]
    output = continued(workdir, cache)
    assert f"continuing from {workdir}/resume/{done:06d} with step {done}" in output
    whole, other = content(undisturbed), content(workdir)
    whole.pop("states"), other.pop("states")  # its first ones stand at other steps
    assert_same(whole, other)


def test_damage_falls_back_with_both_names_or_stops(tmp_path, cache, undisturbed):
    """A flipped byte, then a state cut short, then all of them: never from step 0 again."""
    workdir = tmp_path / "run"
    assert run(workdir, cache, "--config.checkpoint.keep=3", point="summary:1")[0] == -signal.SIGKILL
    states = sorted((workdir / "resume").iterdir())
    assert [path.name for path in states] == ["000002", "000004", "000006"]
    data = max((path for path in states[2].rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content_ = bytearray(data.read_bytes())
    content_[len(content_) // 3] ^= 16
    data.write_bytes(content_)
    (states[1] / "manifest.json").write_bytes((states[1] / "manifest.json").read_bytes()[:-100])
    kept = tmp_path / "kept"
    shutil.copytree(workdir, kept)
    output = continued(workdir, cache)
    warnings = [line for line in output.splitlines() if "is damaged" in line]
    assert len(warnings) == 2 and all(f"using {states[0]} instead" in line for line in warnings)
    assert any(f"{states[2]} is damaged" in line for line in warnings)
    assert_same(content(undisturbed), content(workdir))
    os.remove(kept / "resume" / "000002" / "manifest.json")
    before = sorted(path.name for path in kept.rglob("*"))
    status, output = run(kept, cache)
    assert status == 1 and "the run cannot continue" in output.splitlines()[-1]
    assert sorted(path.name for path in kept.rglob("*")) == before


def test_a_run_continues_only_as_itself(tmp_path, cache, undisturbed):
    """A finished one is left alone; other settings, changed or missing data, or a second process are one line."""
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    before = content(workdir)
    status, output = run(workdir, cache)
    assert status == 0 and f"{workdir} holds a finished run of {STEPS} steps" in output
    status, output = run(workdir, cache, "--config.optim.lr=1e-3")
    assert status == 1 and "optim.lr (started with 0.0003, now 0.001)" in output.splitlines()[-1]
    assert_same(before, content(workdir))
    problems, pool = tmp_path / "problems.jsonl", tmp_path / "pool.jsonl"
    data = interrupted.ROOT / "vgrout_jax" / "data"
    shutil.copy(data / "smoke_problems.jsonl", problems)
    shutil.copy(data / "smoke_teacher.jsonl", pool)
    flags = (f"--config.data.train={problems}", f"--config.teacher.pool={pool}")
    other = tmp_path / "other"
    assert run(other, cache, *flags, point="update:4")[0] == -signal.SIGKILL
    rows = pool.read_text().splitlines(keepends=True)
    pool.write_text("".join(rows[:-1]))
    status, output = run(other, cache, *flags)
    assert status == 1 and "a run over other data: world changed since it was started" in output.splitlines()[-1]
    pool.unlink()
    status, output = run(other, cache, *flags)
    assert status == 1 and str(pool) in output.splitlines()[-1]
    pool.write_text("".join(rows))
    process = start(other, cache, *flags)
    time.sleep(0.1)
    statuses = [run(other, cache, *flags), (process.wait(300), process.stdout.read())]
    process.stdout.close()
    assert sorted(status for status, _ in statuses) == [0, 1]
    [(_, refused)] = [outcome for outcome in statuses if outcome[0] == 1]
    assert f"workdir {other} is in use by process " in refused.splitlines()[-1]


def test_more_steps_continue_a_finished_run(tmp_path, cache, undisturbed):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    output = continued(workdir, cache, "--config.train.steps=8")
    assert "train.steps was 6 and is 8" in output and "learning rate" in output
    assert [line["step"] for line in lines(workdir / "metrics.jsonl")] == list(range(8))
    assert [line["step"] for line in lines(workdir / "eval.jsonl")] == [0, 0, 3, 3, 6, 6, 8, 8]
    old, new = (content(path) for path in (undisturbed, workdir))
    assert old["metrics"] == new["metrics"][:STEPS]
    assert json.loads((workdir / "summary.json").read_text())["steps"] == 8


def test_a_read_only_workdir_is_one_line(tmp_path, cache, undisturbed):
    """As an ordinary user, whom the mode bits of the folder bind."""
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    (workdir / "summary.json").unlink()
    for path in (workdir, *workdir.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and len(folder.parts) > 2:
            folder.chmod(folder.stat().st_mode | 0o055)
    command = (
        "import os, vgrout_jax.train\n"  # that user may not be able to read the interpreter's own files
        "from vgrout_jax import main\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "main.run()"
    )
    arguments = [f"--config={interrupted.ROOT}/configs/routeV.py:smoke", f"--workdir={workdir}", *interrupted.FLAGS]
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments],
        env=interrupted.environment(cache),
        cwd=interrupted.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == f"error: workdir {workdir} cannot be written (Permission denied); choose another"


def test_a_killed_trainer_leaves_no_folder_behind_for_long(tmp_path, cache):
    """Its grader's folders in the temporary folder go when the next one starts; those of the living stay."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    flags = ("--config.train.steps=1", "--config.eval.every_steps=0")
    environment = {**interrupted.environment(cache), "TMPDIR": str(temporary)}
    names = []
    for point in ("grading:3", "grading:3", ""):
        program = [f"{interrupted.ROOT}/tests/killed_at.py", point] if point else ["-m", "vgrout_jax.main"]
        arguments = [f"--config={interrupted.ROOT}/configs/none.py:smoke", f"--workdir={tmp_path / 'run'}", *flags]
        done = subprocess.run(
            [sys.executable, *program, *arguments], env=environment, cwd=tmp_path, capture_output=True
        )
        assert done.returncode == (-signal.SIGKILL if point else 0), done.stderr[-2000:]
        names.append({path.name for path in temporary.glob("vgrout-grader-*")})
    assert len(names[0]) >= 2 and len(names[1]) >= 2 and not names[0] & names[1] and not names[2]
