"""What a run leaves in its workdir: layout, strict JSON, refusals."""

import gzip
import json
import os
import stat
import subprocess
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from vgrout_jax.common import files
from vgrout_jax.config import Config
from vgrout_jax.evaluation import rates
from vgrout_jax.run import continuation
from vgrout_jax.run.writer import METRIC_KEYS, RunWriter

ROLLOUT = {
    "prompt": "p",
    "completion": "caf\u00e9 \ud800 \u2028",  # a lone surrogate and a line separator, as a model may emit
    "reward": 0.5,
    "verdict": {"correct": False, "channel": None},
    "label": "clean",
    "score": float("nan"),
    "mode": "sentinel",
    "source": "own",
}


def config(**log):
    resolved = Config()
    for name, value in {"tensorboard": False, **log}.items():
        setattr(resolved.log, name, value)
    return resolved


def strict_lines(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def evaluation(step=20, policy="deployed"):
    samples = [
        rates.Sample("p0", "run_tests", hack=True, solve=False, compile=True, channel=True),
        rates.Sample("p1", "sentinel", hack=False, solve=True, compile=True, channel=False),
    ]
    return rates.Evaluation(step, "heldout", policy, rates.rate_table(samples))


def test_config_holds_every_field_sorted_and_the_provenance(tmp_path):
    resolved = config()
    resolved.optim.lr = 1e-4
    RunWriter(tmp_path / "run", resolved, provenance={"pairs": "ab12", "tokenizer": "cd34"}).close()
    text = (tmp_path / "run" / "config.json").read_text()
    written = json.loads(text)
    assert written.pop("provenance") == {"pairs": "ab12", "tokenizer": "cd34"}
    assert written == json.loads(json.dumps(resolved.to_dict()))
    assert written["optim"]["lr"] == 1e-4
    assert list(written) == sorted(written) and list(written["gate"]) == sorted(written["gate"])


def test_a_step_is_a_line_that_is_on_disk_before_the_next(tmp_path):
    with RunWriter(tmp_path, config()) as writer:
        for step in range(3):
            writer.write_step(step, {"reward/own": 0.1 * step})
            lines = strict_lines((tmp_path / "metrics.jsonl").read_text())  # while the writer is still open
            assert [line["step"] for line in lines] == list(range(step + 1))
    assert lines[2]["reward/own"] == pytest.approx(0.2)


def test_numbers_of_every_kind_become_strict_json(tmp_path):
    values = {
        "loss": jnp.float32(0.5),
        "kl": jnp.asarray(0.25, jnp.bfloat16),
        "grad_norm": np.float64(2.0),
        "groups/skipped": jnp.int32(3),
        "qmass": None,
        "gate/auroc": float("nan"),
        "score/q05": jnp.float32(-jnp.inf),
        "score/q95": np.float32("nan"),
    }
    with RunWriter(tmp_path, config()) as writer:
        writer.write_step(0, values)
    (line,) = strict_lines((tmp_path / "metrics.jsonl").read_text())
    assert line == {
        "step": 0,
        "loss": 0.5,
        "kl": 0.25,
        "grad_norm": 2.0,
        "groups/skipped": 3,
        "qmass": None,
        "gate/auroc": None,
        "score/q05": None,
        "score/q95": None,
    }


def test_a_metric_must_be_documented_and_a_number(tmp_path):
    with RunWriter(tmp_path, config()) as writer:
        with pytest.raises(ValueError, match="documented in metrics.METRIC_KEYS, got reward/all, x"):
            writer.write_step(0, {"x": 1.0, "reward/all": 1.0, "loss": 1.0})
        with pytest.raises(ValueError, match="must be numbers, got loss"):
            writer.write_step(0, {"loss": np.ones(2)})
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_what_has_no_json_form_is_refused():
    with pytest.raises(TypeError, match="type set has no JSON form"):
        files.dumps({"a": {1, 2}})


def test_an_evaluation_is_a_line_with_rates_intervals_and_modes(tmp_path):
    with RunWriter(tmp_path, config()) as writer:
        for policy in ("deployed", "as_trained"):
            writer.write_evaluation(evaluation(policy=policy))
        first, second = strict_lines((tmp_path / "eval.jsonl").read_text())
    assert (first["policy"], second["policy"]) == ("deployed", "as_trained")
    assert {"step", "split", "n", "hack", "solve", "compile", "channel"} <= set(first)
    assert (first["hack"], first["compile"]) == (0.5, 1.0)
    assert first["hack_interval"][0] < 0.5 < first["hack_interval"][1]
    assert first["modes"]["sentinel"]["solve"] == 1.0 and first["modes"]["run_tests"]["n"] == 1


def test_the_first_evaluation_is_the_deployed_policy_s_before_any_update(tmp_path):
    with RunWriter(tmp_path, config(tensorboard=False)) as writer:
        assert writer.first_evaluation() is None
        for step, policy in ((0, "as_trained"), (0, "deployed"), (20, "deployed")):
            writer.write_evaluation(evaluation(step, policy))
        assert writer.first_evaluation() == evaluation(0, "deployed")


def test_rollouts_round_trip_whatever_a_model_emits(tmp_path):
    with RunWriter(tmp_path, config()) as writer:
        path = writer.write_rollouts(7, [ROLLOUT, {**ROLLOUT, "score": 0.25, "problem_id": "a"}])
    assert path == tmp_path / "rollouts" / "step_000007.jsonl.gz"
    first, second = strict_lines(gzip.decompress(path.read_bytes()).decode("ascii"))
    assert first["completion"] == ROLLOUT["completion"]
    assert (first["score"], second["score"], second["problem_id"]) == (None, 0.25, "a")
    assert first["verdict"] == ROLLOUT["verdict"] and first["step"] == 7


def test_evaluation_completions_lie_beside_those_of_the_step(tmp_path):
    with RunWriter(tmp_path, config()) as writer:
        rollouts = writer.write_rollouts(7, [ROLLOUT])
        path = writer.write_evaluation_completions(7, [{"problem": "a", "completion": "x\n", "reward": 3.5}])
    (line,) = strict_lines(gzip.decompress(path.read_bytes()).decode("ascii"))
    assert line == {"problem": "a", "completion": "x\n", "reward": 3.5}
    assert sorted((tmp_path / "rollouts").iterdir()) == sorted([path, rollouts])


def test_a_rollout_without_a_field_is_refused(tmp_path):
    partial = {key: value for key, value in ROLLOUT.items() if key != "verdict"}
    with RunWriter(tmp_path, config()) as writer:
        with pytest.raises(ValueError, match=r"rollouts\[1\] of step 0 must have the fields verdict"):
            writer.write_rollouts(0, [ROLLOUT, partial])
        assert list((tmp_path / "rollouts").iterdir()) == []


def test_summary_appears_only_when_written(tmp_path):
    with RunWriter(tmp_path, config()) as writer:
        assert not (tmp_path / "summary.json").exists()
        writer.write_summary({"hack": float("nan"), "workdir": tmp_path})
        names = [path.name for path in writer.paths()]
    assert json.loads((tmp_path / "summary.json").read_text()) == {"hack": None, "workdir": str(tmp_path)}
    assert names == ["config.json", "eval.jsonl", "metrics.jsonl", "rollouts", "summary.json"]


def test_an_interrupted_write_leaves_the_old_file_and_no_remains(tmp_path, monkeypatch):
    files.write_json(tmp_path / "summary.json", {"a": 1})

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        files.write_json(tmp_path / "summary.json", {"a": 2})
    assert os.listdir(tmp_path) == ["summary.json"]
    assert json.loads((tmp_path / "summary.json").read_text()) == {"a": 1}


def test_a_workdir_that_holds_a_run_is_refused_and_left_alone(tmp_path):
    with RunWriter(tmp_path, config()) as writer:
        writer.write_step(0, {"loss": 1.0})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    other = config(tensorboard=True)
    other.seed = 5
    with pytest.raises(ValueError, match=r"already holds a run \(metrics.jsonl\); choose another or delete it"):
        RunWriter(tmp_path, other)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert not (tmp_path / "tensorboard").exists()


def test_a_workdir_with_other_files_is_accepted(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    RunWriter(tmp_path, config()).close()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_that_another_process_starts_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    """Between the first look and the creation of its files, the other run has written a line."""
    original = files.write_json

    def race(path, value):
        original(path, value)
        (tmp_path / "metrics.jsonl").write_text("theirs")

    monkeypatch.setattr(files, "write_json", race)
    with pytest.raises(ValueError, match=r"already holds a run \(metrics.jsonl\)"):
        RunWriter(tmp_path, config())
    assert (tmp_path / "metrics.jsonl").read_text() == "theirs"


def test_a_file_in_place_of_the_workdir_or_above_it_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "deeper" / "run"):
        with pytest.raises(ValueError, match="must be a folder, but .*/file is a file") as caught:
            RunWriter(workdir, config())
        assert "\n" not in str(caught.value)


def test_a_read_only_workdir_is_one_clear_line(tmp_path):
    """Run as an ordinary user, whom the mode bits of the folder bind."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    workdir.chmod(stat.S_IRUSR | stat.S_IXUSR | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)
    script = (
        "import os, sys\n"
        "from vgrout_jax.config import Config\n"
        "from vgrout_jax.run.writer import RunWriter\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "try: RunWriter(sys.argv[1], Config())\n"
        "except ValueError as error: print(error)\n"
    )
    for folder in [tmp_path, *tmp_path.parents]:  # the other user must be able to reach it
        if folder.stat().st_uid == os.geteuid() and len(folder.parts) > 2:
            folder.chmod(folder.stat().st_mode | 0o055)
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, str(workdir)], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout == f"workdir {workdir} cannot be written (Permission denied); choose another\n"


def read_events(folder):
    from tensorboardX import proto

    events = []
    for file in folder.iterdir():
        data = file.read_bytes()
        while data:  # records of a length, its checksum, the event, its checksum
            length = int.from_bytes(data[:8], "little")
            events.append(proto.event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[12 + length + 4 :]
    return [(event.step, v.tag, v.simple_value) for event in events for v in event.summary.value]


def test_tensorboard_gets_every_number_and_no_gaps(tmp_path):
    with RunWriter(tmp_path, config(tensorboard=True)) as writer:
        writer.write_step(4, {"reward/own": 1.5, "zone/mid": 0, "qmass": None, "gate/auroc": float("nan")})
        writer.write_evaluation(evaluation(step=5))
        writer.write_summary({})
    events = read_events(tmp_path / "tensorboard")
    assert events[:2] == [(4, "reward/own", 1.5), (4, "zone/mid", 0.0)]
    assert (5, "eval/heldout/deployed/hack", 0.5) in events
    assert (5, "eval/heldout/deployed/sentinel/solve", 1.0) in events
    assert len(events) == 2 + 4 * 3  # overall and two modes


def test_event_files_need_no_pytorch_and_leave_it_to_others(tmp_path):
    """Where it is installed, its import would take seconds of every start."""
    (tmp_path / "torch.py").write_text("print('imported')")
    script = (
        "import sys; from pathlib import Path; from vgrout_jax.run.tensorboard import EventFile\n"
        "file = EventFile(Path(sys.argv[1])); file.write(3, {'loss': 1.5}); file.close()\n"
        "print('written'); import torch"
    )
    folder, root = tmp_path / "events", Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)])}
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["written", "imported"]
    assert read_events(folder) == [(3, "loss", 1.5)]


def test_no_event_files_where_tensorboard_is_off(tmp_path):
    with RunWriter(tmp_path, config()) as writer:
        writer.write_step(0, {"loss": 1.0})
    assert not (tmp_path / "tensorboard").exists()


class FakeRun:
    def __init__(self):
        self.logged, self.numbers, self.summary, self.axes, self.finished = [], [], {}, [], False

    def define_metric(self, name, *, step_metric):
        self.axes.append((name, step_metric))

    def log(self, values, *, step):
        self.logged.append(values)
        self.numbers.append(step)

    def finish(self):
        self.finished = True


def test_wandb_gets_what_tensorboard_gets_when_asked_for(tmp_path, monkeypatch):
    run, started = FakeRun(), []
    fake = types.ModuleType("wandb")
    fake.init = lambda **options: started.append(options) or run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    RunWriter(tmp_path / "off", config()).close()
    assert started == []
    with RunWriter(tmp_path / "on", config(wandb=True, wandb_project="mine")) as writer:
        writer.write_step(2, {"loss": 1.0, "qmass": float("nan")})
        writer.write_evaluation(evaluation(step=2))
        writer.write_summary({"done": True})
    assert started[0]["project"] == "mine" and started[0]["config"]["optim"]["lr"] == Config().optim.lr
    assert run.logged[0] == {"loss": 1.0, "step": 2}
    assert run.logged[1]["eval/heldout/deployed/hack"] == 0.5 and run.logged[1]["step"] == 2
    assert run.axes == [("*", "step")] and run.summary == {"done": True} and run.finished
    assert run.numbers == [0, 1]


def test_a_continued_run_is_the_same_wandb_run_and_numbers_its_points_alike(tmp_path, monkeypatch):
    """W&B drops a point under a number that it has: the ones that were logged after the resume state."""
    run, started = FakeRun(), []
    fake = types.ModuleType("wandb")
    fake.init = lambda **options: started.append(options) or run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with RunWriter(tmp_path, config(wandb=True)) as writer:
        for step in range(4):
            writer.write_step(step, {"loss": 1.0})
            if step == 1:
                writer.write_evaluation(evaluation(step=1))
    continuation.cut_back(tmp_path, 2)
    with RunWriter(tmp_path, config(wandb=True), first_step=2) as writer:
        writer.write_step(2, {"loss": 1.0})
        writer.write_step(3, {"loss": 1.0})
    assert run.numbers == [0, 1, 2, 3, 4, 3, 4]
    assert started[0]["id"] == started[1]["id"] and started[1]["resume"] == "allow"


def test_points_are_on_disk_when_a_step_is_written(tmp_path):
    with RunWriter(tmp_path, config(tensorboard=True)) as writer:
        for step in range(3):
            writer.write_step(step, {"loss": 1.0, "kl": 2.0})
            assert len(read_events(tmp_path / "tensorboard")) == 2 * (step + 1)  # while the writer is still open


def test_a_full_disk_is_one_line_that_says_how_to_go_on(tmp_path, monkeypatch):
    with RunWriter(tmp_path, config()) as writer:
        writer.write_step(0, {"loss": 1.0})
        writer._lines["metrics.jsonl"].close()
        writer._lines["metrics.jsonl"] = open("/dev/full", "w")  # noqa: SIM115
        with pytest.raises(ValueError) as caught:
            writer.write_step(1, {"loss": 1.0})
        message = str(caught.value)
        assert message.startswith(f"workdir {tmp_path} cannot be written (No space left on device); ")
        assert "continues from its last resume state" in message and "\n" not in message
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_missing_wandb_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="log.wandb needs the package wandb: pip install wandb"):
        RunWriter(tmp_path / "run", config(wandb=True))
    assert not (tmp_path / "run").exists()


def test_metric_keys_are_flat_names_with_one_line_each():
    for key, text in METRIC_KEYS.items():
        assert key == key.lower() and " " not in key
        assert text and "\n" not in text
