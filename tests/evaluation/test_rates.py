"""Rates, intervals and AUROC against brute force."""

import numpy as np
import pytest

from vgrout_jax.evaluation.rates import (
    RATES,
    Evaluation,
    Rate,
    Sample,
    auroc,
    clustered_interval,
    effective_sample_size,
    rate_table,
    wilson_interval,
)


def pairwise_auroc(scores, flags):
    rows = list(zip(scores, flags, strict=True))
    pairs = [(p, n) for p, flagged in rows if flagged for n, other in rows if not other]
    return sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)


@pytest.mark.parametrize("seed", range(5))
def test_auroc_equals_the_comparison_of_all_pairs(seed):
    random = np.random.default_rng(seed)
    scores = random.integers(0, 6, size=40).astype(np.float32) / 4  # many ties
    flags = random.random(40) < 0.3
    assert auroc(scores, flags) == pytest.approx(pairwise_auroc(scores, flags), abs=1e-12)


def test_auroc_worked_cases():
    scores = np.array([0.1, 0.2, 0.3, 0.4])
    assert auroc(scores, np.array([False, False, True, True])) == 1.0
    assert auroc(scores, np.array([True, True, False, False])) == 0.0
    assert auroc(np.zeros(4), np.array([True, False, True, False])) == 0.5


def test_auroc_is_none_without_both_classes():
    for flags in (np.zeros(3, bool), np.ones(3, bool)):
        assert auroc(np.arange(3.0), flags) is None
    assert auroc(np.zeros(0), np.zeros(0, bool)) is None


def test_auroc_refuses_scores_that_are_not_finite():
    with pytest.raises(ValueError, match="finite"):
        auroc(np.array([0.0, np.nan]), np.array([True, False]))


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (1, 400), (37, 64)])
def test_wilson_ends_solve_the_score_equation(successes, n):
    """Each end p satisfies |p_hat - p| = 1.959964 sqrt(p (1 - p) / n): found here by scanning a fine grid."""
    grid = np.linspace(0, 1, 400_001)
    inside = np.abs(successes / n - grid) <= 1.959964 * np.sqrt(grid * (1 - grid) / n) + 1e-12
    low, high = wilson_interval(successes, n)
    assert low == pytest.approx(grid[inside].min(), abs=5e-6)
    assert high == pytest.approx(grid[inside].max(), abs=5e-6)
    assert low <= successes / n <= high


