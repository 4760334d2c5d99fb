"""The decision run's queue: every arm over seeds, in order, past failures, from where it was stopped."""

import os
import re
import shutil
import signal
import subprocess
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
PYTHON = """#!/usr/bin/env bash
echo "$*" >>"$(dirname "$0")/reports"
[[ ! -e "$(dirname "$0")/fail" ]]
"""


@pytest.fixture
def tree(tmp_path):
    """A repository with the script alone, and stand-ins for what it starts."""
    for name, text in (("launch/run.sh", RUN), (".venv/bin/python", PYTHON)):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
        path.chmod(0o755)
    shutil.copy(ROOT / "launch" / "decide.sh", tmp_path / "launch")
    return tmp_path


def decide(tree, *arguments):
    command = ["bash", str(tree / "launch" / "decide.sh"), *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=120)


def calls(tree):
    path = tree / "launch" / "calls"
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
    assert (tree / ".venv" / "bin" / "reports").read_text() == "-m vgrout_jax.report out/runs --out=out/report\n"
    caches = {path.read_text().splitlines()[0] for path in (tree / "out" / "logs").iterdir()}
    assert caches == {f"cache {tree}/out/compilation-cache"}


def test_progress_is_shown_with_an_estimate(tree):
    lines = decide(tree, "--seeds=1", "--scale=smoke", "--first=5").stdout.splitlines()
    assert lines[0] == "[1/8] none-5: running" and re.fullmatch(r"\[1/8\] none-5: done in \d+ min \d\d s", lines[1])
    assert re.fullmatch(r"\[8/8\] placebo-lazy_pairs-5: running, about \d+ min \d\d s left", lines[-2])
    assert all("py:smoke" in line for line in calls(tree)) and (tree / "runs" / "decision-smoke" / "runs").is_dir()


def test_a_failed_run_is_named_and_stops_nothing(tree):
    for name in ("absorb-100", "placebo-labels-101"):
        (tree / "launch" / f"fail-{name}").touch()
    done = decide(tree, "--seeds=2", "--out=out")
    assert done.returncode == 1 and len(calls(tree)) == 16
    assert "[2/16] absorb-100: FAILED with status 1: error: absorb-100 is broken" in done.stderr
    assert "failed: absorb-100 placebo-labels-101;" in done.stderr
    assert (tree / ".venv" / "bin" / "reports").exists()
    (tree / "launch" / "fail-absorb-100").unlink()
    (tree / "launch" / "calls").unlink()
    again = decide(tree, "--seeds=2", "--out=out")
    assert again.returncode == 1 and names(tree) == ["absorb-100", "placebo-labels-101"]
    assert again.stdout.count("finished before") == 14


def test_a_failed_report_is_a_failure(tree):
    (tree / ".venv" / "bin" / "fail").touch()
    assert decide(tree, "--seeds=1", "--out=out").returncode == 1


@pytest.mark.parametrize("number,status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_reaches_the_run_and_ends_the_queue(tree, number, status):
    (tree / "launch" / "wait-routeV-100").touch()
    command = ["bash", str(tree / "launch" / "decide.sh"), "--seeds=1", "--out=out"]
    process = subprocess.Popen(
        command,
        cwd=tree,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A suite that is started in the background ignores Ctrl-C, and bash cannot trap what it was born ignoring.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until = time.monotonic() + 60
    while not (tree / "launch" / "waiting").exists():
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, number)
    try:
        _, error = process.communicate(timeout=25)
    finally:
        process.kill()
    assert process.returncode == status and "the same command goes on from here" in error
    assert (tree / "launch" / "told").exists() and not (tree / ".venv" / "bin" / "reports").exists()
    (tree / "launch" / "wait-routeV-100").unlink()
    (tree / "launch" / "calls").unlink()
    assert decide(tree, "--seeds=1", "--out=out").returncode == 0
    assert names(tree) == [f"{arm}-100" for arm in ARMS[2:]]  # the interrupted one in its own workdir again


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--seeds=0"], "error: --seeds must be a whole number >= 1, got 0"),
        (["--seeds", "many"], "error: --seeds must be a whole number >= 1, got many"),
        (["--first=-1"], "error: --first must be a whole number >= 0, got -1"),
        (["--out"], "error: --out needs a value"),
        (["--config.seed=1"], "error: unknown argument --config.seed=1; flags of the runs stand after --"),
    ],
)
def test_mistakes_are_one_line(tree, arguments, message):
    done = decide(tree, *arguments)
    [line] = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith(message) and calls(tree) == []


def test_help_is_the_script_s_own_head(tree):
    done = decide(tree, "--help")
    assert done.returncode == 0 and "--seeds COUNT    seeds an arm (8)" in done.stdout and "set -e" not in done.stdout
