"""The workdir of an interrupted run: who may enter, what is refused, and cutting it back to a step."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import interrupted
from tests.config.test_schema import assign
from tests.test_main import FIELDS, another_value
from vgrout_jax.common import files
from vgrout_jax.config import Config
from vgrout_jax.config.scales import make_config
from vgrout_jax.config.validation import read
from vgrout_jax.run import continuation
from vgrout_jax.run.writer import RunWriter


def used(workdir: Path, *, steps: int = 5, config: Config | None = None, states: tuple[int, ...] = ()) -> Config:
    """A workdir with `steps` steps in its files, evaluations at the even ones, and empty states."""
    config = config or make_config("none", "smoke")
    with RunWriter(workdir, config, provenance={"pairs_sha256": "ab"}) as writer:
        for step in range(steps):
            writer.write_step(step, {"loss": float(step)})
            row = dict.fromkeys(("prompt", "completion", "reward", "verdict", "label", "score", "mode", "source"))
            writer.write_rollouts(step, [row])
            if step % 2 == 0:
                writer._append("eval.jsonl", {"step": step, "policy": "deployed"})
                writer.write_evaluation_completions(step, [row])
    for step in states:
        (workdir / "resume" / f"{step:06d}").mkdir(parents=True)
    return config


def test_a_second_process_is_refused_and_a_dead_one_is_not(tmp_path):
    workdir = tmp_path / "run"
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path; from vgrout_jax.run import continuation\n"
        "with continuation.claim(Path(sys.argv[1])):\n"
        "    (Path(sys.argv[1]) / 'config.json').write_text('{}'); print('held', flush=True); time.sleep(600)\n"
    )
    command = [sys.executable, "-c", script, str(workdir), str(interrupted.ROOT)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        match = f"workdir .*run is in use by process {other.pid} on "
        with pytest.raises(ValueError, match=match) as caught, continuation.claim(workdir):
            pass
        assert "\n" not in str(caught.value)
    finally:
        other.kill()
        other.communicate()
    with continuation.claim(workdir):
        pass
    assert (workdir / "config.json").exists()


def test_a_lock_is_not_inherited_by_the_grader_s_workers(tmp_path):
    """Else a worker that outlives a killed trainer would keep its workdir locked."""
    with continuation.claim(tmp_path / "run"):
        done = subprocess.run(["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, check=True)
    assert ".lock" not in done.stdout


def test_a_folder_in_which_nothing_was_written_is_removed(tmp_path):
    for deep in (tmp_path / "new", tmp_path / "kept"):
        if deep.name == "kept":
            deep.mkdir()
        with continuation.claim(deep):
            assert deep.is_dir()
        assert deep.exists() == (deep.name == "kept")


def test_workdirs_that_cannot_be_used_are_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="must be a folder, but .*file is a file"), continuation.claim(path):
            pass


def test_a_workdir_is_looked_at(tmp_path):
    assert continuation.look(tmp_path) == continuation.Found(tmp_path, False, (), 0, None, {}, None)
    used(tmp_path, steps=3, states=(2,))
    found = continuation.look(tmp_path)
    assert (found.started, found.states, found.lines, found.finished) == (True, (2,), 3, None)
    assert found.provenance == {"pairs_sha256": "ab"} and found.config["arm"] == "none"
    files.write_json(tmp_path / "summary.json", {"steps": 3})
    assert continuation.look(tmp_path).finished == 3
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json cannot be read"):
        continuation.look(tmp_path)


MAY_CHANGE = {
    "train.steps": 9,
    "eval.every_steps": 1,
    "grader.workers": 1,
    "checkpoint.every_steps": 1,
    "checkpoint.keep": 9,
    "log.tensorboard": False,
    "log.gradients": True,
    "log.wandb_project": "other",
}


def test_every_field_that_differs_is_named_and_refused_but_those_that_may(tmp_path):
    before = make_config("routeV", "smoke")
    plain = files.to_plain(before.to_dict())
    continuation.check_config(tmp_path, plain, before)
    for name, kind in FIELDS:
        if name.startswith(continuation.MAY_CHANGE):
            continue
        now = assign(make_config("routeV", "smoke"), **{name: another_value(kind, read(before, name))[1]})
        with pytest.raises(ValueError, match=rf"another configuration: {name} \(started with .*, now ") as caught:
            continuation.check_config(tmp_path, plain, now)
        assert "\n" not in str(caught.value)
    for name, value in MAY_CHANGE.items():
        continuation.check_config(tmp_path, plain, assign(make_config("routeV", "smoke"), **{name: value}))
    two = assign(make_config("routeV", "smoke"), **{"optim.lr": 1.0, "seed": 5})
    with pytest.raises(ValueError, match=r"optim.lr .* 1.0\), seed .*0, now 5\)"):
        continuation.check_config(tmp_path, plain, two)


def test_other_data_is_refused_by_name(tmp_path):
    then = {"pairs_sha256": "a", "tokenizer_sha256": "b", "world_sha256": "c"}
    continuation.check_provenance(tmp_path, then, then)
    with pytest.raises(ValueError, match="over other data: tokenizer, world changed since it was started"):
        continuation.check_provenance(tmp_path, then, {**then, "tokenizer_sha256": "x", "world_sha256": "y"})


def test_steps_without_a_state_are_not_thrown_away(tmp_path):
    """Smoke's states are two steps apart: four steps may be lost to a kill, five mean that a state has gone."""
    for steps, refused in ((4, False), (5, True)):
        workdir = tmp_path / str(steps)
        config = used(workdir, steps=steps)
        assert config.checkpoint.every_steps == 2
        if refused:
            with pytest.raises(ValueError, match="holds 5 steps of a run but no resume state"):
                continuation.check_continuable(continuation.look(workdir), config)
        else:
            continuation.check_continuable(continuation.look(workdir), config)


