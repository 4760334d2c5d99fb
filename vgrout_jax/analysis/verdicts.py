"""Whether a set of runs bears out the preregistered claims (docs/preregistration.md)."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vgrout_jax.analysis.arms import INCIDENTAL, SEEDS, Arm, Seed, as_paired, estimate, modes_of, seed_values
from vgrout_jax.analysis.claims import AUROC, BASE, CLAIMS, COLLAPSE_MARGIN, LEAST_SEEDS, SCALE, Claim
from vgrout_jax.analysis.replicates import Estimate, holm, paired_comparison, student_interval
from vgrout_jax.common import files
from vgrout_jax.config.scales import make_config
from vgrout_jax.run.reader import Workdir, flatten

HOLDS, FAILS, NOT_TESTED = "holds", "fails", "not tested"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the runs say of a claim.

    Attributes:
        claim: the claim.
        verdict: `HOLDS`, `FAILS` or `NOT_TESTED`.
        estimate: of the rate or difference, None where it was not tested.
        mode: the worst mode where the claim is about each.
        p_value: one-sided, of a difference between arms being in the claimed direction by chance.
        adjusted: the same after Holm, over all claims that compare arms and were tested.
        remark: what the reader must know beside it, such as missing seeds; for `NOT_TESTED` the reason.
    """

    claim: Claim
    verdict: str
    estimate: Estimate | None
    mode: str | None = None
    p_value: float | None = None
    adjusted: float | None = None
    remark: str = ""


def judge(arms: Sequence[Arm], claims: Sequence[Claim] = CLAIMS) -> list[Outcome]:
    """The outcome of every claim; one whose arm is missing or has not finished is not tested, never held."""
    outcomes = [_outcome(claim, {arm.name: arm for arm in arms}) for claim in claims]
    tested = [index for index, outcome in enumerate(outcomes) if outcome.p_value is not None]
    adjusted = holm([outcomes[index].p_value for index in tested])
    for index, value in zip(tested, adjusted, strict=True):
        outcomes[index] = dataclasses.replace(outcomes[index], adjusted=value)
    return outcomes


def primary_verdict(outcomes: Sequence[Outcome]) -> str:
    """Of all bars together: fails if one fails, not tested if one was not, else holds."""
    verdicts = {outcome.verdict for outcome in outcomes if outcome.claim.primary}
    return FAILS if FAILS in verdicts else NOT_TESTED if NOT_TESTED in verdicts else HOLDS


def deviations(arms: Sequence[Arm]) -> list[str]:
    """In which ways the runs are not the experiment that the thresholds were fixed for."""
    found = []
    scales = sorted({arm.settings["scale"] for arm in arms})
    if scales != [SCALE]:
        found.append(f"the scale is {' and '.join(scales)}, not {SCALE}")
    else:
        found += [text for arm in arms for text in _changed_settings(arm)]
    few = [f"{arm.name} ({len(arm.finished)})" for arm in arms if len(arm.finished) < LEAST_SEEDS]
    if few:
        found.append(f"fewer than {LEAST_SEEDS} finished seeds: {', '.join(few)}")
    return found


def collapsed(arm: Arm) -> str | None:
    """The rate whose fall below the base policy's, beside a hack rate no higher than the base's, is collapse."""
    now, then = (
        {rate: estimate(seed_values(arm, rate, "deployed", step=step)) for rate in ("hack", "solve", "compile")}
        for step in (int(arm.settings["train.steps"]), 0)
    )
    if None in (*now.values(), *then.values()) or now["hack"].value > then["hack"].value:
        return None
    fallen = [rate for rate in ("compile", "solve") if now[rate].value < then[rate].value - COLLAPSE_MARGIN]
    return fallen[0] if fallen else None


