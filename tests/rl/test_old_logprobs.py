"""The old log-probabilities of a step: from the probe, from the sampler where its own serve, else from a pass."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.rl.stepping import make_config, run_step
from vgrout_jax.arms.compose import make_arm
from vgrout_jax.model import logprobs, lora2r
from vgrout_jax.model.policy import Policy
from vgrout_jax.rl.old_logprobs import make_old_logprobs
from vgrout_jax.routing import gate


def sampled_logprobs(frozen, deltas, batch):
    """log pi of the policy that sampled each row, the teacher's rows by the full one, as a plain forward gives it."""
    return logprobs.completion_logprobs(
        tiny.model(),
        Policy(frozen.base, lora2r.Adapter(frozen.init, deltas), lora2r.Route(batch.quarantine_sampled)),
        batch.tokens,
        batch.valid,
        completion_length=tiny.NEW_TOKENS,
        chunk=64,
    )


POLICIES = [("routeV", "full"), ("routeV", "ablated"), ("absorb", "ablated")]


@pytest.mark.parametrize("arm,probe_policy", POLICIES)
def test_old_logprobs_are_those_of_the_policy_that_sampled(frozen, deltas, arm, probe_policy):
    config = make_config(arm, gate={"probe_policy": probe_policy})
    batch = tiny.batch()
    _, metrics = run_step(config, frozen, deltas, batch)
    expected = sampled_logprobs(frozen, deltas, batch)
    known, mask = np.asarray(metrics.recomputed), np.asarray(batch.completion_mask)
    trained_full = np.asarray(metrics.decision.labels) != gate.CLEAN
    differs = trained_full != np.asarray(batch.quarantine_sampled)
    assert differs.any() and known[np.asarray(metrics.decision.live)].all()
    chosen = known[:, None] & mask
    np.testing.assert_allclose(np.asarray(metrics.logprobs)[chosen], np.asarray(expected)[chosen], atol=1e-5)
    ratios = np.asarray(metrics.losses.ratio)
    np.testing.assert_allclose(ratios[~differs], 1.0, atol=1e-6)
    assert np.abs(ratios[differs & np.asarray(metrics.decision.live)] - 1).min() > 1e-4


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("arm,probe_policy", POLICIES)
def test_the_sampler_s_logprobs_serve_where_it_drew_from_the_policy(frozen, deltas, arm, probe_policy, taught):
    """At temperature 1, untruncated: half as probable at every token, a row that needs them has twice the ratio.

    The teacher's rows, one of them clean, have none; a forward pass reads them under the full policy.
    """
    teacher = np.tile([False, taught, False, False], tiny.PROMPTS)
    rewards = [3.5, 1.0, 0.5, 0.0, 0.0, 3.5, 0.5, 3.5]
    batch = tiny.batch(rewards=rewards).replace(taught=jnp.asarray(teacher))
    settings = {"arm": arm, "gate": {"probe_policy": probe_policy}, "teacher": {"per_prompt": int(taught)}}
    _, expected = run_step(make_config(**settings), frozen, deltas, batch)
    drawn = jnp.where(teacher[:, None], jnp.nan, sampled_logprobs(frozen, deltas, batch))
    config = make_config(**settings, rollout={"temperature": 1.0, "top_p": 1.0})
    _, metrics = run_step(config, frozen, deltas, batch.replace(sampler_logprobs=drawn))
    np.testing.assert_allclose(metrics.losses.ratio, expected.losses.ratio, rtol=1e-5)
    _, halved = run_step(config, frozen, deltas, batch.replace(sampler_logprobs=drawn - np.log(2)))
    served = ~np.asarray(metrics.recomputed)
    differs = (np.asarray(metrics.decision.labels) != gate.CLEAN) != np.asarray(batch.quarantine_sampled)
    probed = (np.asarray(batch.quarantine_sampled) == (probe_policy == "full")) & (arm == "routeV")
    np.testing.assert_array_equal(
        served, differs & ~(probed & (np.asarray(metrics.decision.advantages) != 0)) & ~teacher
    )
    assert served.any() and np.isfinite(metrics.losses.ratio).all()
    assert (teacher & differs & ~probed).any() == (taught and arm == "routeV" and probe_policy == "ablated")
    np.testing.assert_allclose(halved.losses.ratio, np.where(served, 2, 1) * metrics.losses.ratio, rtol=1e-5)


@pytest.mark.parametrize(
    ("rollout", "dtype"), [({"temperature": 0.9}, "float32"), ({"top_k": 3}, "float32"), ({}, "bfloat16")]
)
def test_the_sampler_s_logprobs_serve_nowhere_else(frozen, deltas, rollout, dtype):
    """`tiny.batch` has none: what reads them is not a number."""
    config = make_config("absorb", rollout={"temperature": 1.0, "top_p": 1.0, **rollout})
    model = dataclasses.replace(tiny.model(), dtype=jnp.dtype(dtype))
    assert not make_old_logprobs(make_arm(config), config, model).sampler_serves
    if dtype == "float32":
        _, metrics = run_step(config, frozen, deltas)
        assert np.isfinite(metrics.losses.ratio).all() and metrics.recomputed.all()
