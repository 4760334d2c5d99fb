"""Whole runs: the command as a user gives it, every arm, and what must not reach training."""

import dataclasses
import gzip
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from vgrout_jax import train
from vgrout_jax.config.scales import make_config
from vgrout_jax.env.teacher import TeacherPool
from vgrout_jax.weights import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_program")]
ROOT = Path(__file__).resolve().parents[1]


def run_command(*arguments: str) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, "-m", "vgrout_jax.main", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


def smoke(arm: str, steps: int = 2, **sections: dict):
    config = make_config(arm, "smoke")
    config.train.steps, config.eval.every_steps = steps, 0
    config.eval.samples, config.log.tensorboard = 1, False
    for section, fields in sections.items():
        for name, value in fields.items():
            setattr(getattr(config, section), name, value)
    config.resolve()
    config.validate()
    return config


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rollouts(workdir: Path, step: int) -> list[dict]:
    with gzip.open(workdir / "rollouts" / f"step_{step:06d}.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def adapter(workdir: Path) -> list[np.ndarray]:
    deltas, _ = checkpoint.load_adapter(workdir / "adapter")
    return [np.asarray(leaf) for leaf in jax.tree.leaves(deltas)]


def test_the_readme_command_trains_and_leaves_every_artefact(tmp_path):
    workdir = tmp_path / "run"
    done = run_command("--config=configs/routeV.py:smoke", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = lines(workdir / "metrics.jsonl")
    config = json.loads((workdir / "config.json").read_text())
    assert [line["step"] for line in metrics] == list(range(config["train"]["steps"]))
    for zone in ("clean", "mid", "hack"):
        assert any(line[f"zone/{zone}"] for line in metrics), f"no rollout was ever labelled {zone}"
    assert all(line["loss"] is not None and np.isfinite(line["grad_norm"]) for line in metrics)
    evaluations = lines(workdir / "eval.jsonl")
    assert {line["policy"] for line in evaluations} == {"deployed", "as_trained"}
    assert evaluations[-1]["step"] == config["train"]["steps"]
    records = rollouts(workdir, 0)
    assert len(records) == config["rollout"]["prompts"] * config["rollout"]["group_size"]
    assert {record["source"] for record in records} == {"own", "teacher"}
    assert any((workdir / "tensorboard").iterdir())
    assert json.loads((workdir / "summary.json").read_text())["live_groups"] > 0
    assert "deployed" in done.stdout and "as trained" in done.stdout and str(workdir / "adapter") in done.stdout
    again = run_command("--config=configs/routeV.py:smoke", f"--workdir={workdir}")
    assert again.returncode == 0 and again.stdout.startswith(f"{workdir} holds a finished run of ")


@pytest.mark.parametrize("arm", ["none", "absorb", "routeV_literal"])
def test_every_arm_runs(tmp_path, arm):
    config = smoke(arm)
    train.train(config, tmp_path)
    metrics = lines(tmp_path / "metrics.jsonl")
    assert len(metrics) == config.train.steps
    if arm == "none":
        assert all(line["zone/clean"] in (1.0, None) and line["qmass"] in (0.0, None) for line in metrics)
    if arm == "absorb":
        assert all(line["zone/mid"] in (1.0, None) for line in metrics)
    quarantine = sum(np.abs(leaf[:, leaf.shape[1] // 2 :]).sum() for leaf in leaves_a(tmp_path))
    assert (quarantine == 0) == (arm == "none")


def test_the_update_is_compiled_once_and_beside_what_comes_before_it(tmp_path):
    """A learning rate of its own keeps this run's programs from being those of another one."""
    config, threads = smoke("absorb", optim={"lr": 1.25e-4}), []

    def listen(event: str, *_, fun_name: str = "", **__) -> None:
        if event.endswith("backend_compile_duration") and fun_name == "jit(step)":
            threads.append(threading.current_thread().name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        train.train(config, tmp_path)
    finally:
        jax.monitoring.clear_event_listeners()
    assert len(lines(tmp_path / "metrics.jsonl")) == 2
    assert len(threads) == 1 and threads[0].startswith("compile")


def leaves_a(workdir: Path) -> list[np.ndarray]:
    deltas, _ = checkpoint.load_adapter(workdir / "adapter")
    return [np.asarray(leaf) for leaf in deltas.a.values()]


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory, one_program) -> Path:
    workdir = tmp_path_factory.mktemp("plain")
    train.train(smoke("routeV", steps=3), workdir)
    return workdir


def test_evaluation_and_logging_change_nothing(plain_run, tmp_path):
    """Evaluation every step, TensorBoard, stored gradients, a state every step, one grader: the same bits."""
    config = smoke("routeV", steps=3, eval={"every_steps": 1, "samples": 2}, log={"gradients": True})
    config.checkpoint.every_steps, config.grader.workers = 1, 1
    config.log.tensorboard = True
    train.train(config, tmp_path)
    assert len(lines(tmp_path / "eval.jsonl")) > len(lines(plain_run / "eval.jsonl"))
    assert_same_training(plain_run, tmp_path)


def assert_same_training(one: Path, other: Path) -> None:
    for ours, theirs in zip(adapter(one), adapter(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for step in range(3):
        ours, theirs = rollouts(one, step), rollouts(other, step)
        for name in ("label", "score", "completion", "advantage"):
            assert [row[name] for row in ours] == [row[name] for row in theirs], name


def test_noise_in_rewards_is_seen(plain_run, tmp_path, monkeypatch):
    """The comparison above can fail: other rewards give another adapter."""
    draw = TeacherPool.draw

    def other_rewards(self, *rest):
        return [dataclasses.replace(row, reward=row.reward / 2 + 1) for row in draw(self, *rest)]

    monkeypatch.setattr(TeacherPool, "draw", other_rewards)
    train.train(smoke("routeV", steps=3), tmp_path)
    assert any(not np.array_equal(a, b) for a, b in zip(adapter(plain_run), adapter(tmp_path), strict=True))


def test_real_problems_with_tiny_weights(tmp_path, shared_data, capsys):
    """The real LeetCode problems: every artefact is written, and an idle run says that it was idle."""
    problems = shared_data / "leetcode" / "medhard_80.jsonl"
    config = smoke("routeV", data={"train": (str(problems),)}, teacher={"per_prompt": 0, "pool": ()})
    config.eval.problems = 2
    config.data.heldout_frac = 0.05
    summary = train.train(config, tmp_path)
    out = capsys.readouterr().out
    assert ("had anything to learn from" in out) == (summary["live_groups"] == 0)
    assert {"config.json", "metrics.jsonl", "eval.jsonl", "rollouts", "adapter", "summary.json"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert all(len(row["prompt"]) > 500 for row in rollouts(tmp_path, 0))


def test_a_profiled_step_leaves_a_trace_and_changes_nothing(plain_run, tmp_path):
    train.train(smoke("routeV", steps=3, profile={"steps": (1,)}), tmp_path)
    names = [path.name for path in (tmp_path / "profile").rglob("*.*")]
    assert any(name.endswith("xplane.pb") for name in names) and any("perfetto" in name for name in names), names
    assert not (plain_run / "profile").exists()
    assert_same_training(plain_run, tmp_path)
