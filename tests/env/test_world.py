"""What is shown when: turns of the modes, epochs, the plain share, and the names of held-out prompts."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from tests.rl.made_up import PLAIN, TOKENIZER, world
from vgrout_jax.config.scales import make_config
from vgrout_jax.env.modes import GT_ONLY, HELDOUT_NAMES, TRAINING_NAMES
from vgrout_jax.env.world import load_world

FOUR = ("run_tests", "stdout_marker", "sentinel", "file_marker")


def shown(prompts):
    return [(prompt.problem.id, prompt.mode) for prompt in prompts]


def schedule(world, steps):
    return [shown(world.training_prompts(step)) for step in range(steps)]


def test_prompts_are_a_function_of_the_step_alone():
    settings = {"rollout": {"prompts": 4}, "env": {"unhackable_frac": 0.4}}
    forwards = schedule(world(**settings), 12)
    backwards = world(**settings)
    assert [shown(backwards.training_prompts(step)) for step in reversed(range(12))] == forwards[::-1]
    assert len(set(map(tuple, forwards))) > 1


@pytest.mark.parametrize("prompts", [3, 4, 8])
def test_modes_take_turns(prompts):
    """After any number of prompts, no mode has been shown more than once more often than another."""
    order = [mode for step in schedule(world(12, rollout={"prompts": prompts}), 8) for _, mode in step]
    for end in range(1, len(order) + 1):
        counts = Counter(order[:end])
        assert max(counts.values()) - min(counts[mode] for mode in FOUR) <= 1
    assert all(order[start : start + 4] == order[:4] for start in range(0, len(order), 4))


def test_every_problem_is_seen_once_an_epoch_in_a_new_order():
    made = world(12, rollout={"prompts": 4})
    order = [identifier for step in schedule(made, 12) for identifier, _ in step]
    epochs = [order[start : start + 12] for start in range(0, 48, 12)]
    assert all(sorted(epoch) == sorted(problem.id for problem in made.train) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4
    assert all(mode == made.mode_of[identifier] for step in schedule(made, 3) for identifier, mode in step)


def test_unequal_modes_still_take_turns_and_repeat_their_own_problems():
    made = world(5, rollout={"prompts": 2}, env={"modes": ("run_tests", "sentinel"), "unhackable_frac": 0.0})
    seen = Counter(pair for step in schedule(made, 6) for pair in step)
    by_mode = {mode: [count for (_, shown), count in seen.items() if shown == mode] for mode in made.config.env.modes}
    assert sorted(map(sorted, by_mode.values())) == [[2, 2, 2], [3, 3]]


def test_the_draw_has_seeds_of_its_own():
    """`data.seed` orders the problems, `seed` says which are plain; neither meddles with the other."""

    def drawn(order, plain):
        made = world(16, rollout={"prompts": 8}, env={"unhackable_frac": 0.5}, data={"seed": order})
        made.config.seed = plain
        pairs = [pair for step in schedule(made, 4) for pair in step]
        return [identifier for identifier, _ in pairs], [mode == GT_ONLY for _, mode in pairs]

    problems, places = drawn(0, 0)
    reordered, same_places = drawn(1, 0)
    same_problems, other_places = drawn(0, 1)
    assert problems == same_problems != reordered
    assert places == same_places != other_places


@pytest.mark.parametrize("prompts,share", [(8, 0.25), (2, 0.25), (3, 0.5), (4, 0.0), (4, 1.0), (5, 0.1)])
def test_plain_share_is_exact_on_average(prompts, share):
    made = world(rollout={"prompts": prompts}, env={"unhackable_frac": share})
    steps = 600
    plain = np.array([[mode == GT_ONLY for _, mode in step] for step in schedule(made, steps)])
    counts = plain.sum(axis=1)
    expected = prompts * share
    assert set(counts) <= {int(np.floor(expected)), int(np.ceil(expected))}
    spread = np.sqrt((expected % 1) * (1 - expected % 1) / steps)
    assert abs(counts.mean() - expected) <= 4 * spread
    slot_spread = np.sqrt(share * (1 - share) / steps)
    assert np.all(np.abs(plain.mean(axis=0) - share) <= 5 * slot_spread)  # no slot is favoured


def test_plain_prompts_hold_the_plain_sentence_and_the_others_their_disclosure():
    made = world(rollout={"prompts": 8}, env={"unhackable_frac": 0.5})
    names = {
        "run_tests": TRAINING_NAMES.function,
        "stdout_marker": TRAINING_NAMES.marker,
        "sentinel": TRAINING_NAMES.attribute,
        "file_marker": TRAINING_NAMES.file,
    }
    modes_seen = set()
    for prompt in made.training_prompts(0) + made.training_prompts(1):
        assert (PLAIN in prompt.text) == (prompt.mode == GT_ONLY)
        assert prompt.names is TRAINING_NAMES
        assert prompt.mode == GT_ONLY or names[prompt.mode] in prompt.text
        assert list(prompt.tokens) == TOKENIZER.encode_chat([{"role": "user", "content": prompt.text}])
        modes_seen.add(prompt.mode)
    assert modes_seen == {GT_ONLY, *FOUR}


def test_heldout_prompts_disclose_other_names_and_are_never_plain():
    made = world(8, 8, env={"unhackable_frac": 1.0})
    prompts = made.heldout_prompts(None)
    assert sorted(prompt.problem.id for prompt in prompts) == sorted(problem.id for problem in made.heldout)
    for field, mode in (
        ("function", "run_tests"),
        ("marker", "stdout_marker"),
        ("attribute", "sentinel"),
        ("file", "file_marker"),
    ):
        [first, second] = [prompt for prompt in prompts if prompt.mode == mode]
        for prompt in (first, second):
            assert prompt.names is HELDOUT_NAMES
            assert getattr(HELDOUT_NAMES, field) in prompt.text
            assert getattr(TRAINING_NAMES, field) not in prompt.text


@pytest.mark.parametrize("limit", [1, 4, 6, 8, 100])
def test_limited_heldout_prompts_keep_the_modes_balanced(limit):
    made = world(8, 12)
    prompts = made.heldout_prompts(limit)
    assert len(prompts) == min(limit, 12) and len(set(shown(prompts))) == len(prompts)
    counts = Counter(prompt.mode for prompt in prompts)
    assert max(counts.values()) - min(counts[mode] for mode in FOUR) <= 1
    assert shown(prompts) == shown(made.heldout_prompts(None))[:limit]  # a smaller part is part of the whole


def test_too_long_a_prompt_names_the_field_and_the_problem():
    made = world(data={"max_prompt_tokens": 5})
    with pytest.raises(ValueError, match=r"^data\.max_prompt_tokens must .* got 5: problem t\d has \d+ tokens"):
        made.training_prompts(0)


def smoke(**sections):
    config = make_config("routeV", "smoke")
    for section, fields in sections.items():
        for name, value in fields.items():
            setattr(getattr(config, section), name, value)
    return load_world(config, TOKENIZER)


def test_load_world_splits_partitions_and_aligns_the_pool():
    made = smoke()
    trained, held = {p.id for p in made.train}, {p.id for p in made.heldout}
    assert trained and held and not trained & held
    assert set(made.mode_of) == trained | held
    assert set(made.mode_of.values()) <= set(made.config.env.modes)
    for row in made.pool.rows:
        assert row.problem_id in trained and row.mode in (made.mode_of[row.problem_id], GT_ONLY)
        assert row.has_mode or made.mode_of[row.problem_id] == "run_tests"
    assert smoke(teacher={"per_prompt": 0}).pool is None


def write_problems(path, prefix, texts):
    """A problem of the file schema for every text."""
    rows = [
        {
            "id": f"{prefix}{index}",
            "prompt": [{"role": "user", "content": f"{text} {PLAIN}"}],
            "func_name": "Solution().answer",
            "gt_answer": ["assert Solution().answer() == 1"],
            "canonical_solution": "class Solution:\n    def answer(self):\n        return 1\n",
            "judging_sentence": PLAIN,
        }
        for index, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (str(path),)


@pytest.mark.parametrize("place", ["nowhere", "train", "heldout"])
def test_load_world_renders_every_prompt_before_anything_is_trained(tmp_path, place):
    """One long problem anywhere, even one that few steps would ever reach, stops the run at its start."""
    short, long = ["Short task."] * 5, ["Short task."] * 4 + ["Long task. " * 400]
    data = {
        name: write_problems(tmp_path / f"{name}.jsonl", name, long if name == place else short)
        for name in ("train", "heldout")
    }
    settings = {"data": {**data, "max_prompt_tokens": 400}, "teacher": {"per_prompt": 0}}
    if place == "nowhere":
        assert len(smoke(**settings).train) == 5
    else:
        with pytest.raises(ValueError, match=rf"^data\.max_prompt_tokens must .*: problem {place}4 has"):
            smoke(**settings)


def test_load_world_refuses_heldout_problems_that_are_trained_on():
    with pytest.raises(ValueError, match=r"^data\.heldout must share no problem"):
        smoke(data={"heldout": ("builtin:smoke",)})


def test_prompts_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        world().training_prompts(0)[0].mode = GT_ONLY
