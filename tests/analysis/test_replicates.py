"""Intervals and tests over seeds, against scipy and against enumeration by hand."""

import itertools

import numpy as np
import pytest

from vgrout_jax.analysis import replicates
from vgrout_jax.evaluation.rates import wilson_interval

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 7, 12, 31, 100])
def test_student_s_distribution_and_quantiles_are_scipy_s(degrees):
    for t in (-30.0, -2.5, -0.3, 0.0, 0.7, 1.9, 12.0):
        assert replicates.student_cdf(t, degrees) == pytest.approx(stats.t.cdf(t, degrees), abs=1e-12)
    for probability in (0.005, 0.025, 0.3, 0.5, 0.9, 0.975, 0.9995):
        expected = stats.t.ppf(probability, degrees)
        assert replicates.student_quantile(probability, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("degrees,probability", [(0, 0.9), (3, 0.0), (3, 1.0)])
def test_student_quantile_refuses_what_has_no_answer(degrees, probability):
    with pytest.raises(ValueError, match="degrees must be"):
        replicates.student_quantile(probability, degrees)


def test_student_interval_is_scipy_s():
    values = [0.3, 0.5, 0.35, 0.8]
    expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert replicates.student_interval(values) == pytest.approx(expected)
    with pytest.raises(ValueError, match="at least 2 seeds"):
        replicates.student_interval([0.3])


def test_student_interval_covers_as_often_as_it_says():
    generator = np.random.default_rng(0)
    draws = generator.normal(0.4, 0.1, (2000, 4)).tolist()
    covered = np.mean([low <= 0.4 <= high for low, high in map(replicates.student_interval, draws)])
    assert abs(covered - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 2000)


def test_a_rate_over_seeds_is_never_surer_than_its_problems_allow():
    agreeing = replicates.rate_over_seeds([(0.0, 0.0, 0.05), (0.0, 0.0, 0.03), (0.0, 0.0, 0.04)])
    assert (agreeing.value, agreeing.low, agreeing.over, agreeing.seeds) == (0.0, 0.0, "seeds", 3)
    assert agreeing.high == pytest.approx(0.04)
    values = [0.2, 0.5, 0.9]
    apart = replicates.rate_over_seeds([(value, value - 0.01, value + 0.01) for value in values])
    expected = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (apart.low, apart.high) == (max(0.0, expected[0]), min(1.0, expected[1])) == (0.0, 1.0)
    near = replicates.rate_over_seeds([(value, value - 0.01, value + 0.01) for value in (0.4, 0.5, 0.6)])
    assert (near.low, near.high) == pytest.approx(stats.t.interval(0.95, 2, 0.5, 0.1 / np.sqrt(3)))


def test_one_seed_has_the_interval_over_problems_and_says_so():
    one = replicates.rate_over_seeds([(0.4, 0.3, 0.55)])
    assert (one.value, one.low, one.high, one.seeds, one.over) == (0.4, 0.3, 0.55, 1, "problems")
    with pytest.raises(ValueError, match="at least 1 seed"):
        replicates.rate_over_seeds([])


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_sign_flip_test_is_scipy_s_permutation_test(count):
    differences = np.random.default_rng(count).normal(0.2, 0.5, count).tolist()
    expected = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="greater"
    )
    assert replicates.sign_flip_test(differences) == pytest.approx(expected.pvalue)


def test_sign_flip_test_counts_ties_and_the_observed_signs():
    assert replicates.sign_flip_test([0.1, 0.2, 0.3]) == 1 / 8
    assert replicates.sign_flip_test([-0.1, -0.2, -0.3]) == 1.0
    assert (
        replicates.sign_flip_test([0.1, 0.1, -0.1, 0.3])
        == sum(
            sum(s * d for s, d in zip(signs, (1, 1, 1, 3), strict=True)) >= 4
            for signs in itertools.product((1, -1), repeat=4)
        )
        / 16
    )
    assert replicates.sign_flip_test([0.0, 0.0]) == 1.0


def test_many_differences_are_drawn_close_to_the_exact_value(monkeypatch):
    differences = np.random.default_rng(0).normal(0.15, 0.5, 16).tolist()
    exact = replicates.sign_flip_test(differences)
    monkeypatch.setattr(replicates, "EXACT_PAIRS", 4)
    monkeypatch.setattr(replicates, "DRAWS", 1 << 16)
    assert abs(replicates.sign_flip_test(differences) - exact) < 4 * np.sqrt(exact * (1 - exact) / (1 << 16))


def sure(values):
    """Rates without any uncertainty of their own."""
    return {seed: (value, value, value) for seed, value in values.items()}


def test_paired_comparison_takes_the_seeds_that_both_have():
    one, other = {0: 0.9, 1: 0.8, 2: 0.95, 7: 0.0}, {2: 0.05, 1: 0.0, 0: 0.35, 9: 1.0}
    found = replicates.paired_comparison(sure(one), sure(other))
    expected = stats.ttest_rel([0.9, 0.8, 0.95], [0.35, 0.0, 0.05]).confidence_interval()
    assert found.estimate.value == pytest.approx(0.75) and found.estimate.seeds == 3
    assert (found.estimate.low, found.estimate.high) == pytest.approx((expected.low, min(1.0, expected.high)))
    assert (found.p_value, found.p_greater, found.p_less, found.smallest_p) == (0.25, 0.125, 1.0, 0.25)


def test_a_difference_of_rates_has_newcombe_s_interval():
    """The example of Newcombe's paper: 56/70 against 48/80 is 0.2000, 0.0524 to 0.3339."""
    rates = [(hits / n, *wilson_interval(hits, n)) for hits, n in ((56, 70), (48, 80))]
    assert replicates.difference_interval(*rates) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_equal_rates_of_all_seeds_do_not_make_their_difference_certain():
    zero = {seed: (0.0, 0.0, 0.1) for seed in range(3)}
    found = replicates.paired_comparison(zero, zero)
    assert (found.estimate.low, found.estimate.high) == pytest.approx((-0.1, 0.1)) and found.p_value == 1.0


def test_one_common_seed_has_an_interval_over_problems_and_no_test():
    found = replicates.paired_comparison({0: (0.9, 0.85, 0.93)}, {0: (0.1, 0.08, 0.2), 1: (0.2, 0.0, 1.0)})
    assert found.estimate.value == pytest.approx(0.8) and found.estimate.over == "problems"
    assert found.estimate.low == pytest.approx(0.8 - np.hypot(0.05, 0.1))
    assert (found.p_value, found.p_greater, found.p_less) == (None, None, None)
    assert replicates.paired_comparison(sure({0: 0.9}), sure({1: 0.1})) is None


def test_holm_against_the_definition():
    p_values = [0.01, 0.04, 0.03, 0.005, 0.9]
    adjusted = replicates.holm(p_values)
    for level in np.linspace(0.001, 1, 500):
        rejected, order = set(), sorted(range(5), key=p_values.__getitem__)
        for place, index in enumerate(order):
            if p_values[index] * (5 - place) > level:
                break
            rejected.add(index)
        assert rejected == {index for index in range(5) if adjusted[index] <= level}
    assert replicates.holm([]) == [] and replicates.holm([0.7, 0.8]) == [1.0, 1.0]
