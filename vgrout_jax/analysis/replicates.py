"""Intervals and tests over a handful of seeds (docs/preregistration.md, section on the procedure).

References:
    Student 1908, Biometrika 6, for the interval; Fisher 1935, The Design of Experiments, section 21, for the
    test by the signs of paired differences; Holm 1979, Scandinavian Journal of Statistics 6, for many tests.
"""

import dataclasses
import itertools
import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

CONFIDENCE = 0.95
EXACT_PAIRS = 20  # above it the signs are drawn instead of enumerated
DRAWS = 1 << 20

IntervalRate = tuple[float, float, float]  # a rate of one seed and the ends of its interval over problems


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval.

    Attributes:
        value: the mean.
        low, high: ends of the 95% interval; None where nothing supports one.
        seeds: number of seeds.
        over: what the interval takes as sampling unit: `seeds`, `problems` (one seed), or `nothing`.
    """

    value: float
    low: float | None
    high: float | None
    seeds: int
    over: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Paired differences over seeds.

    Attributes:
        estimate: mean difference and its interval.
        p_value: two-sided, exact, by the signs of the differences; None with one seed.
        p_greater, p_less: one-sided, for the alternatives that the mean difference is above or below zero.
        smallest_p: the least two-sided value that this number of seeds can give.
    """

    estimate: Estimate
    p_value: float | None
    p_greater: float | None
    p_less: float | None
    smallest_p: float


def student_cdf(t: float, degrees: int) -> float:
    """Distribution function of Student's t for whole degrees of freedom, by its finite series.

    Reference: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2 == 1
    term, total = (cosine, cosine if degrees > 1 else 0.0) if odd else (1.0, 1.0)
    for power in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine**2 * (power - 1) / power
        total += term
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + inside / 2


def student_quantile(probability: float, degrees: int) -> float:
    """The t with `student_cdf(t, degrees)` = probability, for a probability in (0, 1).

    Raises:
        ValueError: no degree of freedom, or a probability outside of (0, 1).
    """
    if degrees < 1 or not 0 < probability < 1:
        raise ValueError(f"degrees must be >= 1 and 0 < probability < 1, got {degrees} and {probability}")
    if probability < 0.5:
        return -student_quantile(1 - probability, degrees)
    low, high = 0.0, 1.0
    while student_cdf(high, degrees) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def student_interval(values: Sequence[float], *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Interval of the mean of at least two independent values: mean -+ t * s / sqrt(n).

    Raises:
        ValueError: fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"an interval over seeds must have at least 2 seeds, got {len(values)}")
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    half = student_quantile(0.5 + confidence / 2, len(values) - 1) * spread / math.sqrt(len(values))
    return mean - half, mean + half


def rate_over_seeds(rates: Sequence[IntervalRate]) -> Estimate:
    """Mean of the seeds' rates, each given as (value, low, high) with its own interval over problems.

    The interval is Student's over seeds, cut to [0, 1], and never narrower than the mean of the seeds' own
    intervals: all seeds are evaluated on the same problems, so that what is not known for want of problems
    does not shrink as seeds are added, and seeds that agree at 0 do not make 0 certain. With one seed there is
    only the interval over problems.

    Raises:
        ValueError: no seed.
    """
    if not rates:
        raise ValueError("a rate over seeds must have at least 1 seed, got 0")
    return _over_seeds(rates, least=0.0)


def _over_seeds(found: Sequence[IntervalRate], *, least: float) -> Estimate:
    value, low, high = (float(np.mean(part)) for part in zip(*found, strict=True))
    if len(found) == 1:
        return Estimate(value, low, high, 1, "problems")
    below, above = student_interval([rate[0] for rate in found])
    return Estimate(value, max(least, min(low, below)), min(1.0, max(high, above)), len(found), "seeds")


def difference_interval(one: IntervalRate, other: IntervalRate) -> IntervalRate:
    """Two rates' difference with an interval made from theirs, for independent rates.

        low = d - sqrt((p1 - low1)^2 + (high2 - p2)^2),   high = d + sqrt((high1 - p1)^2 + (p2 - low2)^2)

    Rates on the same problems are positively correlated as a rule, for which this is too wide rather than too
    short.

    Reference: Newcombe 1998, Statistics in Medicine 17, method 10.
    """
    difference = one[0] - other[0]
    below = math.hypot(one[0] - one[1], other[2] - other[0])
    above = math.hypot(one[2] - one[0], other[0] - other[1])
    return difference, max(-1.0, difference - below), min(1.0, difference + above)


def paired_comparison(
    one: Mapping[Hashable, IntervalRate], other: Mapping[Hashable, IntervalRate]
) -> Comparison | None:
    """`one` minus `other` over the seeds that both have; None where they share none.

    The interval is made as in `rate_over_seeds`, from the seeds' differences and `difference_interval`.
    """
    seeds = sorted(set(one) & set(other))
    if not seeds:
        return None
    found = [difference_interval(one[seed], other[seed]) for seed in seeds]
    estimate = _over_seeds(found, least=-1.0)
    if len(seeds) == 1:
        return Comparison(estimate, None, None, None, 1.0)
    differences = [difference for difference, _, _ in found]
    greater, less = sign_flip_test(differences), sign_flip_test([-difference for difference in differences])
    return Comparison(estimate, min(1.0, 2 * min(greater, less)), greater, less, 2.0 ** (1 - len(seeds)))


def sign_flip_test(differences: Sequence[float]) -> float:
    """P(mean >= the observed one) when every difference is as likely to have the other sign.

    All 2^n assignments of signs are looked at, the observed one among them, so the least value is 2^-n. For
    more than `EXACT_PAIRS` differences assignments are drawn from a fixed generator instead.
    """
    values = np.asarray(differences, np.float64)
    observed = values.sum()
    slack = 1e-12 * np.abs(values).sum()  # sums of the same numbers in another order are ties
    if values.size <= EXACT_PAIRS:
        sums = np.zeros(1)
        for value in values:
            sums = np.concatenate([sums + value, sums - value])
        return float(np.mean(sums >= observed - slack))
    generator, hits = np.random.default_rng(0), 0
    for _ in range(64):
        signs = generator.integers(0, 2, (DRAWS // 64, values.size)) * 2 - 1
        hits += int(np.sum(signs @ values >= observed - slack))
    return (hits + 1) / (DRAWS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted values, in the order given: what each may be held against at the level of all together."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    scaled = [(len(order) - place) * p_values[index] for place, index in enumerate(order)]
    running = itertools.accumulate(scaled, max)
    adjusted = {index: min(1.0, value) for index, value in zip(order, running, strict=True)}
    return [adjusted[index] for index in range(len(p_values))]
