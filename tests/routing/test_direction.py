"""Direction and bands against a float64 oracle written with loops, algebra, and statistics of the sphere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.arms.sources import SETTINGS, build, make_source
from tests.routing import oracle
from vgrout_jax.config.arms import PLACEBOS
from vgrout_jax.routing import direction as routing

# Compiled, as the training loop uses them.
directions_from_pairs = jax.jit(routing.directions_from_pairs, static_argnames="unit_sides")
leave_one_out_directions = jax.jit(routing.leave_one_out_directions, static_argnames="unit_sides")
make_bands = jax.jit(routing.make_bands, static_argnames=("pool", "band_floor"))
scores, cosines, pair_cosines = map(jax.jit, (routing.scores, routing.cosines, routing.pair_cosines))


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for leaf, expected in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(leaf, expected)


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@pytest.mark.parametrize("unit_sides", [False, True])
def test_direction_equals_oracle(unit_sides):
    _, hack, clean = oracle.example(0)
    v = directions_from_pairs(hack, clean, unit_sides=unit_sides)
    assert v.dtype == jnp.float32
    np.testing.assert_allclose(v, oracle.direction(hack, clean, unit_sides), atol=1e-6)


def test_direction_points_from_clean_to_hack():
    hack = jnp.array([[[3.0, 4.0]], [[3.0, 4.0]]])
    v = directions_from_pairs(hack, jnp.zeros_like(hack), unit_sides=False)
    np.testing.assert_allclose(v, [[0.6, 0.8]], atol=1e-7)


def test_unit_sides_ignores_each_sides_length_and_off_does_not():
    _, hack, clean = oracle.example(1)
    factors = np.random.default_rng(0).uniform(0.1, 10.0, size=(*hack.shape[:2], 1)).astype(np.float32)
    for unit_sides in (True, False):
        before = directions_from_pairs(hack, clean, unit_sides=unit_sides)
        after = directions_from_pairs(hack * factors, clean, unit_sides=unit_sides)
        assert np.allclose(before, after, atol=1e-5) == unit_sides


def test_unit_sides_normalises_per_module():
    hack = jnp.array([[[1.0, 0.0], [0.0, 100.0]]])
    clean = jnp.array([[[0.0, 7.0], [0.0, 0.0]]])
    v = directions_from_pairs(hack, clean, unit_sides=True)
    np.testing.assert_allclose(v, [[0.5**0.5, -(0.5**0.5)], [0.0, 1.0]], atol=1e-6)


@pytest.mark.parametrize("unit_sides", [False, True])
@pytest.mark.parametrize("pairs", [2, 24, 101])
def test_pairs_that_cancel_give_a_zero_row_and_not_noise(unit_sides, pairs):
    """The clean sides are the hack sides of other pairs: the sum is zero in algebra, rounding in float32."""
    hack = np.random.default_rng(pairs).normal(size=(pairs, 8, 32)).astype(np.float32) * 0.3
    clean = np.roll(hack, 1, axis=0)
    clean[:, 0] = 0.0  # one module that does not cancel
    v = directions_from_pairs(hack, clean, unit_sides=unit_sides)
    np.testing.assert_array_equal(v[1:], 0.0)
    np.testing.assert_allclose(np.linalg.norm(v[0]), 1.0, rtol=1e-6)


def test_small_but_real_difference_is_kept():
    common = np.random.default_rng(0).normal(size=(4, 1, 8))
    shift = np.eye(8)[0] * 1e-3
    v = directions_from_pairs(*np.float32([common + shift, common - shift]), unit_sides=False)
    np.testing.assert_allclose(v[0], np.eye(8)[0], atol=1e-3)


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_directions_do_not_depend_on_the_scale_of_gradients(factor):
    _, hack, clean = oracle.example(2)
    factor = np.float32(factor)
    for unit_sides in (False, True):
        for function in (directions_from_pairs, leave_one_out_directions):
            plain = function(hack, clean, unit_sides=unit_sides)
            scaled = function(hack * factor, clean * factor, unit_sides=unit_sides)
            np.testing.assert_allclose(plain, scaled, atol=1e-6)


@pytest.mark.parametrize("unit_sides", [False, True])
def test_leave_one_out_is_the_direction_of_the_other_pairs(unit_sides):
    _, hack, clean = oracle.example(3)
    hack[2] *= 1e5  # a sum that first adds this pair and then takes it away would lose the others
    left_out = leave_one_out_directions(hack, clean, unit_sides=unit_sides)
    for p in range(len(hack)):
        others = np.delete(hack, p, 0), np.delete(clean, p, 0)
        np.testing.assert_allclose(left_out[p], oracle.direction(*others, unit_sides), atol=2e-6)


def test_leave_one_out_needs_two_pairs():
    _, hack, clean = oracle.example(0)
    with pytest.raises(ValueError, match="at least 2 pairs, got 1"):
        leave_one_out_directions(hack[:1], clean[:1], unit_sides=True)
    for placebo in (None, "labels", "lazy_pairs", "direction_matched"):
        with pytest.raises(ValueError, match="leave_one_out"):
            build(hack[:1], clean[:1], placebo=placebo)
    build(hack[:1], clean[:1], placebo="direction")


def test_one_pair_without_leave_one_out():
    g, hack, clean = oracle.example(4)
    built = build(hack[:1], clean[:1], leave_one_out=False)
    expected, _ = oracle.real_scores(g, hack[:1], clean[:1], True, False, "mean_then_band", 0.05)
    np.testing.assert_allclose(scores(g, built.v, built.bands), expected, rtol=1e-5, atol=1e-5)


def test_pair_cosines_take_one_direction_or_one_a_pair():
    _, hack, clean = oracle.example(5)
    v = np.random.default_rng(0).normal(size=hack.shape).astype(np.float32)
    for directions in (v, v[0]):
        tables = oracle.pair_tables(hack, clean, directions if directions.ndim == 3 else [directions] * len(hack))
        for table, expected in zip(pair_cosines(hack, clean, directions), tables, strict=True):
            np.testing.assert_allclose(table, expected, atol=1e-6)


def test_cosines_equal_oracle_are_scale_free_and_zero_for_zero_rows():
    g, hack, _ = oracle.example(6)
    v = hack[0].copy()
    v[2] = 0.0
    expected = [[oracle.cosine(row[k], v[k]) for k in range(len(v))] for row in g]
    for factor in (1.0, 1e-30, 1e30):
        np.testing.assert_allclose(cosines(g * np.float32(factor), v), expected, atol=1e-6)
    table = cosines(g, v)
    assert not np.any(table[3]) and not np.any(table[:, 2]) and table[4, 1] == 0
    assert np.all(np.asarray(table[5, [0, 1, 3, 4]]) != 0)


def test_gradients_are_finite_at_zero_rows():
    g, hack, clean = oracle.example(7)
    hack[:, 3] = clean[:, 3]  # a module whose pairs cancel

    def total(g, hack, clean, pool):
        built = build(hack, clean, pool=pool)
        return jnp.sum(scores(g, built.v, built.bands))

    for pool in routing.POOLS:
        gradients = jax.grad(total, argnums=(0, 1, 2))(g, hack, clean, pool)
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in gradients)
        assert not np.any(gradients[0][3])
        assert np.any(gradients[0][5])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_never_taken_for_a_zero(value):
    g, hack, clean = oracle.example(8)
    g[7, 2, 1], hack[1, 4, 0] = value, value
    assert np.isnan(cosines(g, clean[0])[7, 2])
    for setting in SETTINGS.values():
        built = build(hack, clean, **setting)
        assert np.all(np.isnan(built.v[4])) and bool(built.bands.usable[4])
        assert not np.any(np.isfinite(scores(g, built.v, built.bands)))
        with pytest.raises(ValueError, match="must be finite"):
            routing.check_routing(built, needs_module=True)
        with pytest.raises(ValueError, match="must be finite"):
            routing.check_routing(built, needs_module=False)


def test_bands_by_hand():
    """Five pairs: the 75th percentile of five values is the fourth; of four, 0.75 * 3 = 2.25 places in."""
    hack = jnp.array([[0.1, 0.9], [0.2, 0.9], [0.3, 0.9], [0.5, 0.9], [0.8, 0.9]])
    clean = jnp.array([[0.0, 0.88], [0.1, 0.88], [-0.1, 0.88], [0.2, 0.88], [-0.3, 0.88]])
    v = jnp.eye(2)
    bands = make_bands(hack, clean, v, pool="band_then_mean", band_floor=0.05)
    np.testing.assert_allclose(bands.low_edge, [0.1, 0.88], atol=1e-6)
    np.testing.assert_allclose(bands.high_edge, [0.5, 0.9], atol=1e-6)
    np.testing.assert_allclose(bands.width[0], 0.4, atol=1e-6)
    assert bands.usable.tolist() == [True, False] and int(bands.usable_modules) == 1
    bands = make_bands(hack[:4], clean[:4], v, pool="mean_then_band", band_floor=0.05)
    np.testing.assert_allclose(bands.low_edge, [0.5025] * 2, atol=1e-6)  # .39 .44 .49 .54
    np.testing.assert_allclose(bands.high_edge, [0.625] * 2, atol=1e-6)  # .5 .55 .6 .7
    np.testing.assert_allclose(bands.width, [0.1225] * 2, atol=1e-6)
    assert bands.usable.tolist() == [True, True] and int(bands.usable_modules) == 2


def test_band_floor_widens_one_pool_and_leaves_modules_out_of_the_other():
    """Degenerate bands: hack and clean sides coincide in module 0 and are the wrong way round in module 1."""
    hack = jnp.array([[0.3, 0.1, 0.6], [0.3, 0.1, 0.6]])
    clean = jnp.array([[0.3, 0.6, 0.2], [0.3, 0.6, 0.2]])
    for floor in (0.05, 0.39, 0.41):
        per_module = make_bands(hack, clean, jnp.eye(3), pool="band_then_mean", band_floor=floor)
        assert per_module.usable.tolist() == [False, False, floor < 0.4]
        np.testing.assert_allclose(per_module.width[2], 0.4, atol=1e-6)  # kept as it is, never widened
        pooled = make_bands(hack, clean, jnp.eye(3), pool="mean_then_band", band_floor=floor)
        assert pooled.usable.all()
        np.testing.assert_allclose(pooled.width, floor, rtol=1e-6)
        np.testing.assert_allclose(pooled.low_edge, 1.1 / 3, atol=1e-6)
    wide = make_bands(hack, clean.at[:, 1].set(-0.9), jnp.eye(3), pool="mean_then_band", band_floor=0.05)
    np.testing.assert_allclose(wide.width, 1.4 / 3, atol=1e-6)  # the floor does not touch a wider band


@pytest.mark.parametrize("pool", routing.POOLS)
def test_zero_rows_of_the_direction_are_in_no_pool(pool):
    """Bands and scores with a zero row equal those of a model without that module."""
    g, hack, clean = oracle.example(9)
    hack[:, 2] = clean[:, 2]
    built = build(hack, clean, pool=pool)
    assert not np.any(built.v[2]) and not bool(built.bands.usable[2])
    without = build(np.delete(hack, 2, 1), np.delete(clean, 2, 1), pool=pool)
    assert int(built.bands.usable_modules) == int(without.bands.usable_modules) > 0
    z = scores(g, built.v, built.bands)
    expected = scores(np.delete(g, 2, 1), without.v, without.bands)
    np.testing.assert_allclose(z, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", routing.POOLS)
def test_no_usable_module_is_an_error_for_the_real_direction_only(pool):
    g, hack, _ = oracle.example(10)
    built = build(hack, hack, pool=pool)
    assert int(built.bands.usable_modules) == 0
    np.testing.assert_array_equal(scores(g, built.v, built.bands), 0.0)
    with pytest.raises(ValueError, match="at least 1 usable module, got 0"):
        make_source()[0].check(built)
    for placebo in PLACEBOS:
        make_source(placebo)[0].check(built)


def test_usable_routing_passes_the_check():
    _, hack, clean = oracle.example(10)
    make_source()[0].check(build(hack, clean))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("unit_sides", [False, True])
@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("pool", routing.POOLS)
def test_scores_equal_oracle_for_every_switch(seed, unit_sides, leave_one_out, pool):
    g, hack, clean = oracle.example(seed)
    for floor in (0.05, 0.6):
        options = {
            "unit_sides": unit_sides,
            "leave_one_out": leave_one_out,
            "pool": pool,
            "band_floor": floor,
        }
        built = build(hack, clean, **options)
        expected, usable = oracle.real_scores(g, hack, clean, **options)
        assert int(built.bands.usable_modules) == usable
        if usable:
            z = scores(g, built.v, built.bands)
            np.testing.assert_allclose(z, expected, rtol=2e-5, atol=2e-5)


def test_each_switch_changes_what_it_says_and_nothing_else():
    _, hack, clean = oracle.example(11)
    base = build(hack, clean)
    sides = build(hack, clean, unit_sides=False)
    assert not np.allclose(base.v, sides.v, atol=1e-2)
    left_in = build(hack, clean, leave_one_out=False)
    assert_same(base.v, left_in.v)
    assert float(left_in.bands.high_edge[0]) > float(base.bands.high_edge[0]) + 0.01  # in-sample is inflated
    pooled = build(hack, clean, pool="band_then_mean")
    assert_same(base.v, pooled.v)
    assert np.ptp(base.bands.low_edge) == 0 and np.ptp(pooled.bands.low_edge) > 0
    floor = build(hack, clean, band_floor=0.9)
    assert_same(base.v, floor.v)
    assert_same(base.bands, floor.bands.replace(width=base.bands.width))
    assert not same(base.bands.width, floor.bands.width)


def test_named_settings_differ_in_direction_and_bands():
    _, hack, clean = oracle.example(12)
    literal, calibrated = (build(hack, clean, **SETTINGS[name]) for name in ("literal", "calibrated"))
    assert not np.allclose(literal.v, calibrated.v, atol=1e-2)
    assert np.ptp(literal.bands.width) > 0 and np.ptp(calibrated.bands.width) == 0


def test_placebos_of_the_direction():
    g, hack, clean = oracle.example(13)
    random_v = routing.haar_direction(jax.random.key(0), *hack.shape[1:])
    real = build(hack, clean)
    for placebo in ("labels", "lazy_pairs"):
        assert_same(build(hack, clean, placebo), real)
    random = build(hack, clean, "direction")
    assert_same(random.v, random_v)
    assert random.random is None
    expected, usable = oracle.random_scores(g, hack, clean, np.asarray(random_v), "mean_then_band", 0.05)
    assert int(random.bands.usable_modules) == usable
    np.testing.assert_allclose(scores(g, random.v, random.bands), expected, rtol=2e-5, atol=2e-5)
    matched = build(hack, clean, "direction_matched")
    assert_same(matched.replace(random=None), real)
    assert_same(matched.random, random)
    assert not same(build(hack, clean, "direction", seed=1).v, random.v)


def test_leave_one_out_and_unit_sides_do_not_touch_a_random_direction():
    _, hack, clean = oracle.example(14)
    base = build(hack, clean, "direction", seed=1)
    for change in ({"leave_one_out": False}, {"unit_sides": False}):
        assert_same(build(hack, clean, "direction", seed=1, **change), base)


def test_refresh_keeps_the_random_direction_and_renews_the_real_one():
    _, hack, clean = oracle.example(15)
    for placebo in (None, *PLACEBOS):
        source, *_ = make_source(placebo, seed=2)
        previous, fresh = build(hack, clean, placebo, seed=2), build(clean, hack, placebo, seed=2)
        after = source.renew(previous, fresh)
        assert source.learns_once == (placebo == "direction")
        if placebo == "direction_matched":
            assert_same((after.v, after.bands), (fresh.v, fresh.bands))
            assert_same(after.random, previous.random)
            assert not same(after.random.bands, fresh.random.bands)
        else:
            assert_same(after, fresh)


def test_wrong_options_are_refused():
    _, hack, clean = oracle.example(0)
    with pytest.raises(ValueError, match="gate.pool must be one of"):
        build(hack, clean, pool="mean")
    with pytest.raises(ValueError, match="gate.band_floor must be > 0, got 0"):
        build(hack, clean, band_floor=0.0)


@pytest.mark.parametrize("rank", [2, 4, 16])
def test_haar_rows_are_uniform_on_the_sphere(rank):
    """Moments of one entry: E x = 0, E x^2 = 1/r, E x^4 = 3 / (r (r + 2)); and of two: E x y = 0.

    Normalised uniform draws are far off in the fourth moment.
    """
    rows = 40_000
    x = np.asarray(routing.haar_direction(jax.random.key(rank), rows, rank), np.float64)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1.0, rtol=1e-6)

    def assert_mean(values, expected):
        error = values.std(axis=0) / np.sqrt(rows)
        assert np.all(np.abs(values.mean(axis=0) - expected) < 5 * error + 1e-9)

    assert_mean(x, 0.0)
    assert_mean(x**2, 1 / rank)
    assert_mean((x**4).mean(axis=1), 3 / (rank * (rank + 2)))
    assert_mean(x * np.roll(x, 1, axis=1), 0.0)
    assert_mean(x[1:] * x[:-1], 0.0)  # rows are independent


def test_haar_test_would_catch_a_normalised_uniform_draw(monkeypatch):
    monkeypatch.setattr(
        jax.random, "normal", lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, minval=-1.0)
    )
    for rank in (2, 4, 16):
        with pytest.raises(AssertionError):
            test_haar_rows_are_uniform_on_the_sphere(rank)


def test_haar_direction_follows_its_key():
    first, again, other = (routing.haar_direction(jax.random.key(seed), 3, 4) for seed in (0, 0, 1))
    assert_same(first, again)
    assert not same(first, other)
