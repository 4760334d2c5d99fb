"""A step's rows: layout of the groups, the teacher's rows, keys, grading, and the arrays of the batch."""

from collections import Counter

import jax
import numpy as np
import pytest

from tests import tiny
from tests.rl.made_up import TOKENIZER, FakeGrader, generator, teacher_row, world
from vgrout_jax.env.modes import GT_ONLY, TRAINING_NAMES
from vgrout_jax.model.policy import Frozen
from vgrout_jax.rl.rollout import OWN, TEACHER, batch_shapes, collect, deployed_rows, plan_rows, teacher_tokens
from vgrout_jax.sampling import keys

EOS = TOKENIZER.eos_ids[0]
POLICY = tiny.moved(tiny.frozen(tiny.model()).init, 0.0)


def taught(mode_of):
    """Three rows for every training problem, in its own mode, and one in another."""
    rows = []
    for identifier, mode in mode_of.items():
        if identifier.startswith("t"):
            rows += [teacher_row(identifier, mode, f"taught {identifier} {n}") for n in range(3)]
            rows += [teacher_row(identifier, "exit_code", f"wrong mode {identifier}")]
    return rows


def planned(made, step=0):
    return plan_rows(made.config, made, step)


def collected(made, step=0, **changes):
    grader, source = FakeGrader(), generator(made.config, **changes)
    frozen = Frozen({}, POLICY)
    rollouts = collect(made.config, source, grader, planned(made, step), frozen=frozen, deltas=POLICY)
    return rollouts, grader, source


@pytest.mark.parametrize(
    "group,share,per_prompt,layout",
    [
        (4, 0.5, 0, "FFDD"),
        (4, 0.5, 1, "FDDT"),  # of three own rows one and a half, rounded up
        (8, 0.5, 2, "FFFDDDTT"),
        (4, 0.0, 1, "FFFT"),
        (4, 1.0, 1, "DDDT"),
        (5, 0.25, 0, "FFFFD"),
    ],
)
def test_groups_hold_full_then_deployed_then_teacher_rows(group, share, per_prompt, layout):
    rollout = {"prompts": 3, "group_size": group, "deployed_frac": share}
    plan = planned(world(rows=taught, rollout=rollout, teacher={"per_prompt": per_prompt}))
    for start in range(0, 3 * group, group):
        window = slice(start, start + group)
        assert len({id(prompt) for prompt in plan.prompts[window]}) == 1
        letters = zip(plan.teacher[window], plan.quarantine_on[window], strict=True)
        assert "".join("T" if row else "F" if on else "D" for row, on in letters) == layout
        assert all(plan.quarantine_on[start + place] for place, kind in enumerate(layout) if kind == "T")
    assert len(plan.prompts) == len(plan.replicas) == 3 * group
    assert deployed_rows(tiny.config(rollout={"deployed_frac": share}), group - per_prompt) == layout.count("D")


def test_teacher_rows_join_groups_of_their_own_problem_and_mode_only():
    made = world(rows=taught, rollout={"prompts": 8}, teacher={"per_prompt": 2}, env={"unhackable_frac": 0.5})
    seen = Counter()
    for step in range(6):
        plan = planned(made, step)
        for prompt, row in zip(plan.prompts, plan.teacher, strict=True):
            if row is not None:
                assert (row.problem_id, row.mode) == (prompt.problem.id, prompt.mode)
            seen[prompt.mode == GT_ONLY, row is not None] += 1
        drawn = [row.completion for row in plan.teacher if row is not None]
        assert len(set(drawn)) == len(drawn)  # different rows within a group
    assert seen[True, True] == 0 and seen[False, True] == seen[False, False] > 0


def test_teacher_rows_end_at_their_step():
    made = world(rows=taught, teacher={"per_prompt": 1, "off_step": 2})
    used = [any(row is not None for row in planned(made, step).teacher) for step in range(4)]
    assert used == [True, True, False, False]


def test_teacher_draw_is_a_function_of_the_step():
    made = world(rows=taught, rollout={"prompts": 8}, teacher={"per_prompt": 1})

    def drawn(step):
        return [row.completion for row in planned(made, step).teacher if row is not None]

    forwards = [drawn(step) for step in range(10)]
    assert [drawn(step) for step in reversed(range(10))] == forwards[::-1]
    numbers = [[text.rsplit(" ", 1)[1] for text in step] for step in forwards]
    assert all(set(group) == {"0", "1", "2"} for group in zip(*numbers, strict=True))  # another one every step


