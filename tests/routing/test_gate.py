"""The gate against a float64 oracle written with loops, and the properties of its placebos."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.arms.sources import SETTINGS, build, gated, make_source
from tests.routing import oracle
from tests.routing.test_direction import assert_same, scores
from vgrout_jax.arms.base import Seen
from vgrout_jax.config.arms import PLACEBOS
from vgrout_jax.routing import direction
from vgrout_jax.routing import gate as gating

THRESHOLDS = {"literal": {"low": 0.0, "high": 1.0}, "calibrated": {"low": 0.0, "high": 0.3}}


def unscored(rollouts, *rows):
    scored = np.ones(rollouts, bool)
    scored[list(rows)] = False
    return scored


def counts(labels, scored):
    return [int(np.sum(np.asarray(labels)[scored] == zone)) for zone in (0, 1, 2)]


def matched_oracle(real_labels, random_z, scored):
    """Walks down the random scores and deals out the hack labels, then the mid ones."""
    rows = sorted((i for i in range(len(scored)) if scored[i]), key=lambda i: (-random_z[i], i))
    stack = sorted((real_labels[i] for i in rows), reverse=True)
    out = [0] * len(scored)
    for i, label in zip(rows, stack, strict=True):
        out[i] = label
    return out


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("seed", [0, 2, 3, 4])
def test_named_settings_equal_oracle(name, seed):
    g, hack, clean = oracle.example(seed, rollouts=64)
    scored = unscored(64, 3, 10, 11)
    result = gated(g, build(hack, clean, **SETTINGS[name]), scored, **THRESHOLDS[name])
    z, usable = oracle.real_scores(g, hack, clean, **SETTINGS[name])
    np.testing.assert_allclose(result.scores[scored], np.array(z)[scored], rtol=2e-5, atol=2e-5)
    expected = oracle.labels(z, scored, **THRESHOLDS[name])
    thresholds = list(THRESHOLDS[name].values())
    clear = [min(abs(score - edge) for edge in thresholds) > 1e-4 for score in z]
    assert np.array_equal(np.asarray(result.labels)[clear], np.array(expected)[clear]) and sum(clear) > 50
    assert result.labels.dtype == jnp.int32 and bool(result.finite) and int(result.usable_modules) == usable
    assert min(counts(result.labels, scored)) > 0
    np.testing.assert_array_equal(result.scored, scored)
    np.testing.assert_array_equal(result.scores[~scored], 0.0)
    assert result.placebo_scores is None


def test_thresholds_belong_to_the_outer_zones():
    z = jnp.array([-1.0, 0.0, 0.001, 0.299, 0.3, 2.0])
    labels = gating.labels_from_scores(z, jnp.ones(6, bool), low=0.0, high=0.3)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_low_and_high_each_move_their_own_zone():
    z, scored = jnp.linspace(-1.0, 1.0, 41), jnp.ones(41, bool)
    base = np.asarray(gating.labels_from_scores(z, scored, low=-0.01, high=0.51))
    lower = np.asarray(gating.labels_from_scores(z, scored, low=-0.51, high=0.51))
    higher = np.asarray(gating.labels_from_scores(z, scored, low=-0.01, high=0.71))
    between = (z > -0.51) & (z <= -0.01)
    np.testing.assert_array_equal(lower, np.where(between, gating.MID, base))
    between = (z >= 0.51) & (z < 0.71)
    np.testing.assert_array_equal(higher, np.where(between, gating.MID, base))
    assert not np.array_equal(lower, base) and not np.array_equal(higher, base)


@pytest.mark.parametrize("low, high", [(0.3, 0.3), (0.4, 0.3), (float("nan"), 0.3)])
def test_thresholds_out_of_order_are_refused(low, high):
    with pytest.raises(ValueError, match="gate.low must be < gate.high"):
        gating.labels_from_scores(jnp.zeros(2), jnp.ones(2, bool), low=low, high=high)


def test_rollouts_without_a_score_are_clean_and_counted_apart():
    z = jnp.array([5.0, 5.0, 0.1, -5.0])
    scored = jnp.array([True, False, False, True])
    labels = gating.labels_from_scores(z, scored, low=0.0, high=0.3)
    assert labels.tolist() == [gating.HACK, gating.CLEAN, gating.CLEAN, gating.CLEAN]


def test_masks_of_every_label():
    quarantine_on, detach_deployed = gating.route_masks(jnp.array([gating.CLEAN, gating.MID, gating.HACK]))
    assert quarantine_on.tolist() == [False, True, True]
    assert detach_deployed.tolist() == [False, False, True]


@pytest.mark.parametrize("placebo", [None, "direction", "direction_matched", "lazy_pairs"])
@pytest.mark.parametrize("name", SETTINGS)
def test_gate_follows_its_rows_and_ignores_their_scale(placebo, name):
    g, hack, clean = oracle.example(1, rollouts=40)
    g = np.delete(g, 3, 0)  # equal scores are taken in the order of rows: no zero row here
    rng = np.random.default_rng(0)
    scored = rng.random(39) < 0.8
    routing = build(hack, clean, placebo=placebo, **SETTINGS[name])
    base = gated(g, routing, scored, placebo=placebo)
    order = rng.permutation(39)
    moved = gated(g[order], routing, scored[order], placebo=placebo)
    np.testing.assert_array_equal(moved.labels, base.labels[order])
    np.testing.assert_array_equal(moved.scores, base.scores[order])
    factors = 10.0 ** rng.uniform(-20, 20, size=(39, g.shape[1], 1)).astype(np.float32)
    scaled = gated(g * factors, routing, scored, placebo=placebo)
    np.testing.assert_allclose(scaled.scores, base.scores, atol=1e-5)
    np.testing.assert_array_equal(scaled.labels, base.labels)
    one = gated(g[5:6], routing, scored[5:6], placebo=None)
    np.testing.assert_allclose(one.scores, base.scores[5:6], atol=1e-5)


def test_sign_of_a_gradient_counts():
    g, hack, clean = oracle.example(2)
    routing = build(hack, clean)
    bands = routing.bands.replace(low_edge=jnp.zeros_like(routing.bands.low_edge))
    z, flipped = scores(g, routing.v, bands), scores(-g, routing.v, bands)
    np.testing.assert_allclose(z, -flipped, atol=1e-6)
    assert np.any(np.asarray(z) > 0.3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("placebo", [None, *PLACEBOS])
def test_what_is_not_finite_is_reported(value, placebo):
    """Also in a module out of the pool, in a row with no score, or in the direction or a band alone."""
    g, hack, clean = oracle.example(3)
    hack[:, 2] = clean[:, 2]
    routing = build(hack, clean, placebo=placebo)
    scored = unscored(24, 6)
    assert bool(gated(g, routing, scored, placebo=placebo).finite)
    for place in ((5, 0, 0), (6, 0, 0), (7, 2, 3)):
        bad = g.copy()
        bad[place] = value
        result = gated(bad, routing, scored, placebo=placebo)
        assert not bool(result.finite)
        if placebo not in ("labels", "direction_matched"):
            assert place[1] == 2 or int(result.labels[place[0]]) == gating.CLEAN
    for field in ("low_edge", "width"):
        bad = routing.bands.replace(**{field: getattr(routing.bands, field).at[0].set(np.nan)})
        assert not bool(gated(g, routing.replace(bands=bad), scored, placebo=placebo).finite)
    if placebo == "direction_matched":
        bad = routing.replace(random=routing.random.replace(v=routing.random.v.at[1, 0].set(value)))
        assert not bool(gated(g, bad, scored, placebo=placebo).finite)


@pytest.mark.parametrize("placebo", PLACEBOS)
def test_without_a_usable_module_everything_is_clean_and_it_is_counted(placebo):
    g, hack, clean = oracle.example(4)
    options = {"pool": "band_then_mean", "band_floor": 2.5}
    routing = build(hack, clean, placebo=placebo, **options)
    result = gated(g, routing, np.ones(24, bool), placebo=placebo, low=-2.0, high=-1.0)
    assert int(result.usable_modules) == 0 and bool(result.finite)
    assert not np.any(result.labels) and not np.any(result.scored) and not np.any(result.scores)


def test_matched_placebo_without_a_random_band_is_counted():
    g, hack, clean = oracle.example(5)
    routing = build(hack, clean, "direction_matched")
    none = routing.random.bands.replace(usable_modules=jnp.int32(0))
    routing = routing.replace(random=routing.random.replace(bands=none))
    result = gated(g, routing, np.ones(24, bool), placebo="direction_matched")
    assert int(result.usable_modules) == 0 and not np.any(result.labels)


def test_direction_placebo_is_the_gate_of_the_random_direction():
    g, hack, clean = oracle.example(6, rollouts=64)
    random_v = direction.haar_direction(jax.random.key(3), *hack.shape[1:])
    scored = unscored(64, 1, 2)
    for pool in direction.POOLS:
        routing = build(hack, clean, placebo="direction", seed=3, pool=pool)
        result = gated(g, routing, scored, placebo="direction", pool=pool)
        z, _ = oracle.random_scores(g, hack, clean, np.asarray(random_v), pool, 0.05)
        assert result.labels.tolist() == oracle.labels(z, scored, 0.0, 0.3)
        assert not np.array_equal(result.labels, gated(g, build(hack, clean, pool=pool), scored, pool=pool).labels)


@pytest.mark.parametrize("pool", direction.POOLS)
def test_matched_placebo_keeps_shares_and_follows_the_random_order(pool):
    g, hack, clean = oracle.example(7, rollouts=64)
    random_v = direction.haar_direction(jax.random.key(4), *hack.shape[1:])
    scored = unscored(64, 0, 20, 63)
    real = gated(g, build(hack, clean, pool=pool), scored)
    routing = build(hack, clean, placebo="direction_matched", seed=4, pool=pool)
    matched = gated(g, routing, scored, placebo="direction_matched")
    assert counts(matched.labels, scored) == counts(real.labels, scored)
    assert min(counts(real.labels, scored)) > 0
    assert not np.array_equal(matched.labels, real.labels)
    z, _ = oracle.random_scores(g, hack, clean, np.asarray(random_v), pool, 0.05)
    assert matched.labels.tolist() == matched_oracle(real.labels.tolist(), z, scored)
    np.testing.assert_array_equal(matched.scores, real.scores)
    np.testing.assert_allclose(matched.placebo_scores[scored], np.array(z)[scored], rtol=2e-5, atol=2e-5)
    labels = np.asarray(matched.labels)
    zones = [np.asarray(matched.placebo_scores)[scored & (labels == zone)] for zone in (0, 1, 2)]
    assert zones[0].max() < zones[1].min() and zones[1].max() < zones[2].min()


def test_matched_labels_equal_oracle():
    rng = np.random.default_rng(0)
    for rollouts, share in itertools.product((1, 2, 17), (0.0, 0.5, 1.0)):
        labels = rng.integers(0, 3, rollouts).astype(np.int32)  # those of rows without a score do not count
        scored = rng.random(rollouts) < share
        z = np.round(rng.normal(size=rollouts), 1).astype(np.float32)  # some are equal
        out = jax.jit(gating.matched_labels)(labels, z, scored)
        assert out.tolist() == matched_oracle(labels.tolist(), z, scored)


def test_matched_labels_of_the_same_scores_change_nothing():
    z = jnp.asarray(np.random.default_rng(1).normal(size=30).astype(np.float32))
    scored = jnp.asarray(unscored(30, 4, 5))
    labels = gating.labels_from_scores(z, scored, low=0.0, high=0.3)
    np.testing.assert_array_equal(gating.matched_labels(labels, z, scored), labels)


def test_permuted_labels_keep_zone_shares_exactly():
    rng = np.random.default_rng(2)
    permute = jax.jit(gating.permuted_labels)
    moved = 0
    for seed in range(50):
        scored = rng.random(32) < 0.7
        labels = np.where(scored, rng.integers(0, 3, 32), 0).astype(np.int32)
        out = np.asarray(permute(jax.random.key(seed), labels, scored))
        assert counts(out, scored) == counts(labels, scored)
        assert not np.any(out[~scored])
        moved += not np.array_equal(out, labels)
    assert moved >= 49


def test_permuted_labels_are_uniform_over_arrangements():
    """Four scored rows with labels 0, 1, 2, 2 have twelve arrangements: a chi-squared test."""
    labels, scored = jnp.array([2, 0, 1, 0, 2, 0]), jnp.array([True, False, True, False, True, True])
    draws = 24_000
    keys = jax.random.split(jax.random.key(0), draws)
    out = np.asarray(jax.jit(jax.vmap(gating.permuted_labels, in_axes=(0, None, None)))(keys, labels, scored))
    assert not np.any(out[:, [1, 3]])
    seen = collections.Counter(map(tuple, out[:, [0, 2, 4, 5]].tolist()))
    assert set(seen) == set(itertools.permutations([2, 1, 2, 0]))
    expected = draws / 12
    statistic = sum((count - expected) ** 2 / expected for count in seen.values())
    assert statistic < 39.0  # 11 degrees of freedom: exceeded once in twenty thousand


def test_labels_placebo_permutes_the_real_labels():
    g, hack, clean = oracle.example(8, rollouts=64)
    routing, scored = build(hack, clean), unscored(64, 0, 33)
    real = gated(g, routing, scored)
    permuted = [gated(g, routing, scored, key=seed, placebo="labels") for seed in (1, 1, 2)]
    for result in permuted:
        assert counts(result.labels, scored) == counts(real.labels, scored)
        np.testing.assert_array_equal(result.scores, real.scores)
        assert not np.array_equal(result.labels, real.labels)
    np.testing.assert_array_equal(permuted[0].labels, permuted[1].labels)
    assert not np.array_equal(permuted[0].labels, permuted[2].labels)


@pytest.mark.parametrize("placebo", [None, "direction", "direction_matched", "lazy_pairs"])
def test_other_kinds_do_not_depend_on_the_key(placebo):
    g, hack, clean = oracle.example(9)
    routing = build(hack, clean, placebo=placebo)
    assert_same(*(gated(g, routing, unscored(24), key=seed, placebo=placebo) for seed in (0, 1)))


def test_lazy_pairs_gate_as_the_real_one_does():
    """What differs is the pairs, which are the caller's."""
    g, hack, clean = oracle.example(10)
    real = gated(g, build(hack, clean), unscored(24))
    assert_same(gated(g, build(hack, clean, placebo="lazy_pairs"), unscored(24), placebo="lazy_pairs"), real)


def test_gate_stays_on_the_device():
    """The compiled gate holds no callback and no transfer to or from the host."""
    g, hack, clean = oracle.example(0)
    for placebo in ("labels", "direction_matched"):
        routing = build(hack, clean, placebo=placebo)
        source, *_ = make_source(placebo)

        def flag(seen, routing, key, source=source):
            return source.flag(seen, routing, key)

        seen = Seen(None, jnp.ones(24), jnp.ones(24, bool), jnp.asarray(g))
        text = jax.jit(flag).lower(seen, routing, jax.random.key(0)).compile().as_text()
        assert not any(word in text for word in ("callback", "infeed", "outfeed", "send("))