def test_fewer_steps_than_are_done_are_refused(tmp_path):
    config = used(tmp_path, steps=6, states=(2, 6))
    config.train.steps = 5
    with pytest.raises(ValueError, match="train.steps must be >= 6, which the run in .* has done, got 5"):
        continuation.check_continuable(continuation.look(tmp_path), config)


def test_cutting_back_leaves_each_step_once(tmp_path):
    config = make_config("none", "smoke")
    config.log.tensorboard = True
    used(tmp_path, steps=6, config=config, states=(2, 4, 6))
    (tmp_path / "gradients").mkdir()
    for name in ("step_000002.npz", "step_000003.npz", "direction_000003.npz"):
        (tmp_path / "gradients" / name).write_text("")
    for name in ("rollouts/.step_000003.jsonl.gz.77.tmp", ".metrics.jsonl.77.tmp", "notes.txt", ".mine"):
        (tmp_path / name).write_text("")
    (tmp_path / ".adapter.77.tmp" / "factors").mkdir(parents=True)
    files.write_json(tmp_path / "summary.json", {"steps": 6})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')
    for _ in range(2):  # the second time nothing is left to do
        continuation.cut_back(tmp_path, 3)
        metrics = (tmp_path / "metrics.jsonl").read_text()
        assert [json.loads(line)["step"] for line in metrics.splitlines()] == [0, 1, 2] and metrics.endswith("\n")
        assert [line["step"] for line in interrupted.lines(tmp_path / "eval.jsonl")] == [0, 2]
        names = sorted(path.name.split(".")[0] for path in (tmp_path / "rollouts").iterdir())
        kept = ["eval_000000", "eval_000002", "step_000000", "step_000001", "step_000002"]
        assert [name for name in names if not name.startswith("graded")] == kept
        assert [name for name in names if name.startswith("graded")] == [f"graded_{step:06d}" for step in (3, 4, 5)]
        assert os.listdir(tmp_path / "gradients") == ["step_000002.npz"]
        assert continuation.state_steps(tmp_path / "resume") == [2]
        found = {path.name for path in tmp_path.iterdir()} - {"config.json", "metrics.jsonl", "eval.jsonl"}
        assert found == {"notes.txt", ".mine", "rollouts", "gradients", "resume", "tensorboard"}
        events = interrupted.points(tmp_path / "tensorboard")
        assert [(step, tag) for step, tag, _ in events] == [(0, "loss"), (1, "loss"), (2, "loss")]
    with RunWriter(tmp_path, config, first_step=3) as writer:
        writer.write_step(3, {"loss": 3.5})
    assert interrupted.points(tmp_path / "tensorboard")[-1] == (3, "loss", 3.5)
    assert len(interrupted.points(tmp_path / "tensorboard")) == 4
    assert [line["step"] for line in interrupted.lines(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]


def test_an_event_that_a_kill_cut_short_is_dropped(tmp_path):
    config = make_config("none", "smoke")
    config.log.tensorboard = True
    used(tmp_path, steps=3, config=config)
    [events] = (tmp_path / "tensorboard").iterdir()
    events.write_bytes(events.read_bytes()[:-5])
    continuation.cut_back(tmp_path, 9)
    assert [step for step, _, _ in interrupted.points(tmp_path / "tensorboard")] == [0, 1]
