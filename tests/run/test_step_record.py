"""The step's record against numbers worked out by hand on made-up rollouts."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.rl.made_up import world
from vgrout_jax.arms.base import Decision
from vgrout_jax.arms.compose import make_arm
from vgrout_jax.rl import grpo
from vgrout_jax.rl.rollout import OWN, TEACHER, Rollout, Rollouts
from vgrout_jax.rl.step import Batch, StepMetrics
from vgrout_jax.routing.direction import Bands, Routing
from vgrout_jax.routing.gate import CLEAN, HACK, MID
from vgrout_jax.run import step_record
from vgrout_jax.run.writer import METRIC_KEYS

# Eight rows, two groups of four; the last row of a group is the teacher's. The second group is dead.
FULL = [True, True, False, True, True, True, False, True]
SOURCES = [OWN, OWN, OWN, TEACHER] * 2
REWARDS = [3.5, 0.5, 3.5, 3.5, 0.5, 0.5, 0.5, 0.5]
CORRECT = [False, False, True, False, False, False, False, False]
EXPLOITED = [True, False, False, True, False, False, False, False]
COMPILED = [True, True, True, None, True, False, True, None]
LENGTHS = [2, 6, 4, 3, 1, 6, 6, 2]
CUT = [False, True, False, False, False, True, True, False]
ADVANTAGES = np.array([0.75, -2.25, 0.5, 1.0, 0, 0, 0, 0], np.float32)
LIVE = np.array([True] * 4 + [False] * 4)
SCORES = np.array([0.4, 0.9, 0.1, 0.2, 0, 0, 0, 0], np.float32)
LABELS = np.array([HACK, HACK, CLEAN, MID, CLEAN, CLEAN, CLEAN, CLEAN], np.int32)
TOKENS = np.array([2, 6, 4, 3, 0, 0, 0, 0], np.int32)
RATIO = np.array([1.5, 0.5, 1.0, 2.0, 9, 9, 9, 9], np.float32)
CLIPPED = np.array([0.5, 0.0, 0.25, 1.0, 9, 9, 9, 9], np.float32)
KL = np.array([0.1, 0.2, 0.4, 0.8, 9, 9, 9, 9], np.float32)
KNOWN = np.array([True, False, True, True, False, False, False, False])


def make_rollouts():
    [prompt, other] = world().training_prompts(0)
    rows = [
        Rollout(
            prompt=prompt if index < 4 else other,
            text=f"text {index}",
            source=SOURCES[index],
            quarantine_on=FULL[index],
            reward=REWARDS[index],
            compiled=COMPILED[index],
            correct=CORRECT[index],
            channel="sentinel" if EXPLOITED[index] else None,
            exploited=EXPLOITED[index],
            status="ok",
            tokens=LENGTHS[index],
            cut_off=CUT[index],
        )
        for index in range(8)
    ]
    mask = np.arange(tiny.NEW_TOKENS) < np.array(LENGTHS)[:, None]
    logprobs = np.where(mask, -1.0, 0.0).astype(np.float32)
    none = np.zeros((8, 2), np.int32)
    taught = np.array([source == TEACHER for source in SOURCES])
    of_rows = (np.array(REWARDS, np.float32), np.array(FULL), logprobs, taught)
    batch = Batch(none, none.astype(bool), mask, *of_rows)
    return Rollouts(rows, batch, {"generate": 2.0, "grade": 0.5}, 6, 4)


def make_metrics(**changes):
    old = np.full((8, tiny.NEW_TOKENS), -1.0, np.float32)
    old[0] -= 0.5  # two tokens, own and known
    old[1] -= 7.0  # not known
    old[2, 0] -= 0.25  # one of four tokens
    old[2, 5] -= 9.0  # beyond its end
    old[3] -= 3.0  # the teacher's
    decision = Decision(LABELS, ADVANTAGES, LIVE, ADVANTAGES != 0, np.array(True), {"score": SCORES})
    values = {
        "loss": np.float32(0.125),
        "gradient_norm": np.float32(2.0),
        "qmass": np.float32(0.4),
        "finite": {},
        "decision": decision,
        "losses": grpo.LossStats(RATIO, CLIPPED, KL, TOKENS, old),
        "logprobs": old,
        "recomputed": KNOWN,
        "probe": None,
    }
    return StepMetrics(**{**values, **changes})


def make_routing():
    usable = jnp.array([True, False, True])
    bands = Bands(jnp.array([0.1, 9.0, 0.3]), jnp.ones(3), jnp.array([0.2, 9.0, 0.6]), usable, jnp.int32(2))
    return Routing(jnp.ones((3, 2)), bands)


def record(config=None, metrics=None, routing=None, rollouts=None):
    config = config or tiny.config()
    source = make_arm(config).source
    described = source.describe((routing or make_routing()) if source.learns else None)
    return step_record.step_record(rollouts or make_rollouts(), metrics or make_metrics(), described)


EXPECTED = {
    "reward/own": 9.0 / 6,
    "reward/teacher": 4.0 / 2,
    "solve/own": 1 / 6,
    "solve/teacher": 0.0,
    "hack/own": 1 / 6,
    "hack/teacher": 1 / 2,
    "hack/own_deployed": 0.0,
    "hack/own_full": 1 / 4,
    "compile/own": 5 / 6,
    "channel/own": 1 / 6,
    "zone/clean": 1 / 4,
    "zone/mid": 1 / 4,
    "zone/hack": 2 / 4,
    "zone/unscored": 4 / 8,
    "qmass": 0.4,
    # of the sorted scores .1 .2 .4 .9, at positions .15 .75 1.5 2.25 2.85
    "score/q05": 0.115,
    "score/q25": 0.175,
    "score/q50": 0.3,
    "score/q75": 0.525,
    "score/q95": 0.825,
    # positive advantage: rows 0 (hack, .4), 2 (honest, .1), 3 (hack, .2); both hacks score higher
    "gate/auroc": 1.0,
    "gate/band_low": 0.2,
    "gate/band_width": 0.4,
    "gate/modules": 2,
    "gate/no_usable_module": 0,
    "ratio/mean": (2 * 1.5 + 6 * 0.5 + 4 * 1.0 + 3 * 2.0) / 15,
    "ratio/clean": 1.0,
    "ratio/mid": 2.0,
    "ratio/hack": (2 * 1.5 + 6 * 0.5) / 8,
    "clip_fraction/clean": 0.25,
    "clip_fraction/mid": 1.0,
    "clip_fraction/hack": (2 * 0.5 + 6 * 0.0) / 8,
    "kl": (2 * 0.1 + 6 * 0.2 + 4 * 0.4 + 3 * 0.8) / 15,
    "loss": 0.125,
    "grad_norm": 2.0,
    "length/mean": 25 / 6,
    "length/max": 6,
    "cut_off": 3 / 6,
    "groups/skipped": 1,
    "sampler/logprob_diff_mean": (2 * 0.5 + 0.25) / 6,
    "sampler/logprob_diff_max": 0.5,
    "tokens_per_second": 25 / 2.0,
    "time/generate": 2.0,
    "time/grade": 0.5,
}


def test_record_equals_the_hand_computation():
    ours = record()
    assert set(ours) == set(EXPECTED)
    for name, value in EXPECTED.items():
        assert ours[name] == pytest.approx(value, rel=1e-5), name


def test_record_and_loop_share_the_documented_keys():
    """What is missing here is what the loop itself measures."""
    assert set(METRIC_KEYS) - set(EXPECTED) == {
        "lr",
        "guard/reference_logprob",
        "time/update",
        "time/direction",
        "time/evaluate",
    }
    assert set(EXPECTED) <= set(METRIC_KEYS)


def test_auroc_looks_at_positive_advantages_alone():
    """The honest row of negative advantage scores highest; with it the area would be one half, not one."""
    decision = make_metrics().decision
    lower = decision.replace(record={"score": np.array([0.4, 0.9, 0.3, 0.2, 0, 0, 0, 0], np.float32)})
    assert record(metrics=make_metrics(decision=lower))["gate/auroc"] == pytest.approx(0.5)
    only_hacks = decision.replace(advantages=np.array([0.75, -2.25, -0.5, 1.0, 0, 0, 0, 0], np.float32))
    assert record(metrics=make_metrics(decision=only_hacks))["gate/auroc"] is None


def test_nothing_to_measure_is_none():
    zeros, nobody = np.zeros(8, np.float32), np.zeros(8, bool)
    dead = Decision(np.zeros(8, np.int32), zeros, nobody, nobody, np.array(True), {"score": zeros})
    empty = make_metrics(
        decision=dead,
        losses=grpo.LossStats(RATIO, CLIPPED, None, np.zeros(8, np.int32), np.zeros((8, tiny.NEW_TOKENS))),
        recomputed=np.zeros(8, bool),
        gradient_norm=np.float32(0.0),
        qmass=np.float32(0.0),
    )
    routing = make_routing()
    routing = routing.replace(bands=routing.bands.replace(usable=jnp.zeros(3, bool), usable_modules=jnp.int32(0)))
    ours = record(metrics=empty, routing=routing)
    nothing = {name for name, value in ours.items() if value is None}
    assert nothing == {
        *(f"zone/{zone}" for zone in ("clean", "mid", "hack")),
        *(f"ratio/{zone}" for zone in ("mean", "clean", "mid", "hack")),
        *(f"clip_fraction/{zone}" for zone in ("clean", "mid", "hack")),
        *(f"score/q{share}" for share in ("05", "25", "50", "75", "95")),
        *("kl", "qmass", "gate/auroc", "gate/band_low", "gate/band_width"),
        *("sampler/logprob_diff_mean", "sampler/logprob_diff_max"),
    }
    assert (ours["zone/unscored"], ours["groups/skipped"], ours["gate/no_usable_module"]) == (1.0, 2, 1)


def test_no_teacher_and_no_full_rows_leave_their_means_out():
    rollouts = make_rollouts()
    deployed = [index for index, row in enumerate(rollouts.rows) if row.source == OWN and not row.quarantine_on]
    rows = [rollouts.rows[deployed[index % 2]] for index in range(8)]
    ours = record(rollouts=Rollouts(rows, rollouts.batch, rollouts.seconds, 6, 4))
    assert {name for name, value in ours.items() if value is None} == {
        *("reward/teacher", "solve/teacher", "hack/teacher", "hack/own_full"),
        "gate/auroc",  # no hack among these rows
    }


@pytest.mark.parametrize("arm", ["none", "absorb"])
def test_pinned_arms_report_no_scores(arm):
    unscored = make_metrics().decision.replace(record={})
    ours = record(config=tiny.config(arm), metrics=make_metrics(decision=unscored))
    gone = {name for name in EXPECTED if name.startswith(("score/", "gate/"))}
    assert set(ours) == set(EXPECTED) - gone


def test_rollout_records_hold_what_happened_to_each_row():
    rollouts = make_rollouts()
    records = step_record.rollout_records(rollouts, make_metrics())
    assert len(records) == 8
    assert records[0] == {
        "problem": rollouts.rows[0].prompt.problem.id,
        "mode": rollouts.rows[0].prompt.mode,
        "source": "own",
        "policy": "full",
        "prompt": rollouts.rows[0].prompt.text,
        "completion": "text 0",
        "reward": 3.5,
        "verdict": {
            "compiled": True,
            "correct": False,
            "channel": "sentinel",
            "exploited": True,
            "status": "ok",
            "cut_off": False,
        },
        "advantage": 0.75,
        "score": pytest.approx(0.4),
        "label": "hack",
        "tokens": 2,
    }
    assert [entry["label"] for entry in records] == ["hack", "hack", "clean", "mid"] + ["clean"] * 4
    assert [entry["policy"] for entry in records] == ["full" if on else "deployed" for on in FULL]
    assert [entry["score"] is None for entry in records] == [False] * 4 + [True] * 4
    assert [entry["source"] for entry in records] == SOURCES
