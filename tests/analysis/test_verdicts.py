"""A claim holds, fails or was not tested; nothing that is missing ever holds."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from tests.analysis import made_up
from vgrout_jax.analysis import claims, verdicts
from vgrout_jax.analysis.arms import group_arms
from vgrout_jax.analysis.claims import CLAIMS
from vgrout_jax.analysis.verdicts import FAILS, HOLDS, NOT_TESTED
from vgrout_jax.config import Config
from vgrout_jax.run.reader import read_workdir

PAGE = Path(__file__).resolve().parents[2] / "docs" / "preregistration.md"


def judge(paths):
    return {o.claim.key: o for o in verdicts.judge(group_arms([read_workdir(path) for path in paths]))}


@pytest.fixture(scope="module")
def success(tmp_path_factory):
    return made_up.write_all(tmp_path_factory.mktemp("runs"), seeds=8)


def test_a_success_holds_in_every_claim(success):
    found = judge(success)
    assert {outcome.verdict for outcome in found.values()} == {HOLDS}
    assert verdicts.primary_verdict(list(found.values())) == HOLDS
    assert all(outcome.estimate.seeds == 8 for outcome in found.values())


def test_a_clear_difference_over_eight_seeds_survives_all_comparisons(success):
    compared = [outcome for outcome in judge(success).values() if outcome.claim.compares_arms]
    assert len(compared) == 7 and all(outcome.p_value == 1 / 2**8 for outcome in compared)
    assert all(outcome.adjusted == pytest.approx(7 / 2**8) for outcome in compared)


# One change of the success, and what must fail because of it; nothing else may.
BROKEN = {
    "exploit-emerges": ("none", made_up.Rates((0.72, 0.1, 1.0), (0.72, 0.1, 1.0)), set()),
    "routing-removes-it": ("routeV", made_up.Rates((0.1, 0.6, 1.0), (0.9, 0.05, 1.0)), set()),
    "work-is-learnt": ("routeV", made_up.Rates((0.0, 0.2, 1.0), (0.9, 0.05, 1.0)), {"more-work-than-labels"}),
    "no-collapse": ("routeV", made_up.Rates((0.0, 0.6, 0.8), (0.9, 0.05, 1.0)), set()),
    "beats-permuted-labels": ("placebo labels", made_up.Rates((0.1, 0.4, 1.0), (0.9, 0.05, 1.0)), set()),
    "beats-random-direction": ("placebo direction", made_up.Rates((0.1, 0.4, 1.0), (0.9, 0.05, 1.0)), set()),
    "absorption-alone-leaks": ("absorb", made_up.Rates((0.3, 0.4, 1.0), (0.9, 0.05, 1.0)), set()),
    "exploit-is-in-quarantine": ("routeV", made_up.Rates((0.0, 0.65, 1.0), (0.3, 0.5, 1.0)), set()),
    "more-work-than-none": ("none", made_up.Rates((0.9, 0.1, 1.0), (0.9, 0.1, 1.0)), None),
}


@pytest.mark.parametrize("key", BROKEN)
def test_what_is_broken_fails_and_nothing_else(tmp_path, key):
    arm, rates, others = BROKEN[key]
    if others is None:  # needs a routeV that solves little as well
        return_rates = made_up.Rates((0.0, 0.15, 1.0), (0.9, 0.05, 1.0))
        paths = made_up.write_all(tmp_path, seeds=0)
        changed = {"none": rates, "routeV": return_rates}
        others = {"work-is-learnt", "more-work-than-labels"}
    else:
        paths, changed = [], {arm: rates}
    paths += [
        made_up.write_run(tmp_path, name, changed.get(name), seed=seed)
        for name in made_up.SUCCESS
        for seed in range(3)
    ]
    found = judge(paths)
    assert {name for name, outcome in found.items() if outcome.verdict != HOLDS} == {key, *others}
    assert all(found[name].verdict == FAILS for name in (key, *others))
    expected = FAILS if any(found[name].claim.primary for name in (key, *others)) else HOLDS
    assert verdicts.primary_verdict(list(found.values())) == expected


def test_one_mode_without_its_exploit_fails_the_claim_about_each(tmp_path, monkeypatch):
    evaluate = made_up.rate_table

    def without(samples):
        honest = [dataclasses.replace(s, hack=False) if s.mode == "sentinel" else s for s in samples]
        return evaluate(honest)

    monkeypatch.setattr(made_up, "rate_table", without)
    found = judge([made_up.write_run(tmp_path, "none", seed=seed) for seed in range(3)])
    outcome = found["every-exploit-emerges"]
    assert (outcome.verdict, outcome.mode, outcome.estimate.value) == (FAILS, "sentinel", 0.0)


@pytest.mark.parametrize("missing", made_up.SUCCESS)
def test_claims_about_a_missing_arm_are_not_tested(success, missing):
    prefix = missing.replace(" ", "-")
    found = judge([path for path in success if not re.fullmatch(rf"{prefix}-\d", path.name)])
    about = {claim.key for claim in CLAIMS if missing in (claim.arm, claim.minus)}
    assert about and {key for key, outcome in found.items() if outcome.verdict == NOT_TESTED} == about
    assert all(missing in found[key].remark and found[key].estimate is None for key in about)


def test_an_arm_without_an_end_is_not_tested_and_a_missing_seed_is_named(tmp_path):
    paths = [made_up.write_run(tmp_path, "routeV", seed=seed, finished=False) for seed in range(2)]
    paths += [made_up.write_run(tmp_path, "none", seed=seed, finished=seed != 1) for seed in range(3)]
    found = judge(paths)
    assert found["routing-removes-it"].verdict == NOT_TESTED
    assert found["exploit-emerges"].verdict == HOLDS and found["exploit-emerges"].estimate.seeds == 2
    assert found["exploit-emerges"].remark == "left out as unfinished: none, seeds 1"


def test_arms_without_a_common_seed_are_not_compared(tmp_path):
    found = judge([made_up.write_run(tmp_path, "none", seed=0), made_up.write_run(tmp_path, "routeV", seed=1)])
    assert found["more-work-than-none"].verdict == NOT_TESTED
    assert found["more-work-than-none"].remark == "routeV and none share no finished seed"


def test_one_seed_has_no_interval_across_seeds(tmp_path):
    found = judge([made_up.write_run(tmp_path, name) for name in made_up.SUCCESS])
    assert all(o.estimate.over in ("problems", "nothing") and o.p_value is None for o in found.values())
    final = read_workdir(tmp_path / "none-0").final_evaluation("deployed").table.overall.hack
    shown = found["exploit-emerges"].estimate
    assert (shown.value, shown.low, shown.high) == (final.value, final.low, final.high)


def test_thresholds_themselves():
    for claim in CLAIMS:
        below, above = claim.met_by(claim.threshold - 1e-6), claim.met_by(claim.threshold + 1e-6)
        assert (below, above) == ((True, False) if claim.relation == "at most" else (False, True))
        assert claim.met_by(claim.threshold) == (claim.relation != "above")
        assert claim.relation in claims.RELATIONS
    assert len({claim.key for claim in CLAIMS}) == len(CLAIMS)


def test_runs_that_are_another_experiment_are_told_apart(tmp_path, success):
    smoke = verdicts.deviations(group_arms([read_workdir(path) for path in success]))
    assert smoke == ["the scale is smoke, not toy"]
    usual = [made_up.write_run(tmp_path, "none", seed=seed, scale="toy") for seed in range(3)]
    assert verdicts.deviations(group_arms([read_workdir(path) for path in usual])) == []
    few = verdicts.deviations(group_arms([read_workdir(path) for path in usual[:2]]))
    assert few == ["fewer than 3 finished seeds: none (2)"]
    other = made_up.write_run(tmp_path, "routeV", scale="toy", changes={"gate.high": 0.7})
    found = verdicts.deviations(group_arms([read_workdir(path) for path in (*usual, other)]))
    assert f"in routeV, gate.high is 0.7, not {Config().gate.high}" in found


@pytest.mark.parametrize(
    "deployed,fallen",
    [
        ((0.0, 0.6, 1.0), None),
        ((0.0, 0.1, 1.0), "solve"),
        ((0.0, 0.6, 0.7), "compile"),
        ((0.5, 0.1, 0.7), None),  # it hacks more than before: no sign of collapse
    ],
)
def test_collapse_is_a_fallen_rate_beside_few_exploits(tmp_path, deployed, fallen):
    path = made_up.write_run(tmp_path, "routeV", made_up.Rates(deployed, deployed))
    [arm] = group_arms([read_workdir(path)])
    assert verdicts.collapsed(arm) == fallen


def stated() -> dict[str, tuple[str, str, str, str]]:
    """Rows of the page's tables: key -> (about, required), in order, with whether it is a bar."""
    rows = {}
    for part, primary in zip(PAGE.read_text().split("## Secondary claims"), ("bar", "secondary"), strict=True):
        for line in part.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if re.fullmatch(r"`[a-z-]+`", cells[0]) and len(cells) == 4:
                rows[cells[0].strip("`")] = (primary, cells[1], cells[2], cells[3])
    return rows


def test_the_page_states_what_the_code_tests():
    from vgrout_jax.analysis import wording

    expected = {
        claim.key: (
            "bar" if claim.primary else "secondary",
            wording.quantity(claim),
            wording.required(claim),
            claim.meaning,
        )
        for claim in CLAIMS
    }
    assert stated() == expected and list(stated()) == list(expected)
    text = " ".join(PAGE.read_text().split())
    assert f"At least {claims.LEAST_SEEDS} seeds" in text and f"scale `{claims.SCALE}`" in text
    assert f"by more than {100 * claims.COLLAPSE_MARGIN:g} points" in text


def test_the_gate_s_auroc_is_the_mean_over_steps(success):
    run = read_workdir(success[2])
    values = [record["gate/auroc"] for record in run.metrics.values()]
    assert judge(success)["gate-separates"].estimate.value == pytest.approx(np.mean(values))
