"""The decision run's queue: every arm over seeds, in order, past failures, from where it was stopped."""

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ARMS = ["none", "absorb", "routeV", "routeV_literal"]
ARMS += [f"placebo-{kind}" for kind in ("direction", "direction_matched", "labels", "lazy_pairs")]

# Stands in for launch/run.sh: notes its arguments, and fails, waits or finishes as the files beside it ask for.
RUN = """#!/usr/bin/env bash
here=$(cd "$(dirname "$0")" && pwd)
echo "$*" >>"$here/calls"
for argument in "$@"; do [[ $argument == --workdir=* ]] && workdir=${argument#*=}; done
mkdir -p "$workdir"
name=${workdir##*/}
echo "cache $JAX_COMPILATION_CACHE_DIR"
if [[ -e $here/fail-$name ]]; then echo "error: $name is broken"; exit 1; fi
if [[ -e $here/wait-$name ]]; then
    trap 'echo told >"$here/told"; exit 143' TERM
    touch "$here/waiting"
    for _ in {1..600}; do sleep 0.05; done
    exit 1
fi
echo '{}' >"$workdir/summary.json"
"""
REPORT = """#!/usr/bin/env bash
echo "$*" >>"$(dirname "$0")/reports"
[[ ! -e "$(dirname "$0")/fail" ]]
"""
# The command with stand-ins for the two programs that it starts.
COMMAND = """
from vgrout_jax import decide
from vgrout_jax.common.command_line import end_with_one_line

decide.RUN, decide.REPORT = ["./run"], ["./report"]
end_with_one_line(decide.main)
"""


@pytest.fixture
def tree(tmp_path):
    """A folder with stand-ins for a run and for the report."""
    for name, text in (("run", RUN), ("report", REPORT)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def decide(tree, *arguments):
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        cwd=tree,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )


def environment():
    found = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    return {**found, "PYTHONPATH": str(ROOT)}


def calls(tree):
    path = tree / "calls"
    return path.read_text().splitlines() if path.exists() else []


def names(tree):
    return [re.search(r"--workdir=\S*/(\S+)", line)[1] for line in calls(tree)]


def test_seeds_come_one_after_the_other_with_all_arms(tree):
    done = decide(tree, "--seeds", "2", "--out", "out", "--", "--config.train.steps=3", "--config.log.gradients=true")
    assert done.returncode == 0, done.stderr
    assert names(tree) == [f"{arm}-{seed}" for seed in (100, 101) for arm in ARMS]
    for line in calls(tree):
        arm, kind, seed = re.search(r"workdir=out/runs/([a-zA-Z_]+?)(?:-([a-z_]+))?-(\d+)", line).groups()
        assert f"/configs/{arm}.py:toy " in line and (f"--config.placebo.kind={kind}" in line) == (kind is not None)
        for field in ("seed", "adapter.seed", "eval.seed", "placebo.seed"):
            assert f"--config.{field}={seed} " in line
        assert line.endswith("--config.train.steps=3 --config.log.gradients=true")
    assert (tree / "reports").read_text() == "out/runs --out=out/report\n"
    caches = {path.read_text().splitlines()[0] for path in (tree / "out" / "logs").iterdir()}
    assert caches == {f"cache {tree}/out/compilation-cache"}


def test_progress_is_shown_with_an_estimate(tree):
    lines = decide(tree, "--seeds=1", "--scale=smoke", "--first=5").stdout.splitlines()
    assert lines[0] == "[1/8] none-5: running" and re.fullmatch(r"\[1/8\] none-5: done in \d+ min \d\d s", lines[1])
    assert re.fullmatch(r"\[8/8\] placebo-lazy_pairs-5: running, about \d+ min \d\d s left", lines[-2])
    assert all("py:smoke" in line for line in calls(tree)) and (tree / "runs" / "decision-smoke" / "runs").is_dir()


def test_a_failed_run_is_named_and_stops_nothing(tree):
    for name in ("absorb-100", "placebo-labels-101"):
        (tree / f"fail-{name}").touch()
    done = decide(tree, "--seeds=2", "--out=out")
    assert done.returncode == 1 and len(calls(tree)) == 16
    assert "[2/16] absorb-100: FAILED with status 1: error: absorb-100 is broken" in done.stderr
    assert "failed: absorb-100 placebo-labels-101;" in done.stderr
    assert (tree / "reports").exists()
    (tree / "fail-absorb-100").unlink()
    (tree / "calls").unlink()
    again = decide(tree, "--seeds=2", "--out=out")
    assert again.returncode == 1 and names(tree) == ["absorb-100", "placebo-labels-101"]
    assert again.stdout.count("finished before") == 14


def test_a_failed_report_is_a_failure(tree):
    (tree / "fail").touch()
    assert decide(tree, "--seeds=1", "--out=out").returncode == 1


@pytest.mark.parametrize("number,status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_reaches_the_run_and_ends_the_queue(tree, number, status):
    (tree / "wait-routeV-100").touch()
    command = [sys.executable, "-c", COMMAND, "--seeds=1", "--out=out"]
    process = subprocess.Popen(
        command,
        cwd=tree,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while not (tree / "waiting").exists():
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, number)
    try:
        _, error = process.communicate(timeout=25)
    finally:
        process.kill()
    assert process.returncode == status and "the same command goes on from here" in error
    assert (tree / "told").exists() and not (tree / "reports").exists()
    (tree / "wait-routeV-100").unlink()
    (tree / "calls").unlink()
    assert decide(tree, "--seeds=1", "--out=out").returncode == 0
    assert names(tree) == [f"{arm}-100" for arm in ARMS[2:]]  # the interrupted one in its own workdir again


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--seeds=0"], "error: argument --seeds: must be a whole number >= 1, got 0"),
        (["--seeds", "many"], "error: argument --seeds: must be a whole number >= 1, got many"),
        (["--first=-1"], "error: argument --first: must be a whole number >= 0, got -1"),
        (["--scale=large"], "error: argument --scale: invalid choice: 'large'"),
        (["--out"], "error: argument --out: expected one argument"),
        (["--config.seed=1"], "error: unknown argument --config.seed=1; flags of the runs stand after --"),
    ],
)
def test_mistakes_are_one_line(tree, arguments, message):
    done = decide(tree, *arguments)
    [line] = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith(message) and calls(tree) == []


def test_two_queues_do_not_share_a_folder(tree):
    (tree / "out").mkdir()
    with open(tree / "out" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = decide(tree, "--seeds=1", "--out=out")
    assert done.returncode == 1 and done.stderr == "error: --out=out is in use by another decision run\n"


def test_help_shows_every_flag(tree):
    done = decide(tree, "--help")
    assert (
        done.returncode == 0 and "seeds an arm (8)" in done.stdout and "-- --config.log.gradients=true" in done.stdout
    )


def test_the_script_sets_up_and_hands_its_flags_on():
    script = (ROOT / "launch" / "decide.sh").read_text()
    assert '"$root/launch/setup.sh"' in script and 'python" -m vgrout_jax.decide "$@"' in script