def test_missing_teacher_rows_are_own_rows():
    made = world(
        rows=lambda mode_of: [teacher_row("t0", mode_of["t0"])],
        rollout={"prompts": 8},
        teacher={"per_prompt": 2},
    )
    counts = Counter()
    plan = planned(made)
    for prompt, row in zip(plan.prompts, plan.teacher, strict=True):
        counts[prompt.problem.id] += row is not None
    assert counts == {f"t{i}": int(i == 0) for i in range(8)}


@pytest.mark.parametrize("matches", [True, False])
def test_stored_ids_are_used_only_with_their_own_tokenizer(matches):
    sha256 = TOKENIZER.sha256 if matches else "0" * 64
    row = teacher_row("t0", "run_tests", "a text", token_ids=(50, 51, EOS, 52), tokenizer_sha256=sha256)
    ids = teacher_tokens(row, TOKENIZER)
    assert ids == ([50, 51, EOS] if matches else [*TOKENIZER.encode("a text"), EOS])


def test_text_that_spells_out_an_end_is_cut_there():
    row = teacher_row("t0", "run_tests", "one<|im_end|>two")
    assert teacher_tokens(row, TOKENIZER) == [*TOKENIZER.encode("one"), EOS]


def test_long_teacher_completions_are_cut_at_the_length_limit():
    def rows(mode_of):
        ids = tuple(range(40, 60))
        return [teacher_row(i, mode, token_ids=ids, tokenizer_sha256=TOKENIZER.sha256) for i, mode in mode_of.items()]

    made = world(rows=rows, rollout={"max_new_tokens": 7}, teacher={"per_prompt": 1})
    rollouts, _, _ = collected(made)
    places = [index for index, row in enumerate(rollouts.rows) if row.source == TEACHER]
    assert len(places) == tiny.PROMPTS
    for index in places:
        row = rollouts.rows[index]
        assert rollouts.batch.completion_mask[index].all()
        assert rollouts.batch.tokens[index, -7:].tolist() == list(range(40, 47))
        assert row.tokens == 7 and row.cut_off


def test_repeated_problems_get_keys_of_their_own():
    made = world(2, rollout={"prompts": 4}, env={"modes": ("run_tests", "sentinel"), "unhackable_frac": 0.5})
    plan = planned(made)
    by_problem = {}
    for prompt, replica in zip(plan.prompts, plan.replicas, strict=True):
        by_problem.setdefault(prompt.problem.id, []).append(replica)
    assert {len(replicas) for replicas in by_problem.values()} == {2 * tiny.GROUP}
    assert all(sorted(replicas) == list(range(2 * tiny.GROUP)) for replicas in by_problem.values())
    _, _, source = collected(made)
    assert len(np.unique(jax.random.key_data(source.calls[0]["keys"]), axis=0)) == 4 * tiny.GROUP


def test_keys_are_those_of_seed_step_problem_and_replica():
    made = world(rows=taught, teacher={"per_prompt": 1})
    made.config.seed = 5
    _, _, source = collected(made, step=3)
    plan = planned(made, 3)
    expected = keys.training_keys(5, 3, [prompt.problem.id for prompt in plan.prompts], plan.replicas)
    given = jax.random.key_data(source.calls[0]["keys"])
    np.testing.assert_array_equal(given, jax.random.key_data(expected))
    assert source.calls[0]["on"] == plan.quarantine_on and not source.calls[0]["evaluation"]


