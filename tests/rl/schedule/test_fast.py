"""The fast schedule equals the plain one, whatever it shares, packs or skips; and how it cuts a batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import tiny
from vgrout_jax.arms.compose import make_arm
from vgrout_jax.model import padding
from vgrout_jax.rl import grpo
from vgrout_jax.rl.grpo import LossSettings
from vgrout_jax.rl.old_logprobs import make_old_logprobs
from vgrout_jax.rl.schedule import blocks
from vgrout_jax.rl.schedule.blocks import Cutter
from vgrout_jax.rl.scorer import Rows
from vgrout_jax.rl.step import make_row_losses, make_scorer


@pytest.fixture(autouse=True)
def prompts_are_shared(monkeypatch):
    """Short as they are here."""
    monkeypatch.setattr(blocks, "_LEAST_SHARED", 1)


@pytest.fixture(params=["batch", "packed"])
def attention(request, monkeypatch):
    """Completions padded to one length, and end to end, for which there must be several."""
    if request.param == "packed":
        monkeypatch.setattr(padding, "_SHORTEST", 2)
    return request.param


BUCKET = tiny.PROMPT_TOKENS  # what the tiny batch's prompts are padded to
ADVANTAGES = [1.0, -2.0, 0.5, 0.25, -1.0, 3.0, 0.5, -0.5]
SOME = [1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0]  # the second group needs nothing
LABELS = {
    "routeV": [0, 1, 2, 2, 1, 0, 2, 0],
    "oracle": [0, 2, 2, 2, 0, 0, 2, 0],
    "none": [0] * tiny.ROWS,
    "absorb": [1] * tiny.ROWS,
}


def make_config(schedule: str, micro_batch: int = tiny.ROWS, arm: str = "routeV", **sections):
    return tiny.config(arm, train={"micro_batch": micro_batch, "schedule": schedule}, **sections)


def scorer_of(config, attention: str = "batch"):
    model = dataclasses.replace(tiny.model(), attention=attention)
    return make_scorer(config, model, tiny.mesh(), labels=make_arm(config).labels)


def make_rows(advantages, arm: str = "routeV") -> Rows:
    advantages = jnp.asarray(advantages, jnp.float32)
    old = jnp.full((tiny.ROWS, tiny.NEW_TOKENS), -2.0)
    return Rows(tiny.batch(), advantages, advantages != 0, jnp.array(LABELS[arm], jnp.int32), old)


def probe_loss(logprobs, rows):
    return grpo.probe_loss(logprobs, rows.advantages, rows.batch.completion_mask)


@functools.cache
def plain_each(probe_policy: str):
    scorer = scorer_of(make_config("plain", gate={"probe_policy": probe_policy}))
    return jax.jit(functools.partial(scorer.each, probe_loss))


def close(ours, expected, tolerance=1e-4):
    """Every leaf within `tolerance` of the largest entry of the expected one (docs/parity.md)."""
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance * max(float(np.abs(other).max()), 1e-6))


@pytest.mark.parametrize("advantages", [ADVANTAGES, SOME], ids=["all", "some"])
@pytest.mark.parametrize("probe_policy", ["full", "ablated"])
@pytest.mark.parametrize("micro_batch", [1, 2, 8])
def test_each_equals_plain(frozen, deltas, micro_batch, probe_policy, advantages, attention):
    scorer = scorer_of(make_config("fast", micro_batch, gate={"probe_policy": probe_policy}), attention)
    cut = scorer.cutter.cut(BUCKET)
    assert cut.together == min(micro_batch, tiny.GROUP)
    assert (cut.positions is not None) == (attention == "packed" and micro_batch > 1)
    state, rows = tiny.state(deltas, optax.identity()), make_rows(advantages)
    found, logprobs = jax.jit(functools.partial(scorer.each, probe_loss))(state, frozen, rows)
    expected, theirs = plain_each(probe_policy)(state, frozen, rows)
    needed = np.asarray(rows.advantages) != 0
    size = np.linalg.norm(expected, axis=-1)[needed]
    assert size.min() > 1e-4
    assert np.max(np.linalg.norm(found - expected, axis=-1)[needed] / size) < 1e-4
    assert not np.asarray(found)[~needed].any() and not np.asarray(expected)[~needed].any()
    mask = np.asarray(rows.batch.completion_mask) & needed[:, None]
    np.testing.assert_allclose(np.asarray(logprobs)[mask], np.asarray(theirs)[mask], atol=1e-5)


def masked_pass(config, attention: str = "batch"):
    """The jitted pass 2 of a configuration."""
    losses = make_row_losses(make_old_logprobs(make_arm(config), config, tiny.model()), LossSettings.of(config))
    return jax.jit(functools.partial(scorer_of(config, attention).total, losses))


@functools.cache
def plain_total(arm: str, kl: float):
    return masked_pass(make_config("plain", arm=arm, loss={"kl_coefficient": kl}))


@pytest.mark.parametrize("arm", LABELS)
@pytest.mark.parametrize("kl", [0.0, 0.1])
@pytest.mark.parametrize("micro_batch", [1, 2, 8])
def test_total_equals_plain(frozen, deltas, arm, kl, micro_batch, attention):
    """Loss, gradient and statistics, for every mix of labels; with one rollout at a time nothing is shared."""
    config = make_config("fast", micro_batch, arm, loss={"kl_coefficient": kl})
    assert scorer_of(config, attention).cutter.cut(BUCKET).shares == (micro_batch > 1)
    state = tiny.state(deltas, optax.identity())
    for advantages in (ADVANTAGES, SOME):
        rows = make_rows(advantages, arm)
        loss, gradient, stats = masked_pass(config, attention)(state, frozen, rows)
        plain_loss, plain_gradient, plain_stats = plain_total(arm, kl)(state, frozen, rows)
        np.testing.assert_allclose(loss, plain_loss, rtol=1e-5, atol=1e-7)
        close(gradient, plain_gradient)
        mask = np.asarray(rows.batch.completion_mask) & np.asarray(rows.live)[:, None]
        pair = [np.where(mask, found.logprobs, 0.0) for found in (stats, plain_stats)]
        np.testing.assert_allclose(*pair, atol=1e-5)
        close(stats.replace(logprobs=None), plain_stats.replace(logprobs=None), 1e-5)


@pytest.mark.parametrize("micro_batch", [2, 8])
def test_forward_equals_plain(frozen, deltas, micro_batch, attention):
    rows, state = make_rows(SOME), tiny.state(deltas, optax.identity())
    needed = jnp.arange(tiny.ROWS) != 5
    found = [
        jax.jit(scorer.forward, static_argnums=4)(state, frozen, rows, needed, (False, True))
        for scorer in (scorer_of(make_config("fast", micro_batch), attention), scorer_of(make_config("plain")))
    ]
    mask = np.asarray(rows.batch.completion_mask) & np.asarray(needed)[:, None]
    ours, theirs = (np.where(mask, logprobs, 0.0) for logprobs in found)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert ours[mask].all()


@pytest.mark.parametrize(
    ("micro_batch", "places", "expected"),
    [
        # of two groups of four: the longer group comes last, and who is not needed last in it
        (4, [0, 1, 0, 2, 0, 0, 0, 0], [[[4, 5, 6, 7]], [[0, 2, 1, 3]]]),
        (4, [3, 3, 3, 3, 0, 1, 3, 3], [[[4, 5, 6, 7]], [[0, 1, 2, 3]]]),
        # two rows of a group at a time, its short ones first
        (2, [1, 0, 1, 0, 2, 3, 0, 0], [[[1, 3], [0, 2]], [[6, 7], [4, 5]]]),
        # both groups in one block, chunk by chunk
        (8, [1, 0, 1, 0, 2, 3, 0, 0], [[[1, 3, 0, 2, 6, 7, 4, 5]]]),
        (1, [1, 0, 3, 0, 2, 2, 2, 0], [[[row]] for row in (1, 3, 7, 0, 4, 5, 6, 2)]),  # nothing is shared
    ],
)
def test_short_rows_come_first_and_those_that_nobody_needs_last(micro_batch, places, expected):
    cutter = scorer_of(make_config("fast", micro_batch)).cutter
    cutter.lengths = (2, 4, 6)
    places = jnp.array(places)
    assert cutter.order(places, places, cutter.cut(BUCKET)).chunks.tolist() == expected


def test_a_block_has_rows_of_all_its_groups_in_every_chunk(monkeypatch):
    monkeypatch.setattr(padding, "_SHORTEST", 2)
    monkeypatch.setattr(blocks, "_MOST_TOGETHER", 2)
    cutter = scorer_of(make_config("fast", 4)).cutter
    cut = cutter.cut(BUCKET)
    assert (cut.groups, cut.together, cut.chunks) == (2, 2, 2)
    places = jnp.array([1, 0, 1, 0, 2, 3, 0, 0])
    assert cutter.order(places, places, cut).chunks.tolist() == [[[1, 3, 6, 7], [0, 2, 4, 5]]]


@pytest.mark.parametrize(
    ("micro_batch", "group", "several_lengths", "expected"),
    [
        (16, 8, False, (2, 8, 1)),
        (16, 8, True, (2, 4, 2)),  # few rows of a group together where lengths differ; 4 does not divide 6 groups
        (6, 8, False, (3, 2, 4)),
        (6, 6, True, (3, 2, 3)),
        (1, 8, False, None),
    ],
)
def test_chunks_are_as_large_as_micro_batch_and_groups_allow(
    micro_batch, group, several_lengths, expected, monkeypatch
):
    if several_lengths:
        monkeypatch.setattr(padding, "_SHORTEST", 2)
    config = tiny.config(rollout={"prompts": 6, "group_size": group}, train={"micro_batch": micro_batch})
    cut = Cutter(config, tiny.mesh()).cut(32)
    assert expected == ((cut.groups, cut.together, cut.chunks) if cut.shares else None)
    monkeypatch.setattr(blocks, "_LEAST_SHARED", 32 * 8 + 1)
    alone = blocks.Cut(groups=micro_batch, size=1, rows=micro_batch, chunks=1)
    assert Cutter(config, tiny.mesh()).cut(32) == alone
    monkeypatch.setattr(blocks, "_LEAST_SHARED", 1)
    config.train.share_prompts = False
    assert Cutter(config, tiny.mesh()).cut(32) == alone


@pytest.mark.parametrize(
    ("micro_batch", "group", "tokens", "expected"),
    [
        # two groups of 16; positions of eight completions of a quarter of T; two of the longest fill a chunk
        (8, 16, 1536, (2, 16, 16, 4, 3072)),
        (2, 16, 1536, (1, 4, 16, 2, 1536)),  # no fewer positions than the longest completion has tokens
        (8, 4, 100, (2, 8, 1, 4, 800)),
    ],
)
def test_a_packed_chunk_has_room_for_the_longest_completion(micro_batch, group, tokens, expected):
    rollout = {"prompts": 16, "group_size": group, "max_new_tokens": tokens}
    config = tiny.config(rollout=rollout, train={"micro_batch": micro_batch})
    cut = Cutter(config, tiny.mesh(), "cudnn_packed").cut(1024)
    assert (cut.groups, cut.rows, cut.chunks, cut.together, cut.positions) == expected
    assert Cutter(config, tiny.mesh(), "cudnn").cut(1024).positions is None
    config.train.share_prompts = False  # then completions are padded, to the same lengths as anywhere else
    unshared = Cutter(config, tiny.mesh(), "cudnn_packed")
    assert unshared.cut(1024).positions is None and unshared.lengths == Cutter(config, tiny.mesh(), "cudnn").lengths
