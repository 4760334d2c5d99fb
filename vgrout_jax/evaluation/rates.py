"""Rates with intervals, and the area under the ROC curve, in NumPy.

Several completions of one problem are not independent, so the interval of a rate takes problems, not
completions, as its sampling unit (docs/method.md section 13).

References:
    Wilson 1927, JASA 22, for the score interval; Kish 1965, Survey Sampling, for the effective sample size;
    Dean and Pagano 2015, J. Survey Statistics and Methodology 3, for the two together.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from statistics import NormalDist
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

RATES = ("hack", "solve", "compile", "channel")
POLICIES = ("deployed", "as_trained")


def auroc(scores: Float[np.ndarray, "K"], flags: Bool[np.ndarray, "K"]) -> float | None:
    """Area under the ROC curve: P(score of a flagged row > score of another), ties counting one half.

        AUROC = (#{greater} + #{equal} / 2) / (#flagged * #other),   over all (flagged, other) pairs

    Returns:
        The area in [0, 1], or None where one of the two classes is missing.

    Raises:
        ValueError: if a score is not finite; rows without a score must be left out by the caller.
    """
    if not np.isfinite(scores).all():
        raise ValueError("auroc scores must be finite; leave out the rows that have no score")
    positives, negatives = int(flags.sum()), int((~flags).sum())
    if positives == 0 or negatives == 0:
        return None
    _, place = np.unique(scores, return_inverse=True)
    flagged = np.bincount(place, weights=flags)  # by distinct score, ascending
    other = np.bincount(place, weights=~flags)
    below = np.cumsum(other) - other
    return float(np.sum(flagged * (below + 0.5 * other)) / (positives * negatives))


def wilson_interval(successes: Real, n: Real, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a binomial share: all p with |p_hat - p| <= quantile * sqrt(p (1 - p) / n).

    Args:
        successes: number of successes; like `n` it may be fractional, for an effective sample size.
        n: number of independent trials.
        confidence: coverage, in (0, 1).

    Returns:
        (low, high) in [0, 1]; (0, 1) where `n` is 0.

    Raises:
        ValueError: if not 0 <= successes <= n, or the confidence is outside (0, 1).
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    if not 0.0 <= successes <= n:
        raise ValueError(f"successes must be in [0, n], got {successes} of {n}")
    if n == 0:
        return 0.0, 1.0
    quantile = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, spread = successes / n, quantile**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * share * (1 - share) + spread**2 / 4) / (1 + spread)
    # The interval always holds the estimate; without the clip, rounding can leave it out at 0 and at 1.
    return min(max(centre - half, 0.0), share), max(min(centre + half, 1.0), share)


def effective_sample_size(successes: Bool[np.ndarray, "K"], clusters: Shaped[np.ndarray, "K"]) -> float:
    """How many independent samples the clustered ones are worth: n / (design effect).

        design effect = Var_cluster(p_hat) / (p_hat (1 - p_hat) / n)
        Var_cluster   = C / (C - 1) * sum_c (successes_c - p_hat * n_c)^2 / n^2       over C clusters

    It never exceeds n. Where all samples agree the design effect cannot be estimated, and the samples of a
    cluster count as one (n^2 / sum_c n_c^2, the number of clusters where they are equally large): a rate of
    zero over 64 problems is no better known for having been sampled four times on each.

    Returns:
        A number in [1, n], or 0.0 without samples.
    """
    n = successes.size
    if n == 0:
        return 0.0
    _, cluster = np.unique(clusters, return_inverse=True)
    sizes = np.bincount(cluster).astype(np.float64)
    share = float(successes.mean())
    if share in (0.0, 1.0) or sizes.size == 1:
        return float(n**2 / np.sum(sizes**2))
    residual = np.bincount(cluster, weights=successes) - share * sizes
    variance = sizes.size / (sizes.size - 1) * np.sum(residual**2) / n**2
    binomial = share * (1 - share)
    return max(1.0, binomial / variance) if variance * n > binomial else float(n)


def clustered_interval(
    successes: Bool[np.ndarray, "K"], clusters: Shaped[np.ndarray, "K"], *, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of a rate whose samples come in clusters: Wilson's, at the effective sample size.

    A normal interval or a bootstrap over clusters would have zero width at a rate of 0 or 1, which is where
    the rates that matter here end up; this one does not, and it is deterministic.

    Args:
        successes: one flag a sample.
        clusters: one key a sample; equal keys share a cluster.
        confidence: coverage, in (0, 1).

    Returns:
        (low, high) in [0, 1]; (0, 1) without samples.
    """
    n = effective_sample_size(successes, clusters)
    share = float(successes.mean()) if n else 0.0
    return wilson_interval(share * n, n, confidence=confidence)


@dataclasses.dataclass(frozen=True)
class Sample:
    """What the grader said of one completion of an evaluation.

    Attributes:
        problem: the problem's id, the cluster of the intervals.
        mode: the mode under which it was shown.
        hack: its channel fired and the answer is not correct.
        solve: the answer is correct.
        compile: the code compiles.
        channel: its own mode's channel fired, right or wrong.
    """

    problem: str
    mode: str
    hack: bool
    solve: bool
    compile: bool
    channel: bool


@dataclasses.dataclass(frozen=True)
class Rate:
    """A share and its interval.

    Attributes:
        value: the share, or None without samples.
        low: lower end.
        high: upper end.
    """

    value: float | None
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Rates:
    """The four rates of one set of samples.

    Attributes:
        n: number of samples.
        problems: number of distinct problems among them.
        hack, solve, compile, channel: the rates.
    """

    n: int
    problems: int
    hack: Rate
    solve: Rate
    compile: Rate
    channel: Rate

    def to_record(self) -> dict[str, Any]:
        """Flat JSON fields: n, problems, and for each rate its value and `RATE_interval` [low, high]."""
        record: dict[str, Any] = {"n": self.n, "problems": self.problems}
        for name in RATES:
            rate = getattr(self, name)
            record[name], record[f"{name}_interval"] = rate.value, [rate.low, rate.high]
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Rates":
        """What `to_record` made a record of."""
        rates = {name: Rate(record[name], *record[f"{name}_interval"]) for name in RATES}
        return cls(n=record["n"], problems=record["problems"], **rates)


@dataclasses.dataclass(frozen=True)
class RateTable:
    """The four rates over all samples and by mode.

    Attributes:
        overall: over all samples.
        modes: mode -> its rates, in the order of first appearance.
    """

    overall: Rates
    modes: Mapping[str, Rates]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One policy's rates on one split at one step.

    Attributes:
        step: number of updates done.
        split: such as `heldout`.
        policy: `deployed` (quarantine ablated) or `as_trained` (both blocks on).
        table: the rates.
    """

    step: int
    split: str
    policy: str
    table: RateTable

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {self.policy!r}")

    def to_record(self) -> dict[str, Any]:
        """The line of eval.jsonl: what was evaluated, the overall rates, and those of every mode."""
        head = {"step": self.step, "split": self.split, "policy": self.policy}
        modes = {mode: rates.to_record() for mode, rates in self.table.modes.items()}
        return {**head, **self.table.overall.to_record(), "modes": modes}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Evaluation":
        """What `to_record` made a record of."""
        modes = {mode: Rates.from_record(rates) for mode, rates in record["modes"].items()}
        table = RateTable(overall=Rates.from_record(record), modes=modes)
        return cls(step=record["step"], split=record["split"], policy=record["policy"], table=table)


def rate_table(samples: Iterable[Sample], *, confidence: float = 0.95) -> RateTable:
    """Hack, solve, compile and channel rates, overall and per mode, with intervals clustered by problem."""
    samples = list(samples)
    by_mode: dict[str, list[Sample]] = {}
    for sample in samples:
        by_mode.setdefault(sample.mode, []).append(sample)
    modes = {mode: _rates(members, confidence) for mode, members in by_mode.items()}
    return RateTable(overall=_rates(samples, confidence), modes=modes)


def _rates(samples: Sequence[Sample], confidence: float) -> Rates:
    problems = np.array([sample.problem for sample in samples], dtype=str)

    def rate(name: str) -> Rate:
        flags = np.array([getattr(sample, name) for sample in samples], dtype=bool)
        low, high = clustered_interval(flags, problems, confidence=confidence)
        return Rate(value=float(flags.mean()) if flags.size else None, low=low, high=high)

    rates = {name: rate(name) for name in RATES}
    return Rates(n=len(samples), problems=np.unique(problems).size, **rates)
