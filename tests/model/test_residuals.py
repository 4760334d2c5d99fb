"""Means of the residual stream against transformers' hidden states in float64."""

import numpy as np
import pytest
import torch

from tests import tiny
from tests.routing import torch_probe
from vgrout_jax.model import lora2r
from vgrout_jax.model.policy import Policy
from vgrout_jax.model.residuals import residual_means


@pytest.mark.parametrize("blocks", [1, 2])
def test_means_equal_transformers_hidden_states(frozen, deltas, blocks):
    """After every layer, over completion tokens alone, whatever the padding; the last before the final norm."""
    batch, model = tiny.batch(), tiny.model()
    route = (lora2r.full_route if blocks == 2 else lora2r.ablated_route)(tiny.ROWS)
    adapter = lora2r.Adapter(frozen.init, deltas)
    arrays = (batch.tokens, batch.valid, batch.completion_mask)
    found = np.asarray(residual_means(model, Policy(frozen.base, adapter, route), *arrays))
    assert found.shape == (tiny.ROWS, model.num_layers, model.hidden_size)
    oracle = torch_probe.Oracle(model, frozen, deltas, blocks=blocks).model
    states = []
    for layer in oracle.model.layers:
        layer.register_forward_hook(lambda _, __, out: states.append(out[0] if isinstance(out, tuple) else out))
    tokens, valid, mask = (np.asarray(leaf) for leaf in arrays)
    for row in range(tiny.ROWS):
        states.clear()
        with torch.no_grad():
            oracle(input_ids=torch.tensor(tokens[row][valid[row]])[None])
        length = mask[row].sum()
        expected = [state.reshape(-1, model.hidden_size)[-length:].mean(0).numpy() for state in states]
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-4)


def test_a_row_without_a_completion_has_mean_zero(frozen, deltas):
    batch = tiny.batch()
    nothing = batch.completion_mask & False
    found = residual_means(tiny.model(), Policy(frozen.base), batch.tokens, batch.valid, nothing)
    assert not np.asarray(found).any()
