"""Whole runs that go wrong: they stop within a step, name step and tensor, keep what is good, say what to try."""

import dataclasses
import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgrout_jax import train
from vgrout_jax.config.scales import make_config
from vgrout_jax.config.validation import validate
from vgrout_jax.env.grader import Grader
from vgrout_jax.env.grading import GradingFailed
from vgrout_jax.rl import collapse, divergence
from vgrout_jax.rl.schedule.fast import FastScorer
from vgrout_jax.run import continuation, snapshots
from vgrout_jax.weights import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_program")]
BROKEN = 2  # the step at which something breaks


def config(**sections):
    settings = make_config("routeV", "smoke")
    settings.train.steps, settings.eval.every_steps, settings.eval.samples, settings.eval.problems = 5, 0, 1, 1
    settings.log.tensorboard = False
    settings.checkpoint.every_steps = 1
    for section, fields in sections.items():
        for name, value in fields.items():
            setattr(getattr(settings, section), name, value)
    settings.resolve()
    validate(settings)
    return settings


def poisoned(value, step):
    return jnp.where(step == BROKEN, jnp.nan, 1.0).astype(value.dtype) * value


def break_loss(patch):
    original = FastScorer.total

    def broken(self, loss, state, *rest):
        value, gradient, stats = original(self, loss, state, *rest)
        return poisoned(value, state.step), gradient, stats

    patch.setattr(FastScorer, "total", broken)


def break_gradient(patch):
    """One number of one module's gradient."""
    original = FastScorer.total

    def broken(self, loss, state, *rest):
        value, gradient, stats = original(self, loss, state, *rest)
        leaf = gradient.b["o_proj"]
        spoilt = leaf.at[0, 0, 0].set(poisoned(leaf[0, 0, 0], state.step))
        return value, gradient.replace(b={**gradient.b, "o_proj": spoilt}), stats

    patch.setattr(FastScorer, "total", broken)


def break_probe(patch):
    original = FastScorer.each

    def broken(self, loss, state, *rest):
        gradients, logprobs = original(self, loss, state, *rest)
        return gradients.at[1, 3].set(poisoned(gradients[1, 3], state.step)), logprobs

    patch.setattr(FastScorer, "each", broken)


def break_rewards(patch):
    original = train.collect

    def broken(loop, plan):
        rollouts = original(loop, plan)
        if plan.step == BROKEN:
            rollouts.batch.rewards[3] = np.nan
        return rollouts

    patch.setattr(train, "collect", broken)


def break_logits(patch):
    """A weight of the model itself turns into NaN between rollouts and update."""
    original = train.update

    def broken(loop, rollouts, ready):
        if ready.step == BROKEN:
            spoil_weights(loop)
        return original(loop, rollouts, ready)

    patch.setattr(train, "update", broken)


def break_sampled_logits(patch):
    original = train.collect

    def broken(loop, plan):
        if plan.step == BROKEN:
            spoil_weights(loop)
        return original(loop, plan)

    patch.setattr(train, "collect", broken)


def break_reference_logits(patch):
    original = train.prepare

    def broken(loop, plan):
        if plan.step == BROKEN:
            spoil_weights(loop)
        return original(loop, plan)

    patch.setattr(train, "prepare", broken)


def spoil_weights(loop):
    """One weight of the last norm, so that every logit is NaN."""
    leaves, structure = jax.tree.flatten(loop.run.frozen.base)
    index = next(i for i, leaf in enumerate(leaves) if leaf.ndim == 1)
    leaves[index] = leaves[index].at[0].set(jnp.nan)
    base = jax.tree.unflatten(structure, leaves)
    loop.run = dataclasses.replace(loop.run, frozen=loop.run.frozen.replace(base=base))


BREAKS = {
    "loss": (break_loss, "loss"),
    "gradient": (break_gradient, "gradient"),
    "probe": (break_probe, "probe"),
    "rewards": (break_rewards, "rewards"),
    "logits of the update": (break_logits, "logits"),
    "logits of the sampler": (break_sampled_logits, "logits (the sampler's"),
    "logits of the references": (break_reference_logits, "logits (the mean log-probability of the reference"),
}


