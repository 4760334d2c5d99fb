"""Sets that share problems are refused, whatever the ids say; pairs about the problems too."""

import dataclasses

import pytest

from vgrout_jax.common.tokenizer import load_tokenizer
from vgrout_jax.config.scales import make_config
from vgrout_jax.env.problems import load_problems
from vgrout_jax.env.teacher import TeacherPool
from vgrout_jax.env.world import load_world
from vgrout_jax.routing.pair_file import Pair
from vgrout_jax.routing.pairs import load_pairs
from vgrout_jax.run import overlap

PROBLEMS = load_problems(["builtin:smoke"])


@pytest.fixture(scope="module")
def world():
    config = make_config("routeV", "smoke")
    config.resolve()
    return load_world(config, load_tokenizer(None))


def pair(name="other", prompt="Sort the shelf.", hack="cheat", clean="work"):
    return Pair(name, ("hack",), prompt, ({"role": "user", "content": prompt},), hack, clean)


def test_the_package_s_own_data_keeps_apart(world):
    overlap.check_world(world, load_pairs("builtin:pairs", ()))


def test_real_data_keeps_apart(shared_data):
    problems = load_problems([str(shared_data / "leetcode" / "medhard_80.jsonl")])
    overlap.check_apart(problems[::2], problems[1::2])
    overlap.check_pairs(load_pairs("builtin:pairs", ()), problems)


def reworded(problem, identifier):
    """The same problem with other layout and another id."""
    messages = tuple({**m, "content": "  " + m["content"].replace("\n", " \n") + "\n"} for m in problem.messages)
    return dataclasses.replace(problem, id=identifier, messages=messages)


def test_the_same_problem_under_two_ids_is_refused_by_both():
    train, heldout = PROBLEMS[:4], [PROBLEMS[5], reworded(PROBLEMS[1], "twin")]
    with pytest.raises(ValueError, match=f"^data.heldout must share no problem .* twin = {PROBLEMS[1].id} "):
        overlap.check_apart(train, heldout)
    other = dataclasses.replace(heldout[1], tests=("assert Solution().f(1) == 2",))
    overlap.check_apart(train, [PROBLEMS[5], other])  # the same words, another task


def test_a_pair_about_a_problem_is_refused_by_both_names():
    problem = PROBLEMS[2]
    text = problem.messages[-1]["content"]
    shown = text.replace(problem.judging_sentence, "Do it well.") if problem.judging_sentence else text
    for shared in (
        pair(name=problem.id),
        pair(name="mine", prompt=f"Please.\n{shown}\nThanks."),
        pair(name="mine", hack=f"```python\n{problem.solution}\n```"),
        pair(name="mine", clean=problem.solution.upper()),
    ):
        expected = rf"^direction.pairs must share no problem .*, got {shared.name} = problem {problem.id}; "
        with pytest.raises(ValueError, match=expected):
            overlap.check_pairs([pair(), shared], PROBLEMS)
    overlap.check_pairs([pair()], PROBLEMS)


def test_many_shared_items_are_counted():
    twins = [reworded(problem, f"twin{number}") for number, problem in enumerate(PROBLEMS)]
    with pytest.raises(ValueError, match=f"and {len(PROBLEMS) - 5} more"):
        overlap.check_apart(PROBLEMS, twins)


def test_a_row_of_another_tokenizer_is_refused_before_the_run(world):
    row = dataclasses.replace(world.pool.rows[0], completion="", token_ids=(1, 2), tokenizer_sha256="ab" * 32)
    broken = dataclasses.replace(world, pool=TeacherPool((*world.pool.rows, row)))
    with pytest.raises(ValueError, match=f"teacher.pool: the row of problem {row.problem_id} must have a text"):
        overlap.check_world(broken, [])


def test_the_hash_tells_every_change_and_nothing_else(world):
    before = overlap.world_sha256(world)
    assert overlap.world_sha256(dataclasses.replace(world)) == before
    first, *rest = world.train
    changes = [
        {"train": (dataclasses.replace(first, tests=(*first.tests, "assert True")), *rest)},
        {"train": (*rest, first)},
        {"heldout": world.heldout[:-1]},
        {"mode_of": {**world.mode_of, first.id: "gt_only"}},
        {"hints": {**world.hints, "sentinel": "another sentence"}},
        {"pool": None},
        {"pool": TeacherPool((dataclasses.replace(world.pool.rows[0], reward=9.0), *world.pool.rows[1:]))},
    ]
    hashes = {overlap.world_sha256(dataclasses.replace(world, **change)) for change in changes}
    assert len(hashes) == len(changes) and before not in hashes
