"""Numbers and verdicts in words."""

from collections.abc import Sequence

from vgrout_jax.analysis.claims import AUROC, BASE, LEAST_SEEDS, Claim
from vgrout_jax.analysis.replicates import Estimate
from vgrout_jax.analysis.verdicts import FAILS, HOLDS, NOT_TESTED, Outcome, primary_verdict


def percent(value: float) -> str:
    """0.953 as `95.3%`; never `-0.0%`."""
    return f"{100 * value + 0.0:.1f}%".replace("-0.0%", "0.0%")


def share(found: Estimate | None) -> str:
    """`95.3% [93.0, 97.1]`, without the bracket where there is no interval; `-` for nothing."""
    if found is None:
        return "-"
    interval = "" if found.low is None else f" [{percent(found.low)[:-1]}, {percent(found.high)[:-1]}]"
    return percent(found.value) + interval


def points(found: Estimate) -> str:
    """A difference of shares in percentage points, signed: `+31.0 [+12.5, +49.5]`."""
    interval = "" if found.low is None else f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return f"{100 * found.value:+.1f}{interval}"


def probability(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if value >= 0.0001 else "< 0.0001"


def number(value: object) -> str:
    """A setting's value on one line."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "()"
    return "None" if value is None else str(value)


def required(claim: Claim) -> str:
    """`at least 80%`, of a difference `at least 15 points`."""
    if claim.rate == AUROC:
        return f"{claim.relation} {claim.threshold:.2f}"
    return f"{claim.relation} {100 * claim.threshold:g}{' points' if claim.minus else '%'}"


def quantity(claim: Claim) -> str:
    """What a claim is about: `none: deployed hack rate in each mode`."""
    if claim.rate == AUROC:
        return f"{claim.arm}: AUROC of the gate's score, mean over steps"
    rate = f"{claim.policy.replace('_', ' ')} {claim.rate} rate"
    minus = f" minus that of {claim.minus}" if claim.minus else ""
    return f"{claim.arm}: {rate}{minus}{' in each mode' if claim.each_mode else ''}"


def measured(outcome: Outcome) -> str:
    """The estimate in the claim's own unit, with the worst mode where there is one."""
    if outcome.estimate is None:
        return "-"
    if outcome.claim.rate == AUROC:
        low, high = outcome.estimate.low, outcome.estimate.high
        text = f"{outcome.estimate.value:.2f}" + ("" if low is None else f" [{low:.2f}, {high:.2f}]")
    else:
        text = points(outcome.estimate) if outcome.claim.minus else share(outcome.estimate)
    return f"{text} ({outcome.mode})" if outcome.mode else text


def sentence(outcome: Outcome) -> str:
    """The verdict of one claim and what it stands on."""
    claim = outcome.claim
    start = f"{outcome.verdict.capitalize()}: {claim.meaning} ({claim.key}). "
    if outcome.estimate is None:
        return f"{start}{outcome.remark[:1].upper()}{outcome.remark[1:]}."
    parts = [f"{start}{quantity(claim)} is {measured(outcome)}, and must be {required(claim)}", _certainty(outcome)]
    if outcome.p_value is not None:
        adjusted = f"{probability(outcome.adjusted)} after Holm"
        parts.append(f"one-sided p by the signs of the seeds' differences {probability(outcome.p_value)}, {adjusted}")
    return "; ".join([*parts, *([outcome.remark] if outcome.remark else [])]) + "."


def _certainty(outcome: Outcome) -> str:
    """What the interval adds, and whether there are enough seeds for one."""
    found, claim = outcome.estimate, outcome.claim
    if found.over == "nothing":
        return "one seed, so there is no interval across seeds"
    inside = [claim.met_by(end) for end in (found.low, found.high)]
    word = "the interval lies on both sides of the threshold"
    if all(inside):
        word = "the whole interval meets it"
    elif not any(inside):
        word = "the whole interval misses it"
    if found.over == "problems":
        return f"one seed, so there is no interval across seeds; over problems, {word}"
    few = f" (fewer than the {LEAST_SEEDS} that are asked for)" if found.seeds < LEAST_SEEDS else ""
    return f"over {found.seeds} seeds{few}, {word}"


def headline(outcomes: Sequence[Outcome]) -> str:
    """All bars in one or two sentences."""
    bars = [outcome for outcome in outcomes if outcome.claim.primary]
    groups = {verdict: [o.claim.key for o in bars if o.verdict == verdict] for verdict in (HOLDS, FAILS, NOT_TESTED)}
    parts = [
        f"{len(keys)} {_plural(verdict, len(keys))} ({', '.join(keys)})" for verdict, keys in groups.items() if keys
    ]
    verdict = {
        HOLDS: f"All {len(bars)} bars hold.",
        FAILS: "The bars are not met.",
        NOT_TESTED: "The bars are not decided.",
    }[primary_verdict(outcomes)]
    return f"{verdict} Of {len(bars)}: {'; '.join(parts)}."


def _plural(verdict: str, count: int) -> str:
    if verdict == NOT_TESTED:
        return "was not tested" if count == 1 else "were not tested"
    return verdict if count == 1 else verdict.removesuffix("s")


BASE_NOTE = f"{BASE.capitalize()} is each run's own evaluation before its first update."
