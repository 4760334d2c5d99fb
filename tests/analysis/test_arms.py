"""Runs are sorted into arms, and only what differs by its seed is a replicate."""

import numpy as np
import pytest

from tests.analysis import made_up
from vgrout_jax.analysis import arms
from vgrout_jax.run.reader import read_workdir


def read(*paths):
    return arms.group_arms([read_workdir(path) for path in paths])


def test_runs_are_grouped_by_arm_and_placebos_by_kind(tmp_path):
    found = read(*reversed(made_up.write_all(tmp_path, seeds=2)))
    assert [arm.name for arm in found] == [
        "none",
        "absorb",
        "routeV",
        "routeV_literal",
        "placebo direction",
        "placebo direction_matched",
        "placebo labels",
        "placebo lazy_pairs",
    ]
    assert all(list(arm.runs) == [(0, 0, 0, 0), (1, 1, 1, 1)] for arm in found)
    assert [arm.name for arm in found if not arm.routed] == ["none", "absorb"]


def test_runs_with_other_settings_are_no_replicates(tmp_path):
    paths = [made_up.write_run(tmp_path, "routeV", seed=seed) for seed in range(2)]
    paths.append(made_up.write_run(tmp_path, "routeV", seed=2, changes={"gate.low": -0.5, "optim.lr": 1e-4}))
    usual, other = read(*paths)
    assert (usual.name, other.name) == ("routeV", "routeV [optim.lr=0.0001, gate.low=-0.5]") or (
        usual.name,
        other.name,
    ) == ("routeV", "routeV [gate.low=-0.5, optim.lr=0.0001]")
    assert len(usual.runs) == 2 and len(other.runs) == 1
    assert arms.differing_settings([usual, other]) == {"gate.low": [-1.0, -0.5], "optim.lr": [3e-4, 1e-4]}


def test_what_has_no_part_in_the_result_does_not_tell_runs_apart(tmp_path):
    changes = {"log.gradients": True, "grader.workers": 3, "checkpoint.keep": 1, "train.micro_batch": 4}
    [arm] = read(made_up.write_run(tmp_path, "none"), made_up.write_run(tmp_path, "none", seed=1, changes=changes))
    assert len(arm.runs) == 2


def test_the_same_run_twice_is_refused(tmp_path):
    first = made_up.write_run(tmp_path / "a", "none")
    second = made_up.write_run(tmp_path / "b", "none")
    with pytest.raises(ValueError, match="are one arm with the same settings and seeds"):
        read(first, second)
    with pytest.raises(ValueError, match="at least one run"):
        arms.group_arms([])


def test_random_directions_of_one_seed_are_no_replicates_of_the_run(tmp_path):
    first = made_up.write_run(tmp_path / "a", "placebo direction", seed=1)
    second = made_up.write_run(tmp_path / "b", "placebo direction", seed=1, changes={"placebo.seed": 2})
    with pytest.raises(ValueError, match=r"differ in placebo\.seed alone"):
        read(first, second)


def test_arms_are_compared_over_the_seeds_that_both_have_finished(tmp_path):
    paths = [made_up.write_run(tmp_path, "none", seed=seed) for seed in range(3)]
    paths += [made_up.write_run(tmp_path, "routeV", seed=seed, finished=seed != 1) for seed in range(4)]
    none, routed = read(*paths)
    found = arms.compare(none, routed, "hack")
    assert found.estimate.seeds == 2 and sorted(routed.finished) == [(s, s, s, s) for s in (0, 2, 3)]
    hacks = {arm.name: arms.seed_values(arm, "hack", "deployed") for arm in (none, routed)}
    by_hand = [hacks["none"][(s,) * 4].value - hacks["routeV"][(s,) * 4].value for s in (0, 2)]
    assert found.estimate.value == pytest.approx(np.mean(by_hand))


def test_rates_by_mode_and_step(tmp_path):
    [arm] = read(made_up.write_run(tmp_path, "none"))
    assert arms.modes_of([arm]) == sorted(made_up.MODES)
    [base] = arms.seed_values(arm, "solve", "deployed", step=0).values()
    [final] = arms.seed_values(arm, "solve", "deployed", mode="sentinel").values()
    assert base.value == pytest.approx(made_up.BASE[1], abs=0.05) and final.value == pytest.approx(0.03, abs=0.05)
    assert arms.seed_values(arm, "solve", "deployed", mode="exit_code") == {}
    assert arms.estimate({}) is None


def test_seed_labels():
    assert arms.seed_label((3, 3, 3, 3)) == "3" and arms.seed_label((3, 0, 0, 0)) == "3"
    assert arms.seed_label((3, 1, 3, 0)) == "3 (adapter 1)"
