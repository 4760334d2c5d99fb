"""The warnings of a collapsed policy: when they come, when they do not, and that they are plain words."""

import dataclasses

import pytest

from tests.rl.made_up import problem
from vgrout_jax.env.modes import TRAINING_NAMES
from vgrout_jax.env.world import Prompt
from vgrout_jax.evaluation.rates import Evaluation, Sample, rate_table
from vgrout_jax.rl import collapse
from vgrout_jax.rl.rollout import Rollout

PROMPT = Prompt(problem("p"), "run_tests", TRAINING_NAMES, "text", (1,))


def row(text="x = 1", *, cut_off=False, source="own"):
    verdict = {"reward": 0.0, "compiled": True, "correct": False, "channel": None, "exploited": False, "status": "ok"}
    return Rollout(PROMPT, text, source, True, tokens=3, cut_off=cut_off, **verdict)


def watch(steps) -> dict[int, list[str]]:
    """Warnings by step, of (rows, live groups) a step."""
    memory, found = collapse.Memory(), {}
    for step, (rows, live) in enumerate(steps):
        memory, warnings = collapse.observe_step(memory, step, rows, live_groups=live)
        if warnings:
            found[step] = warnings
    return found


def test_a_healthy_run_says_nothing():
    assert not watch([([row(), row("", cut_off=True)], 1)] * 50)


@pytest.mark.parametrize(
    "rows,live,words",
    [
        ([row(), row()], 0, "in every group all rewards were equal"),
        ([row(""), row(" \n")], 1, "every completion was empty"),
        ([row(cut_off=True)] * 2, 1, "every completion was cut off by the length limit"),
    ],
)
def test_what_lasts_ten_steps_is_said_and_again_after_ten_more(rows, live, words):
    found = watch([(rows, live)] * 25)
    assert sorted(found) == [9, 19]
    for step, count in ((9, 10), (19, 20)):
        [text] = found[step]
        assert text.startswith(f"step {step}: in the last {count} steps {words}") and "\n" not in text


def test_one_good_step_begins_the_count_anew():
    bad, good = ([row(cut_off=True)], 0), ([row()], 1)
    assert not watch(([bad] * 9 + [good]) * 3)
    assert sorted(watch([bad] * 9 + [good] + [bad] * 10)) == [19]


def test_the_teacher_s_rows_say_nothing_about_the_policy():
    taught = row("", source="teacher", cut_off=True)
    assert not watch([([taught, row()], 1)] * 30)
    assert "empty" in watch([([row(""), row("text", source="teacher")], 1)] * 10)[9][0]
    assert not watch([([taught], 1)] * 30)


def evaluation(step, solved, compiled, *, n=40, policy="deployed"):
    samples = [Sample(str(i), "run_tests", False, i < solved, i < compiled, False) for i in range(n)]
    return Evaluation(step, "heldout", policy, rate_table(samples))


def evaluate(*evaluations):
    memory, found = collapse.Memory(), []
    for one in evaluations:
        memory, warnings = collapse.observe_evaluation(memory, one)
        found.append(warnings)
    return found


def test_a_clear_fall_of_solve_or_compile_is_said():
    first, second, third = evaluate(evaluation(0, 20, 40), evaluation(20, 1, 40), evaluation(40, 2, 10))
    assert (first, len(second), len(third)) == ([], 1, 2)
    assert second[0].startswith("step 20: the deployed policy's solve rate has fallen to 2.5% from 50.0% at step 0")
    assert "compile rate has fallen to 25.0% from 100.0%" in "".join(third)


def test_a_fall_within_chance_or_of_the_other_policy_is_not():
    assert evaluate(evaluation(0, 20, 40), evaluation(20, 16, 38), evaluation(40, 13, 36)) == [[], [], []]
    assert evaluate(evaluation(0, 20, 40), evaluation(20, 0, 0, policy="as_trained")) == [[], []]


def test_the_best_evaluation_is_what_later_ones_are_held_against():
    found = evaluate(evaluation(0, 2, 40), evaluation(20, 30, 40), evaluation(40, 2, 40))
    assert [len(warnings) for warnings in found] == [0, 0, 1] and "from 75.0% at step 20" in found[2][0]


def test_the_memory_survives_json():
    import json

    memory, _ = collapse.observe_evaluation(collapse.Memory(3, 2, 1), evaluation(0, 20, 40))
    again = collapse.Memory(**json.loads(json.dumps(dataclasses.asdict(memory))))
    assert again == memory
    assert collapse.observe_evaluation(again, evaluation(20, 1, 40))[1]
