"""A workdir is read as it was written, whether its run finished, is running or was killed."""

import gzip
import json

import pytest

from tests.analysis import made_up
from vgrout_jax.run.reader import config_from_settings, flatten, read_workdir


def test_everything_that_was_written_comes_back(tmp_path):
    path = made_up.write_run(tmp_path, "placebo labels", seed=3, changes={"gate.low": -0.25})
    run = read_workdir(path)
    assert run.config == made_up.config("placebo labels", 3, {"gate.low": -0.25})
    assert run.finished and run.steps_done == made_up.STEPS and list(run.metrics) == list(range(made_up.STEPS))
    assert run.metrics[2]["qmass"] == pytest.approx(0.2)
    assert [(item.step, item.policy) for item in run.evaluations] == [
        (step, policy) for step in (0, made_up.STEPS) for policy in ("deployed", "as_trained")
    ]
    written = [json.loads(line) for line in (path / "eval.jsonl").read_text().splitlines()]
    assert [item.to_record() for item in run.evaluations] == written
    deployed = made_up.SUCCESS["placebo labels"].deployed
    assert run.final_evaluation("deployed").table.overall.hack.value == pytest.approx(deployed[0], abs=0.05)
    rollouts = run.training_rollouts(1)
    assert [row.exploited for row in rollouts] == [True] * 4 + [False] * 4
    assert rollouts[7].correct and rollouts[0].prompt.startswith("prompt 0 <b>") and rollouts[0].step == 1
    completions = run.evaluation_completions(made_up.STEPS)
    assert len(completions) == 2 * made_up.PROBLEMS * made_up.SAMPLES
    hacks = [item.exploited for item in completions if item.policy == "deployed"]
    assert sum(hacks) / len(hacks) == run.final_evaluation("deployed").table.overall.hack.value


def test_each_reading_of_the_configuration_is_a_new_one(tmp_path):
    run = read_workdir(made_up.write_run(tmp_path, "none"))
    run.config.gate.low = 7.0
    assert run.config.gate.low != 7.0


def test_a_running_or_killed_run_is_read_up_to_its_last_whole_line(tmp_path):
    path = made_up.write_run(tmp_path, "routeV", finished=False)
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "qma')
    run = read_workdir(path)
    assert not run.finished and run.steps_done == made_up.STEPS - 1
    assert run.final_evaluation("deployed") is None and run.evaluation(0, "deployed") is not None


def test_a_run_that_is_continued_beyond_its_end_has_not_finished(tmp_path):
    path = made_up.write_run(tmp_path, "routeV")
    settings = json.loads((path / "config.json").read_text())
    settings["train"]["steps"] += 4
    (path / "config.json").write_text(json.dumps(settings))
    assert not read_workdir(path).finished


def test_a_step_that_was_written_twice_counts_as_it_was_written_last(tmp_path):
    path = made_up.write_run(tmp_path, "routeV")
    lines = (path / "metrics.jsonl").read_text().splitlines()
    (path / "metrics.jsonl").write_text("\n".join([*lines, json.dumps({"step": 1, "qmass": 0.75})]) + "\n")
    run = read_workdir(path)
    assert run.metrics[1]["qmass"] == 0.75 and list(run.metrics) == [0, 1, 2, 3]


def test_a_run_that_has_written_nothing_yet_is_a_run(tmp_path):
    path = made_up.write_run(tmp_path, "none")
    for name in ("metrics.jsonl", "eval.jsonl", "summary.json"):
        (path / name).unlink()
    run = read_workdir(path)
    assert run.steps_done == 0 and run.evaluations == () and not run.finished


@pytest.mark.parametrize("name", ["config.json", "summary.json", "metrics.jsonl", "eval.jsonl"])
def test_a_damaged_file_is_named(tmp_path, name):
    path = made_up.write_run(tmp_path, "none")
    (path / name).write_text("{not json\n")
    with pytest.raises(ValueError, match=rf"{name}.* is damaged"):
        read_workdir(path)


def test_damaged_and_missing_completions_are_named(tmp_path):
    run = read_workdir(made_up.write_run(tmp_path, "none"))
    file = run.path / "rollouts" / "step_000001.jsonl.gz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match="step_000001.jsonl.gz is damaged"):
        run.training_rollouts(1)
    file.write_bytes(gzip.compress(b"{\n"))
    with pytest.raises(ValueError, match="step_000001.jsonl.gz is damaged"):
        run.training_rollouts(1)
    with pytest.raises(ValueError, match="step_000009.jsonl.gz is missing"):
        run.training_rollouts(9)
    assert run.rollout_steps() == [0, 1, 2, 3] and run.completion_steps() == [0, made_up.STEPS]


def test_what_is_no_workdir_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(ValueError, match="must be the workdir of a run, but config.json is not in it"):
            read_workdir(path)


def test_a_configuration_of_another_version_is_refused_by_the_field_s_name():
    settings = flatten(made_up.config("none", 0).to_dict())
    assert config_from_settings(settings, "x") == made_up.config("none", 0)
    with pytest.raises(ValueError, match=r"^x has the unknown field gate\.colour"):
        config_from_settings({**settings, "gate.colour": 1}, "x")
    settings.pop("gate.low")
    with pytest.raises(ValueError, match=r"^x lacks the field gate\.low"):
        config_from_settings(settings, "x")
