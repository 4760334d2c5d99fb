"""The divergence guard: when it warns, when it stops, what it names, and what it measures."""

import dataclasses
import logging

import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.routing import torch_probe
from tests.routing.test_probe import varied
from vgrout_jax.config import GuardConfig
from vgrout_jax.rl import divergence
from vgrout_jax.rl.step import StepMetrics


def watch(values, **changes):
    """The step at which the guard stopped and its message, or None."""
    watcher = divergence.Guard(GuardConfig(**changes))
    for step, value in enumerate(values):
        try:
            watcher.check_reference(step, value)
        except divergence.Divergence as error:
            return step, str(error)
    return None


@pytest.mark.parametrize(
    "values,stopped",
    [
        ([-2.0, -7.5], None),  # one step
        ([-2.0, -7.5, -7.5], 2),  # two running
        ([-2.0, -7.5, -6.0, -7.5, -6.9], None),  # interrupted
        ([-2.0, -7.5, -6.0, -7.5, -7.5], 4),
        ([-2.0, -7.0, -7.0, -7.0], None),  # five nats are not more than five
        ([-9.0, -2.0, -7.5, -7.5], 3),  # below the best, not below the first
        ([-1.0, -3.0, -5.0, -5.5, -5.9, -5.9], None),
        ([-2.0, float("nan")], 1),
        ([-2.0, float("-inf")], 1),
        ([-1.0, -2.0, -0.5, -5.6, -5.6], 4),  # the best may rise
    ],
)
def test_stops_after_two_steps_five_nats_below_the_best(values, stopped):
    outcome = watch(values)
    assert (outcome and outcome[0]) == stopped
    if outcome:
        assert outcome[1].startswith(f"step {stopped}: ") and "reference" in outcome[1] and "optim.lr" in outcome[1]


def test_thresholds_come_from_the_configuration():
    values = [-2.0, -3.5, -3.5]
    assert watch(values) is None
    assert watch(values, warn_nats=0.5, stop_nats=1.0)[0] == 2


def test_warns_from_three_nats_on(caplog):
    caplog.set_level(logging.WARNING, "vgrout_jax")
    watcher = divergence.Guard(GuardConfig())
    warned = []
    for step, value in enumerate([-1.0, -3.9, -4.0, -3.0, -4.5]):
        caplog.clear()
        watcher.check_reference(step, value)
        warned += [step] * len(caplog.records)
        assert all(f"step {step}:" in record.getMessage() for record in caplog.records)
    assert warned == [2, 4]


def metrics(**finite):
    fields = dict.fromkeys(field.name for field in dataclasses.fields(StepMetrics))
    return StepMetrics(**{**fields, "finite": {name: np.array(value) for name, value in finite.items()}})


def test_names_the_step_and_the_tensors_that_are_not_finite():
    divergence.check_finite(7, metrics(loss=True, gradient=True, probe=True))
    with pytest.raises(divergence.Divergence) as caught:
        divergence.check_finite(7, metrics(loss=True, gradient=False, probe=False, score=True))
    message = str(caught.value)
    assert message.startswith("step 7: not finite: gradient, probe;") and "optim.lr" in message


def test_names_the_logits_where_log_probabilities_are_not_finite():
    broken = metrics(loss=False).replace(logprobs=np.array([[0.0, np.nan]]))
    expected = "^step 2: not finite: logits, loss; the update was not applied; try"
    with pytest.raises(divergence.Divergence, match=expected):
        divergence.check_finite(2, broken)


def test_tokens_drawn_from_broken_logits_stop_the_run():
    divergence.check_sampled(3, np.array([[-1.0, 0.0]], np.float32))
    for value in (np.nan, -np.inf):
        with pytest.raises(divergence.Divergence) as caught:
            divergence.check_sampled(3, np.array([[-1.0, value], [value, 0.0]], np.float32))
        message = str(caught.value)
        assert message.startswith("step 3: not finite: logits (the sampler's log-probabilities of 2 tokens)")
        assert "try a lower optim.lr" in message and "model.path" in message


PROMPTS = [[5, 6, 7], [8], [9, 10]]
COMPLETIONS = [[11, 12], [13, 14, 15, 16, 17], [18, 19, 20]]


def test_references_are_padded_and_cut():
    sides = divergence.encode_references(PROMPTS, COMPLETIONS, max_new_tokens=4, pad_id=1)
    np.testing.assert_array_equal(
        sides.tokens, [[5, 6, 7, 11, 12, 1, 1], [1, 1, 8, 13, 14, 15, 16], [1, 9, 10, 18, 19, 20, 1]]
    )
    np.testing.assert_array_equal(np.asarray(sides.valid)[1], [False] * 2 + [True] * 5)
    np.testing.assert_array_equal(sides.completion_mask, np.arange(4) < np.array([2, 4, 3])[:, None])


def test_reference_is_the_mean_of_length_mean_logprobs_with_both_blocks_on():
    """Against PyTorch in float64; the longest completion would otherwise weigh most."""
    frozen = varied(tiny.frozen(tiny.model()))
    deltas = tiny.moved(frozen.init, 0.1)
    sides = divergence.encode_references(PROMPTS, COMPLETIONS, max_new_tokens=4, pad_id=1)
    measured = float(divergence.build_reference(tiny.config(), tiny.model(), sides)(deltas, frozen))

    def expected(blocks):
        model = torch_probe.Oracle(tiny.model(), frozen, deltas, blocks=blocks)
        rows = zip(PROMPTS, COMPLETIONS, strict=True)
        return np.mean([float(model.logprobs(prompt, text[:4]).detach().mean()) for prompt, text in rows])

    assert measured == pytest.approx(expected(2), rel=1e-4)
    assert abs(expected(2) - expected(1)) > 1e-2 and jnp.isfinite(measured)
