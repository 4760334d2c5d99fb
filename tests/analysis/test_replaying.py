"""A replay gives the run's own labels exactly, and other settings as computed by hand from the stored numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.analysis import made_up
from tests.run.test_step_record import make_metrics
from vgrout_jax import replay
from vgrout_jax.analysis import replay_pages, replaying
from vgrout_jax.arms.base import Readings, Seen
from vgrout_jax.arms.compose import make_arm
from vgrout_jax.evaluation.rates import auroc
from vgrout_jax.routing import direction
from vgrout_jax.routing.pairs import load_pairs, pairs_sha256
from vgrout_jax.run import gradients
from vgrout_jax.run.reader import read_workdir
from vgrout_jax.sampling import keys

STEPS, ROWS, LAYERS, RANK = 6, 12, 2, 5
MODULES = 7 * LAYERS
CLOSE = 0.05  # more than bfloat16 moves a score here


def write_run(folder, name="routeV", changes=None, provenance=None, seed=0):
    """A run whose gradients are random and whose labels are the gate's own, on the float32 gradients."""
    config = made_up.config(name, seed, {"gate.refresh_every": 2, "train.steps": STEPS, **(changes or {})})
    pairs = load_pairs(config.direction.pairs, config.direction.tags)
    path = folder / name.replace(" ", "-")
    with made_up.RunWriter(path, config, provenance=provenance or {"pairs_sha256": pairs_sha256(pairs)}) as writer:
        generator = np.random.default_rng(seed)
        common = generator.standard_normal((MODULES, RANK))
        routing = None
        for step in range(STEPS):
            if step % 2 == 0 and not (config.placebo.kind == "direction" and step):
                routing = write_direction(path, step, config, generator, common, routing, len(pairs))
            write_step(writer, step, config, generator, common, routing)
    return path


def write_direction(path, step, config, generator, common, previous, pairs):
    noise = generator.standard_normal((2 * pairs, MODULES, RANK))
    signs = np.repeat([1.0, -1.0], pairs)[:, None, None]
    sides = jnp.asarray(noise + 0.5 * signs * common, jnp.float32)
    source = make_arm(config).source
    fresh = source.learn(Readings(sides))
    routing = fresh if previous is None else source.renew(previous, fresh)
    gradients.save_direction(path, step, routing, sides)
    return routing


def write_step(writer, step, config, generator, common, routing):
    hacks = generator.random(ROWS) < 0.4
    advantages = np.where(generator.random(ROWS) < 0.2, 0.0, generator.choice([-1.0, 1.0], ROWS)).astype(np.float32)
    signs = np.where(hacks, 0.6, -0.2)[:, None, None]
    probe = jnp.asarray(generator.standard_normal((ROWS, MODULES, RANK)) + signs * common, jnp.float32)
    key = keys.label_key(config.seed, step)
    seen = Seen(None, jnp.asarray(advantages), jnp.ones(ROWS, bool), probe)
    decision = make_arm(config).decide(seen, routing, key)
    metrics = make_metrics(probe=probe.astype(jnp.bfloat16), decision=decision)
    gradients.save_step(writer.workdir, step, metrics)
    records = made_up.rollouts(config, generator)
    names = {label: name for name, label in replaying.NAMES.items()}
    rows = []
    for row in range(ROWS):
        record = {**records[row % 8], "advantage": float(advantages[row]), "label": names[int(decision.labels[row])]}
        record["verdict"] = {**record["verdict"], "exploited": bool(hacks[row]), "correct": row % 3 == 0}
        rows.append(record)
    writer.write_rollouts(step, rows)


def replayed(path, **changes):
    run = read_workdir(path)
    fields = {name.replace("__", "."): value for name, value in changes.items()}
    return replaying.replay(run, replay.overridden(run, fields))


def stack(found, name):
    return np.concatenate([getattr(step, name) for step in found.steps])


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """(name of an arm) -> its run, written once; tests leave it as it is."""
    runs = {}

    def get(name="routeV"):
        if name not in runs:
            runs[name] = write_run(tmp_path_factory.mktemp("stored"), name)
        return runs[name]

    return get


KINDS = ("routeV", "placebo direction", "placebo direction_matched", "placebo labels")


@pytest.mark.parametrize("name", KINDS)
def test_the_run_s_own_setting_gives_its_own_labels_exactly(stored, name):
    found = replayed(stored(name))
    assert found.exact and found.changed == {} and len(found.steps) == STEPS
    labels = stack(found, "labels")
    np.testing.assert_array_equal(labels, np.concatenate([step.stored.label for step in found.steps]))
    assert set(labels) == {0, 1, 2}
    assert all(0 < step.rounding < CLOSE for step in found.steps)