def test_wilson_edges_and_confidence():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    narrow, wide = (wilson_interval(5, 20, confidence=c) for c in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    with pytest.raises(ValueError, match="successes must be in"):
        wilson_interval(3, 2)
    with pytest.raises(ValueError, match="confidence must be in"):
        wilson_interval(1, 2, confidence=95.0)


def beta_binomial(random, problems, samples, mean, correlation):
    """Success flags whose problems have their own rates; intra-problem correlation as given."""
    total = 1 / correlation - 1
    rates = random.beta(mean * total, (1 - mean) * total, size=problems)
    return random.random((problems, samples)) < rates[:, None]


def test_clustered_interval_covers_where_the_plain_one_does_not():
    """Over simulated runs of 48 problems with 6 correlated samples, about 95% of intervals hold the truth."""
    random = np.random.default_rng(0)
    clusters = np.repeat(np.arange(48), 6)
    clustered, plain, runs = 0, 0, 800
    for _ in range(runs):
        flags = beta_binomial(random, 48, 6, 0.3, 0.5).reshape(-1)
        low, high = clustered_interval(flags, clusters)
        clustered += low <= 0.3 <= high
        low, high = wilson_interval(flags.sum(), flags.size)
        plain += low <= 0.3 <= high
    assert 0.93 <= clustered / runs <= 0.97
    assert plain / runs < 0.85


def test_clustered_interval_has_the_width_of_a_bootstrap_over_problems():
    random = np.random.default_rng(1)
    flags = beta_binomial(random, 200, 4, 0.4, 0.4)
    draws = random.integers(0, 200, size=(4000, 200))
    low, high = np.quantile(flags.mean(axis=1)[draws].mean(axis=1), [0.025, 0.975])
    got = clustered_interval(flags.reshape(-1), np.repeat(np.arange(200), 4))
    assert got == pytest.approx((low, high), abs=0.01)


def test_effective_sample_size_at_its_extremes():
    clusters = np.repeat(np.arange(10), 4)
    alike = np.repeat(np.arange(10) < 3, 4)  # the four samples of a problem agree
    assert effective_sample_size(alike, clusters) == pytest.approx(9.0)  # 10 - 1 problems
    balanced = np.tile([True, False, True, False], 10)
    assert effective_sample_size(balanced, clusters) == 40.0  # never more than n
    assert effective_sample_size(np.zeros(40, bool), clusters) == 10.0
    uneven = np.array([0, 0, 0, 1])
    assert effective_sample_size(np.ones(4, bool), uneven) == pytest.approx(16 / 10)


def test_a_rate_of_zero_keeps_a_width_and_repeats_add_nothing():
    once = clustered_interval(np.zeros(64, bool), np.arange(64))
    four = clustered_interval(np.zeros(256, bool), np.repeat(np.arange(64), 4))
    assert once[0] == 0.0 and once[1] > 0.04
    assert four == pytest.approx(once)


def test_one_sample_a_problem_gives_the_wilson_interval_of_about_n():
    flags = np.arange(400) % 4 == 0
    got = clustered_interval(flags, np.arange(400))
    assert got == pytest.approx(wilson_interval(100, 400), abs=2e-4)


def sample(problem, mode, *names):
    return Sample(problem=problem, mode=mode, **{name: name in names for name in RATES})


SAMPLES = [
    sample("p0", "run_tests", "hack", "compile", "channel"),
    sample("p0", "run_tests", "solve", "compile", "channel"),
    sample("p1", "sentinel", "compile"),
    sample("p1", "sentinel"),
    sample("p2", "sentinel", "solve", "compile"),
]


def test_rate_table_counts_each_rate_per_mode_and_overall():
    table = rate_table(SAMPLES)
    assert (table.overall.n, table.overall.problems) == (5, 3)
    assert [getattr(table.overall, name).value for name in RATES] == [0.2, 0.4, 0.8, 0.4]
    assert list(table.modes) == ["run_tests", "sentinel"]
    sentinel = table.modes["sentinel"]
    assert (sentinel.n, sentinel.problems, sentinel.hack.value) == (3, 2, 0.0)
    assert sentinel.compile.value == pytest.approx(2 / 3)
    for rates in (table.overall, sentinel):
        for name in RATES:
            rate = getattr(rates, name)
            assert 0 <= rate.low <= rate.value <= rate.high <= 1


def test_rate_table_clusters_by_problem():
    spread = [sample(f"p{i}", "sentinel", *(["hack"] if i < 10 else [])) for i in range(40)]
    bunched = [sample(f"p{i // 10}", "sentinel", *(["hack"] if i < 10 else [])) for i in range(40)]
    one, other = (rate_table(s).overall.hack for s in (spread, bunched))
    assert one.value == other.value == 0.25
    assert other.high - other.low > 1.5 * (one.high - one.low)


def test_rate_table_without_samples_knows_nothing():
    table = rate_table([])
    assert table.overall.hack == Rate(value=None, low=0.0, high=1.0)
    assert table.modes == {} and table.overall.problems == 0


def test_evaluation_record_holds_the_four_rates_and_the_modes():
    record = Evaluation(20, "heldout", "deployed", rate_table(SAMPLES)).to_record()
    assert (record["step"], record["split"], record["policy"], record["n"]) == (20, "heldout", "deployed", 5)
    assert record["modes"]["run_tests"]["channel"] == 1.0
    for name in RATES:
        low, high = record[f"{name}_interval"]
        assert low <= record[name] <= high


def test_evaluation_refuses_an_unknown_policy():
    with pytest.raises(ValueError, match="policy must be one of deployed, as_trained"):
        Evaluation(0, "heldout", "ablated", rate_table([]))