def _changed_settings(arm: Arm) -> list[str]:
    config = make_config(arm.settings["arm"], SCALE)
    config.placebo.kind = arm.settings["placebo.kind"]
    config.resolve()
    usual = flatten(files.to_plain(config.to_dict()))
    changed = [
        f"{name} is {arm.settings.get(name)}, not {value}"
        for name, value in usual.items()
        if name not in SEEDS and not name.startswith(INCIDENTAL) and arm.settings.get(name) != value
    ]
    return [f"in {arm.name}, {text}" for text in changed]


def _outcome(claim: Claim, arms: dict[str, Arm]) -> Outcome:
    missing = [name for name in (claim.arm, claim.minus) if name not in (None, BASE) and name not in arms]
    if missing:
        return Outcome(claim, NOT_TESTED, None, remark=f"no run of {' and '.join(missing)}")
    arm = arms[claim.arm]
    if not arm.finished:
        return Outcome(claim, NOT_TESTED, None, remark=f"no run of {claim.arm} has finished")
    remark = _unfinished([arms[name] for name in (claim.arm, claim.minus) if name in arms])
    if claim.minus is not None:
        return _difference_outcome(claim, arm, arms.get(claim.minus), remark)
    if claim.rate == AUROC:
        return _level_outcome(claim, {None: _auroc(arm)}, remark)
    modes = modes_of([arm]) if claim.each_mode else [None]
    found = {mode: estimate(seed_values(arm, claim.rate, claim.policy, mode=mode)) for mode in modes}
    return _level_outcome(claim, found, remark)


def _level_outcome(claim: Claim, found: dict[str | None, Estimate | None], remark: str) -> Outcome:
    unknown = [str(mode) for mode, value in found.items() if value is None]
    if unknown or not found:
        return Outcome(claim, NOT_TESTED, None, remark="nothing was measured" + remark)
    sign = 1 if claim.relation == "at most" else -1
    worst = max(found, key=lambda mode: sign * found[mode].value)
    verdict = HOLDS if all(claim.met_by(value.value) for value in found.values()) else FAILS
    return Outcome(claim, verdict, found[worst], mode=worst, remark=remark.lstrip("; "))


def _difference_outcome(claim: Claim, arm: Arm, other: Arm | None, remark: str) -> Outcome:
    step = 0 if other is None else None  # the base policy is what the arm's own finished runs began with
    source = Arm(arm.name, arm.finished) if other is None else other
    mine = seed_values(arm, claim.rate, claim.policy)
    theirs = seed_values(source, claim.rate, claim.policy, step=step)
    comparison = paired_comparison(as_paired(mine), as_paired(theirs))
    if comparison is None:
        reason = f"{claim.arm} and {claim.minus} share no finished seed"
        return Outcome(claim, NOT_TESTED, None, remark=reason + remark)
    value = comparison.estimate.value
    p_value = comparison.p_less if claim.relation == "at most" else comparison.p_greater
    return Outcome(
        claim,
        HOLDS if claim.met_by(value) else FAILS,
        comparison.estimate,
        p_value=p_value if claim.compares_arms else None,
        remark=remark.lstrip("; "),
    )


def _auroc(arm: Arm) -> Estimate | None:
    """The gate's AUROC, mean over a run's steps that have one, over seeds."""
    means = [value for run in arm.finished.values() if (value := _mean_metric(run, "gate/auroc")) is not None]
    if not means:
        return None
    if len(means) == 1:
        return Estimate(means[0], None, None, 1, "nothing")
    low, high = student_interval(means)
    return Estimate(float(np.mean(means)), max(0.0, low), min(1.0, high), len(means), "seeds")


def _mean_metric(run: Workdir, key: str) -> float | None:
    values = [record[key] for record in run.metrics.values() if record.get(key) is not None]
    return float(np.mean(values)) if values else None


def _unfinished(arms: Sequence[Arm]) -> str:
    """Which seeds are left out because their runs have no end."""
    parts = []
    for arm in arms:
        seeds: list[Seed] = [seed for seed in arm.runs if seed not in arm.finished]
        if seeds:
            parts.append(f"; left out as unfinished: {arm.name}, seeds {', '.join(str(seed[0]) for seed in seeds)}")
    return "".join(parts)