@pytest.mark.parametrize("case", BREAKS)
def test_nan_anywhere_stops_the_run_within_its_step(case, tmp_path, monkeypatch):
    break_it, tensor = BREAKS[case]
    break_it(monkeypatch)
    with pytest.raises(divergence.Divergence) as caught:
        train.train(config(), tmp_path)
    message = str(caught.value)
    assert message.startswith(f"step {BROKEN}: not finite: ") and tensor in message and "\n" not in message
    assert "try a lower optim.lr" in message
    # Before the update, the last differences that the guard has passed are those of the step before.
    passed = BROKEN - 1 if case in ("logits of the sampler", "logits of the references") else BROKEN
    check_last_good_state(tmp_path, steps=BROKEN, passed=passed)


def check_last_good_state(workdir: Path, *, steps: int, passed: int) -> None:
    """The adapter of the last good step and the resume state of that step hold the same finite, trained values."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(steps))
    deltas, record = checkpoint.load_adapter(workdir / "adapter")
    assert record["metadata"]["step"] == passed
    assert continuation.state_steps(workdir / "resume")[-1] == steps
    newest = snapshots.read(workdir / "resume", steps).arrays
    assert all(np.isfinite(leaf).all() for leaf in newest.values() if leaf.dtype == np.float32)
    arrays = snapshots.read(workdir / "resume", passed).arrays
    assert all(np.isfinite(leaf).all() for leaf in arrays.values() if leaf.dtype == np.float32)
    for name, leaf in deltas.b.items():
        stored = arrays[f"state.deltas.b.{name}"]
        np.testing.assert_allclose(leaf, stored, rtol=2**-8)
        assert np.any(stored)
    assert not (workdir / "summary.json").exists()


def test_a_huge_learning_rate_is_stopped_and_says_what_to_try(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    settings = config(optim={"lr": 30.0, "warmup_frac": 0.0}, train={"steps": 40})
    with pytest.raises(divergence.Divergence) as caught:
        train.train(settings, tmp_path)
    message = str(caught.value)
    assert message.startswith("step ") and "optim.lr" in message and "\n" not in message
    stopped = int(message.split()[1].rstrip(":"))
    assert stopped < 40
    deltas, record = checkpoint.load_adapter(tmp_path / "adapter")
    assert record["metadata"]["step"] < stopped or not np.any(jax.tree.leaves(deltas)[0])


def test_a_grader_that_fails_stops_the_run_and_the_next_start_goes_on(tmp_path, monkeypatch):
    """The steps before it are kept, and with a grader that works the run ends as if nothing had been."""
    whole, workdir = tmp_path / "whole", tmp_path / "run"
    train.train(config(checkpoint={"every_steps": 0}), whole)
    original, calls = Grader.submit, []

    def fail_once(self, requests):
        calls.append(None)
        if len(calls) == 5:
            raise RuntimeError("the grader's workers do not start: no memory")
        return original(self, requests)

    monkeypatch.setattr(Grader, "submit", fail_once)
    with pytest.raises(GradingFailed, match="the grader has failed over the answers to .*: no memory"):
        train.train(config(checkpoint={"every_steps": 0}), workdir)
    [done] = continuation.state_steps(workdir / "resume")
    assert done == len((workdir / "metrics.jsonl").read_text().splitlines()) > 0
    train.train(config(checkpoint={"every_steps": 0}), workdir)
    for name, leaf in snapshots.read(whole / "resume", 5).arrays.items():
        np.testing.assert_array_equal(leaf, snapshots.read(workdir / "resume", 5).arrays[name], err_msg=name)


def test_a_run_without_anything_to_learn_warns_in_plain_words(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(collapse, "PATIENCE", 3)
    train.train(config(teacher={"per_prompt": 0, "pool": ()}, rollout={"deployed_frac": 0.0}), tmp_path)
    messages = [record.message for record in caplog.records if "in the last 3 steps" in record.message]
    assert any("in every group all rewards were equal, so nothing was learnt" in text for text in messages)
    assert any("every completion was cut off by the length limit" in text for text in messages)
