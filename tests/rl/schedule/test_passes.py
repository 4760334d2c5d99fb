"""The passes over packs of rollouts that share their prompt, against every rollout by itself."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import tiny
from vgrout_jax.model import lora2r, padding
from vgrout_jax.model.logprobs import completion_logprobs
from vgrout_jax.rl.schedule import blocks
from vgrout_jax.rl.schedule.blocks import Cutter
from vgrout_jax.rl.schedule.passes import Passes, Row
from vgrout_jax.routing import probe


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


def make_passes(micro_batch: int, attention: str = "batch", **sections) -> Passes:
    config = tiny.config(train={"micro_batch": micro_batch}, **sections)
    return Passes(config, dataclasses.replace(tiny.model(), attention=attention), tiny.mesh())


def make_row(advantages) -> Row:
    return Row(tiny.batch(), jnp.asarray(advantages, jnp.float32), jnp.asarray(advantages) != 0)


BUCKET = tiny.PROMPT_TOKENS  # what the tiny batch's prompts are padded to
ADVANTAGES = [1.0, -2.0, 0.5, 0.25, -1.0, 3.0, 0.5, -0.5]


@functools.cache
def alone(probe_policy: str):
    """(frozen, deltas, row) -> the probe's gradients, each rollout with a prompt of its own."""

    def gradients(frozen, deltas, row):
        route = (lora2r.full_route if probe_policy == "full" else lora2r.ablated_route)(tiny.ROWS)

        def loss(scale):
            logprobs = completion_logprobs(
                tiny.model(),
                frozen.base,
                row.batch.tokens,
                row.batch.valid,
                completion_length=tiny.NEW_TOKENS,
                chunk=64,
                adapter=lora2r.Adapter(frozen.init, deltas),
                route=route,
                scale=scale,
            )
            kept = jnp.where(row.batch.completion_mask, logprobs, 0.0)
            return -jnp.sum(row.advantages * kept.sum(1)), logprobs

        ones = lora2r.probe_ones(tiny.model().num_layers, tiny.ROWS, tiny.RANK)
        found, logprobs = jax.grad(loss, has_aux=True)(ones)
        return probe.deployed_half(found, lora2r.MODULES), logprobs

    return jax.jit(gradients)


@pytest.mark.parametrize("probe_policy", ["full", "ablated"])
@pytest.mark.parametrize("micro_batch", [1, 2, 8])
def test_the_probe_of_a_rollout_is_its_own_whoever_shares_its_prompt(
    frozen, deltas, micro_batch, probe_policy, attention
):
    passes, row = make_passes(micro_batch, attention, gate={"probe_policy": probe_policy}), make_row(ADVANTAGES)
    cut = passes.cutter.cut(BUCKET)
    assert cut.together == min(micro_batch, tiny.GROUP)
    assert (cut.positions is not None) == (attention == "packed" and micro_batch > 1)
    state = tiny.state(deltas, optax.identity())
    found, logprobs = jax.jit(passes.read_probe)(state, frozen, row)
    expected, theirs = alone(probe_policy)(frozen, deltas, row)
    size = np.linalg.norm(expected, axis=-1)
    assert size.min() > 1e-4
    assert np.max(np.linalg.norm(found - expected, axis=-1) / size) < 1e-4
    mask = row.batch.completion_mask
    np.testing.assert_allclose(np.asarray(logprobs)[mask], np.asarray(theirs)[mask], atol=1e-5)


def test_a_rollout_without_advantage_reads_zero(frozen, deltas, attention):
    advantages = [1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0]  # the second group needs nothing
    state = tiny.state(deltas, optax.identity())
    found, logprobs = jax.jit(make_passes(4, attention).read_probe)(state, frozen, make_row(advantages))
    expected, _ = alone("ablated")(frozen, deltas, make_row(advantages))
    np.testing.assert_allclose(found, expected, atol=1e-4 * float(np.abs(expected).max()))
    assert not np.asarray(found)[[1, 3, 4, 5, 6, 7]].any() and not np.asarray(logprobs)[4:].any()


def make_labels(kind: str):
    """All labels in both groups; pinned arms have one."""
    return jnp.array([0, 1, 2, 2, 1, 0, 2, 0], jnp.int32) if kind == "route" else jnp.zeros(tiny.ROWS, jnp.int32)


OLD = jnp.full((tiny.ROWS, tiny.NEW_TOKENS), -2.0)


def masked_passes(kind: str, micro_batch: int, attention: str = "batch") -> Passes:
    return make_passes(micro_batch, attention, gate={"kind": kind}, loss={"kl_coefficient": 0.1})


@functools.cache
def read_whole(kind: str):
    """(frozen, deltas, row) -> what the masked pass gives where no rollout shares anything, one at a time."""

    def masked(frozen, deltas, row):
        passes = masked_passes(kind, 1)
        assert not passes.cutter.cut(BUCKET).shares
        return passes.masked_gradient(tiny.state(deltas, optax.identity()), frozen, row, make_labels(kind), OLD)

    return jax.jit(masked)


@pytest.mark.parametrize("kind", ["route", "clean", "mid"])
@pytest.mark.parametrize("micro_batch", [2, 8])
def test_sharing_prompts_changes_no_masked_gradient(frozen, deltas, kind, micro_batch, attention):
    """Held against rollouts that are read whole, which is held against solo gradients."""
    row, passes = make_row(ADVANTAGES), masked_passes(kind, micro_batch, attention)
    assert passes.cutter.cut(BUCKET).shares
    state = tiny.state(deltas, optax.identity())
    loss, gradient, stats = jax.jit(passes.masked_gradient)(state, frozen, row, make_labels(kind), OLD)
    their_loss, theirs, their_stats = read_whole(kind)(frozen, deltas, row)
    np.testing.assert_allclose(loss, their_loss, rtol=1e-5)
    np.testing.assert_allclose(stats.kl, their_stats.kl, atol=1e-5)
    for ours, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-4 * max(float(np.abs(other).max()), 1e-6))


@pytest.mark.parametrize("micro_batch", [2, 8])
def test_sharing_prompts_changes_not_what_sampled(frozen, deltas, micro_batch, attention):
    row, state = make_row(ADVANTAGES), tiny.state(deltas, optax.identity())
    mask, found = row.batch.completion_mask, []
    for passes in (make_passes(micro_batch, attention), make_passes(1)):
        found.append(jax.jit(passes.sampled_logprobs)(state, frozen, row.batch, row.live))
    ours, theirs = (np.asarray(logprobs)[mask] for logprobs in found)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


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
    cutter = make_passes(micro_batch).cutter
    cutter.lengths = (2, 4, 6)
    places = jnp.array(places)
    assert cutter.order(places, places, cutter.cut(BUCKET)).chunks.tolist() == expected


def test_a_block_has_rows_of_all_its_groups_in_every_chunk(monkeypatch):
    monkeypatch.setattr(padding, "_SHORTEST", 2)
    monkeypatch.setattr(blocks, "_MOST_TOGETHER", 2)
    cutter = make_passes(4).cutter
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