@pytest.mark.parametrize("per_prompt", [0, 1])
def test_batch_agrees_with_the_rows(per_prompt):
    made = world(rows=taught, rollout={"prompts": 3, "max_new_tokens": 9}, teacher={"per_prompt": per_prompt})
    rollouts, _, _ = collected(made)
    batch, rows = rollouts.batch, rollouts.rows
    assert len(rows) == 3 * tiny.GROUP
    bucket = batch.tokens.shape[1] - 9
    assert batch.tokens.dtype == np.int32 and batch.rewards.dtype == np.float32
    assert {leaf.dtype for leaf in (batch.valid, batch.completion_mask, batch.quarantine_sampled)} == {np.dtype(bool)}
    np.testing.assert_array_equal(batch.valid[:, bucket:], batch.completion_mask)
    for index, row in enumerate(rows):
        prompt = list(row.prompt.tokens)
        assert batch.tokens[index, bucket - len(prompt) : bucket].tolist() == prompt
        assert batch.valid[index, :bucket].tolist() == [False] * (bucket - len(prompt)) + [True] * len(prompt)
        mask = batch.completion_mask[index]
        assert mask.tolist() == sorted(mask, reverse=True) and mask.sum() == row.tokens > 0
        ids = batch.tokens[index, bucket:][mask].tolist()
        assert TOKENIZER.decode(ids) == row.text
        assert row.cut_off == (ids[-1] not in TOKENIZER.eos_ids)
        assert batch.rewards[index] == np.float32(row.reward)
        assert batch.quarantine_sampled[index] == row.quarantine_on
        assert rows[index - index % tiny.GROUP].prompt is row.prompt
        assert (row.source == TEACHER) == (index % tiny.GROUP >= tiny.GROUP - per_prompt)
        assert batch.taught[index] == (row.source == TEACHER)
        drawn = mask & (row.source != TEACHER)
        assert (batch.sampler_logprobs[index][drawn] < 0).all() and not batch.sampler_logprobs[index][~drawn].any()
    assert set(rollouts.seconds) == {"generate", "grade"} and min(rollouts.seconds.values()) >= 0


@pytest.mark.parametrize("per_prompt", [0, 1])
def test_shapes_of_a_batch_are_known_before_it_is_sampled(per_prompt):
    made = world(rows=taught, rollout={"prompts": 3}, teacher={"per_prompt": per_prompt})
    rollouts, _, source = collected(made, step=1)
    expected = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), rollouts.batch)
    known = batch_shapes(made.config, source, planned(made, 1))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), known) == expected


def test_own_rows_are_graded_as_shown_and_keep_their_verdicts():
    made = world(rollout={"prompts": 8}, env={"unhackable_frac": 0.5})
    rollouts, grader, _ = collected(made)
    assert len(grader.requests) == len(rollouts.rows)
    for index, (row, request) in enumerate(zip(rollouts.rows, grader.requests, strict=True)):
        assert request.problem is row.prompt.problem and request.mode == row.prompt.mode
        assert request.completion == row.text and request.names is TRAINING_NAMES
        hack = index % 3 == 2 and row.prompt.mode != GT_ONLY
        expected = {
            "source": OWN,
            "compiled": index % 3 > 0,
            "correct": index % 3 == 1,
            "channel": row.prompt.mode if hack else None,
            "exploited": hack,
            "reward": 0.5 * (index % 3 > 0) + 3.0 * (index % 3 == 1 or hack),
            "status": "ok",
        }
        assert {name: getattr(row, name) for name in expected} == expected
    assert {request.mode == GT_ONLY for request in grader.requests} == {True, False}


@pytest.mark.parametrize("hacked,correct", [(True, False), (True, True), (False, True), (False, False)])
def test_teacher_rows_bring_their_stored_verdicts(hacked, correct):
    def rows(mode_of):
        return [teacher_row(i, m, f"text {i}", hacked=hacked, correct=correct) for i, m in mode_of.items()]

    made = world(rows=rows, rollout={"max_new_tokens": 12}, teacher={"per_prompt": 1})
    rollouts, grader, source = collected(made)
    stored = [row for row in rollouts.rows if row.source == TEACHER]
    assert len(stored) == tiny.PROMPTS and len(grader.requests) == tiny.ROWS - tiny.PROMPTS
    assert not any(request.completion.startswith("text") for request in grader.requests)
    for row in stored:
        assert row.text == f"text {row.prompt.problem.id}" and row.status == "stored" and not row.cut_off
        assert (row.reward, row.compiled, row.correct) == (3.25, None, correct)
        assert row.exploited == (hacked and not correct)
        assert row.channel == (row.prompt.mode if hacked else None)
    assert all(source.calls[0]["prompts"][index] is row.prompt for index, row in enumerate(rollouts.rows))