@pytest.mark.parametrize("name", KINDS)
def test_computed_again_from_stored_gradients_only_scores_near_a_threshold_can_differ(stored, name, monkeypatch):
    path = stored(name)
    exact = replayed(path)
    monkeypatch.setattr(replaying, "_routing_key", lambda config: object())  # no two settings are the same
    anew = replayed(path)
    assert not anew.exact
    near = np.abs(stack(anew, "scores") - stack(exact, "scores"))
    assert 0 < near.max() < CLOSE
    if name != "placebo labels" and name != "placebo direction_matched":  # there one score moves another's label
        low, high = exact.config.gate.low, exact.config.gate.high
        scores = stack(exact, "scores")
        sure = (np.abs(scores - low) > CLOSE) & (np.abs(scores - high) > CLOSE)
        assert sure.mean() > 0.5
        np.testing.assert_array_equal(stack(anew, "labels")[sure], stack(exact, "labels")[sure])


def test_other_thresholds_label_the_stored_scores(stored):
    known = np.concatenate([gradients.load_step(stored(), step).score for step in range(STEPS)])
    low, high = map(float, np.quantile(known[known != 0], [0.3, 0.6]))
    found = replayed(stored(), gate__low=low, gate__high=high)
    assert found.exact and found.changed == {"gate.low": low, "gate.high": high}
    scores, scored = stack(found, "scores"), stack(found, "scored")
    np.testing.assert_array_equal(scores, np.concatenate([step.stored.score for step in found.steps]))
    expected = np.where(~scored | (scores <= low), 0, np.where(scores >= high, 2, 1))
    np.testing.assert_array_equal(stack(found, "labels"), expected)
    assert set(expected) == {0, 1, 2}


def scores_by_hand(path, step, *, unit_sides, leave_one_out, pool, floor, extraction):
    """Scores of a step in NumPy and float64, from the stored arrays alone."""
    stored, (_, sides) = gradients.load_step(path, step), gradients.load_direction(path, extraction)
    hack, clean = np.split(sides.astype(np.float64), 2)

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    differences = unit(hack) - unit(clean) if unit_sides else hack - clean
    v = unit(differences.mean(axis=0))
    count = len(differences)
    others = [np.delete(differences, p, axis=0).mean(axis=0) for p in range(count)]
    against = unit(np.stack(others)) if leave_one_out else v
    cosines = [np.sum(unit(side) * against, axis=-1) for side in (clean, hack)]
    mine = np.sum(unit(stored.probe.astype(np.float64)) * v, axis=-1)
    if pool == "mean_then_band":
        low, high = (np.percentile(side.mean(axis=1), 75) for side in cosines)
        return (mine.mean(axis=1) - low) / max(high - low, floor)
    low, high = (np.percentile(side, 75, axis=0) for side in cosines)
    usable = high - low >= floor
    return ((mine - low) / (high - low))[:, usable].mean(axis=1)


