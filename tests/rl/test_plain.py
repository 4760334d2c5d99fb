"""The plain passes against PyTorch in float64, one rollout at a time and without padding.

Pass 2 is held against solo gradients and finite differences in `test_step.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from tests import tiny
from tests.rl.stepping import make_rows
from tests.routing import torch_probe
from vgrout_jax.arms.compose import make_arm
from vgrout_jax.rl import grpo
from vgrout_jax.rl.step import make_scorer


def sequences(batch):
    """(prompt, completion) of every row."""
    valid, mask, tokens = (np.asarray(leaf) for leaf in (batch.valid, batch.completion_mask, batch.tokens))
    border = tiny.PROMPT_TOKENS
    return [
        (tokens[row, :border][valid[row, :border]].tolist(), tokens[row, border:][mask[row]].tolist())
        for row in range(tiny.ROWS)
    ]


def plain(micro_batch=4, **sections):
    config = tiny.config(train={"micro_batch": micro_batch, "schedule": "plain"}, **sections)
    return config, make_scorer(config, tiny.model(), tiny.mesh(), labels=make_arm(config).labels)


@pytest.mark.parametrize("probe_policy, block_count", [("ablated", 1), ("full", 2)])
def test_each_is_the_gradient_of_every_rollout_by_itself(frozen, deltas, probe_policy, block_count):
    config, scorer = plain(gate={"probe_policy": probe_policy})
    rows = make_rows(config, tiny.batch())

    def loss(logprobs, rows):
        return grpo.probe_loss(logprobs, rows.advantages, rows.batch.completion_mask)

    state = tiny.state(deltas, optax.identity())
    found, logprobs = jax.jit(functools.partial(scorer.each, loss))(state, frozen, rows)
    oracle = torch_probe.Oracle(tiny.model(), frozen, deltas, blocks=block_count)
    for index, (prompt, completion) in enumerate(sequences(rows.batch)):
        theirs = oracle.logprobs(prompt, completion)
        expected = oracle.gradient(-float(rows.advantages[index]) * theirs.sum())[:, : tiny.RANK]
        np.testing.assert_allclose(found[index], expected, rtol=1e-3, atol=2e-5 * np.abs(expected).max() + 1e-12)
        read = np.asarray(logprobs)[index, : len(completion)]
        np.testing.assert_allclose(read, theirs.detach().numpy(), atol=2e-4)


def test_forward_reads_the_policy_that_sampled(frozen, deltas):
    config, scorer = plain()
    rows = make_rows(config, tiny.batch())
    needed = jnp.ones(tiny.ROWS, bool)
    state = tiny.state(deltas, optax.identity())
    found = np.asarray(scorer.forward(state, frozen, rows, needed, (False, True)))
    oracles = [torch_probe.Oracle(tiny.model(), frozen, deltas, blocks=count) for count in (1, 2)]
    for index, (prompt, completion) in enumerate(sequences(rows.batch)):
        with torch.no_grad():
            theirs = oracles[int(rows.batch.quarantine_sampled[index])].logprobs(prompt, completion).numpy()
        np.testing.assert_allclose(found[index, : len(completion)], theirs, atol=2e-4)
