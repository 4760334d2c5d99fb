"""Evaluation: both policies on the same draws, calls of the compiled shape, and rates from the verdicts."""

import jax
import numpy as np
import pytest

from tests.rl.made_up import FakeGrader, generator, world
from tests.rl.test_rollout import POLICY
from vgrout_jax.env.modes import HELDOUT_NAMES
from vgrout_jax.evaluation.evaluate import AS_TRAINED, DEPLOYED, SPLIT, evaluate
from vgrout_jax.rl.step import Frozen
from vgrout_jax.sampling import keys

FROZEN = Frozen({}, POLICY)


def run(made, *, step=0, **changes):
    grader, source = FakeGrader(), generator(made.config, **changes)
    prompts = made.heldout_prompts(None)
    return (
        evaluate(made.config, source, grader, prompts, frozen=FROZEN, deltas=POLICY, step=step),
        grader,
        source,
    )


def key_rows(source):
    return np.concatenate([jax.random.key_data(call["keys"]) for call in source.calls])


@pytest.mark.parametrize("rows,sources", [(8, 2), (8, 1), (3, 2), (5, 9), (100, 100)])
def test_every_prompt_is_sampled_as_often_as_asked_under_both_policies(rows, sources):
    made = world(8, 6, eval={"samples": 4})
    (evaluations, records), grader, source = run(made, rows=rows, sources=sources)
    prompts = made.heldout_prompts(None)
    for call in source.calls:
        assert len(call["prompts"]) <= rows and len({id(prompt) for prompt in call["prompts"]}) <= sources
        assert call["evaluation"] and len(set(call["on"])) == 1
    expected = [(p.problem.id, sample) for p in prompts for sample in range(4)]
    on = [flag for call in source.calls for flag in call["on"]]
    assert on == [record["policy"] == AS_TRAINED for record in records]
    for policy in (DEPLOYED, AS_TRAINED):
        assert [(r["problem"], r["sample"]) for r in records if r["policy"] == policy] == expected
    assert [evaluation.policy for evaluation in evaluations] == [DEPLOYED, AS_TRAINED]
    assert len(grader.requests) == 2 * len(expected)
    assert all(request.names is HELDOUT_NAMES for request in grader.requests)


def test_draws_are_paired_over_policies_steps_and_arms():
    made = world(8, 4, eval={"samples": 2, "seed": 3})
    _, _, source = run(made)
    rows = key_rows(source)
    deployed, trained = np.split(rows, 2)
    np.testing.assert_array_equal(deployed, trained)
    assert len(np.unique(deployed, axis=0)) == 8
    prompts = [prompt for prompt in made.heldout_prompts(None) for _ in range(2)]
    expected = keys.evaluation_keys(3, SPLIT, [p.problem.id for p in prompts], [p.mode for p in prompts], [0, 1] * 4)
    np.testing.assert_array_equal(deployed, jax.random.key_data(expected))
    later = world(8, 4, eval={"samples": 2, "seed": 3}, arm="absorb")
    later.config.seed, later.config.arm = 9, "absorb"
    np.testing.assert_array_equal(key_rows(run(later, step=40, rows=3)[2]), rows)


def test_rates_are_means_of_the_verdicts():
    made = world(8, 6, eval={"samples": 3})
    (evaluations, records), _, _ = run(made, step=20)
    for evaluation in evaluations:
        own = [record for record in records if record["policy"] == evaluation.policy]
        assert evaluation.step == 20 and {record["step"] for record in own} == {20}
        table = evaluation.table
        for rates, rows in [
            (table.overall, own),
            *((table.modes[mode], [r for r in own if r["mode"] == mode]) for mode in made.config.env.modes),
        ]:
            assert rates.n == len(rows)
            assert rates.hack.value == pytest.approx(np.mean([r["exploited"] for r in rows]))
            assert rates.solve.value == pytest.approx(np.mean([r["correct"] for r in rows]))
            assert rates.compile.value == pytest.approx(np.mean([r["compiled"] for r in rows]))
            assert rates.channel.value == pytest.approx(np.mean([r["channel"] is not None for r in rows]))
    assert (
        len({rate.value for rate in (evaluations[0].table.overall.hack, evaluations[0].table.overall.compile)}) == 2
    )