@pytest.mark.parametrize("pool", ["mean_then_band", "band_then_mean"])
@pytest.mark.parametrize("unit_sides,leave_one_out", [(True, False), (False, True)])
def test_other_directions_and_bands_are_those_computed_by_hand(stored, pool, unit_sides, leave_one_out):
    path = stored()
    fields = {"direction__unit_sides": unit_sides, "gate__leave_one_out": leave_one_out, "gate__band_floor": 0.02}
    found = replayed(path, gate__pool=pool, **fields)
    assert not found.exact and all(step.rounding is None for step in found.steps)
    settings = {"unit_sides": unit_sides, "leave_one_out": leave_one_out, "pool": pool, "floor": 0.02}
    for step in found.steps:
        expected = scores_by_hand(path, step.step, extraction=step.step // 2 * 2, **settings)
        np.testing.assert_allclose(step.scores[step.scored], expected[step.scored], atol=2e-3, rtol=1e-3)


def test_a_slower_refresh_keeps_older_directions(stored):
    path = stored()
    found = replayed(path, gate__refresh_every=4)
    own = {"unit_sides": True, "leave_one_out": True, "pool": "mean_then_band", "floor": 0.05}
    for step, extraction in ((1, 0), (3, 0), (5, 4)):
        expected = scores_by_hand(path, step, extraction=extraction, **own)
        scored = found.steps[step].scored
        np.testing.assert_allclose(found.steps[step].scores[scored], expected[scored], atol=2e-3, rtol=1e-3)
    with pytest.raises(ValueError, match=r"gate\.refresh_every=3 needs the direction of step 3"):
        replayed(path, gate__refresh_every=3)


def test_a_run_with_a_random_direction_can_be_replayed_with_the_first_real_one_alone(stored):
    path = stored("placebo direction")
    with pytest.raises(ValueError, match="needs the direction of step 2.*3 or more for the first alone"):
        replayed(path, placebo__kind=None)
    found = replayed(path, placebo__kind=None, gate__refresh_every=STEPS)
    own = {"unit_sides": True, "leave_one_out": True, "pool": "mean_then_band", "floor": 0.05}
    expected = scores_by_hand(path, 5, extraction=0, **own)
    np.testing.assert_allclose(
        found.steps[5].scores[found.steps[5].scored], expected[found.steps[5].scored], atol=2e-3
    )


@pytest.mark.parametrize("kind", ["labels", "direction", "direction_matched"])
def test_a_run_can_be_replayed_as_each_placebo(stored, kind):
    """A placebo's own run, and the replay of the real run as that placebo, agree up to rounding."""
    real, placebo = stored(), stored(f"placebo {kind}")
    found = replayed(real, placebo__kind=kind, placebo__seed=0)
    assert found.exact == (kind == "labels") and found.config.arm == "placebo"
    np.testing.assert_allclose(stack(found, "scores")[:ROWS], gradients.load_step(placebo, 0).score, atol=CLOSE)
    if kind != "direction":  # as many of each label as the real gate gives
        own = replayed(real)
        for ours, theirs in zip(found.steps, own.steps, strict=True):
            np.testing.assert_array_equal(np.bincount(ours.labels), np.bincount(theirs.labels))


def test_pairs_can_be_left_out_by_their_tags(tmp_path):
    path = write_run(tmp_path, changes={"direction.tags": ()})
    pairs, chosen = load_pairs("builtin:pairs", ()), load_pairs("builtin:pairs", ("lazy",))
    rows = [pairs.index(pair) for pair in chosen]
    assert 1 < len(rows) < len(pairs)
    found = replayed(path, direction__tags=("lazy",))
    _, sides = gradients.load_direction(path, 0)
    others = [len(pairs) + row for row in rows]
    routing = make_arm(found.config).source.learn(Readings(jnp.asarray(sides[[*rows, *others]])))
    expected = direction.cosines(jnp.asarray(gradients.load_step(path, 0).probe), routing.v)
    np.testing.assert_allclose(found.steps[0].cosines, expected, atol=1e-5)


def test_lazy_pairs_were_not_extracted_and_changed_pairs_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"direction\.tags: .* has no gradients of the pair"):
        replayed(write_run(tmp_path / "a"), placebo__kind="lazy_pairs")
    path = write_run(tmp_path / "b", provenance={"pairs_sha256": "other"})
    with pytest.raises(ValueError, match=r"direction\.pairs: builtin:pairs has changed since"):
        replayed(path, direction__tags=())
    assert replayed(path).exact


def test_pinned_arms_and_runs_without_gradients_are_refused(tmp_path):
    for name in ("none", "routeV"):
        with pytest.raises(ValueError, match="has no stored gradients; train a routed arm"):
            replayed(made_up.write_run(tmp_path, name))


def test_rollouts_of_another_run_are_refused(tmp_path):
    path, other = write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1)
    name = "rollouts/step_000003.jsonl.gz"
    (path / name).write_bytes((other / name).read_bytes())
    with pytest.raises(ValueError, match=r"step 3 of .*: labels in rollouts/ and gradients/ differ"):
        replayed(path)


def test_the_map_is_each_module_s_own_auroc(stored):
    found = replayed(stored())
    areas = replay_pages.module_map(found.steps)
    assert areas.shape == (LAYERS, 7)
    chosen = stack(found, "scored") & (np.concatenate([step.stored.advantage for step in found.steps]) > 0)
    hacks, cosines = stack(found, "exploited")[chosen], stack(found, "cosines")[chosen].astype(float)
    for layer, module in ((0, 0), (1, 3)):
        values = cosines[:, 7 * layer + module]
        by_hand = np.mean(values[hacks][:, None] > values[~hacks]) + 0.5 * np.mean(
            values[hacks][:, None] == values[~hacks]
        )
        assert areas[layer, module] == pytest.approx(by_hand)
    assert areas.mean() > 0.6  # the made-up exploits do separate
    whole = replay_pages.score_auroc(found.steps)
    assert whole == pytest.approx(auroc(stack(found, "scores")[chosen].astype(float), hacks))


def test_the_zone_table_counts_every_scored_rollout_once(stored):
    found = replayed(stored())
    table = replay_pages.zone_table(found.steps)
    counts = {row[0]: list(map(int, row[1:])) for row in table.rows}
    assert sum(total for total, *_ in counts.values()) == stack(found, "scored").sum()
    assert all(total == sum(zones) for total, *zones in counts.values())
    advantages = np.concatenate([step.stored.advantage for step in found.steps])
    punished = stack(found, "exploited") & (advantages < 0)
    expected = np.bincount(stack(found, "labels")[punished], minlength=3).tolist()
    assert counts["punished, hack"][1:] == expected
