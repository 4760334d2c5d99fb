"""Qwen3 against transformers on tiny random weights, and the full-size model by its shapes alone."""

import dataclasses
import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from tests.model import tiny
from vgrout_jax.model import head, lora2r, qwen3
from vgrout_jax.model.parameters import abstract_parameters, init_parameters, is_parameter, parameter_table
from vgrout_jax.weights import hub

CASES = {
    "tied_two_groups": {},
    "untied_one_group": {"tie_word_embeddings": False, "num_key_value_heads": 1, "head_dim": 20},
    "untied_no_sharing": {
        "tie_word_embeddings": False,
        "num_key_value_heads": 4,
        "num_hidden_layers": 3,
        "rms_norm_eps": 1e-3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    },
}
ROWS, LENGTH = 3, 14
# Valid tokens of each row: a left-padded, a right-padded and a full one.
VALID = np.ones((ROWS, LENGTH), bool)
VALID[0, :5] = False
VALID[1, 9:] = False

# Published facts of Qwen3-4B.
QWEN3_4B = qwen3.Qwen3Config(
    vocab_size=151936,
    hidden_size=2560,
    intermediate_size=9728,
    num_layers=36,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    rope_theta=1e6,
    norm_epsilon=1e-6,
    tie_embeddings=True,
    dtype=jnp.bfloat16,
)
TENSORS_4B = json.loads((Path(__file__).parent / "qwen3_4b_tensors.json").read_text())


@pytest.fixture(scope="module", params=CASES)
def loaded(request, tmp_path_factory):
    """A reference model, our config and our parameters, loaded through the path of real weights."""
    reference = tiny.random_reference(**CASES[request.param])
    folder = tiny.save_reference(tmp_path_factory.mktemp("model"), reference)
    config = hub.load_config(folder)
    return reference, config, hub.load_parameters(folder, config)


def draw_tokens() -> np.ndarray:
    """All different, so that the gradient of an embedding row is that of one position."""
    return np.random.default_rng(0).permutation(96)[: ROWS * LENGTH].reshape(ROWS, LENGTH)


def loss_weights() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(ROWS, LENGTH, 96)).astype(np.float32) * VALID[..., None]


@functools.partial(jax.jit, static_argnums=0)
def logits_and_gradient(config, parameters):
    """Logits, and the gradient of a loss with respect to the embedded tokens, [N, T, D]."""
    tokens = draw_tokens()

    def loss(embed):
        attention = qwen3.causal_attention(jnp.asarray(VALID), config)
        inputs = {"params": {**parameters, "embed": embed}}
        hidden = qwen3.Qwen3(config).apply(inputs, jnp.asarray(tokens), attention)
        logits = head.unembed(parameters, hidden)
        return jnp.sum(jax.nn.log_softmax(logits) * loss_weights()), logits

    gradient, logits = jax.grad(loss, has_aux=True)(parameters["embed"])
    return logits, gradient[tokens]


def reference_logits(reference, embeddings):
    positions = torch.as_tensor(np.maximum(np.cumsum(VALID, -1) - 1, 0))
    mask = torch.as_tensor(VALID).long()
    return reference(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions).logits


def test_logits_equal_transformers(loaded):
    reference, config, parameters = loaded
    with torch.no_grad():
        embeddings = reference.get_input_embeddings()(torch.as_tensor(draw_tokens()))
        expected = reference_logits(reference, embeddings).numpy()
    actual, _ = logits_and_gradient(config, parameters)
    assert actual.dtype == jnp.float32
    assert np.std(expected) > 0.3  # logits that are all alike would agree with anything
    np.testing.assert_allclose(np.asarray(actual)[VALID], expected[VALID], atol=1e-4, rtol=0)


def test_gradients_of_activations_equal_transformers(loaded):
    reference, config, parameters = loaded
    embeddings = reference.get_input_embeddings()(torch.as_tensor(draw_tokens())).detach().requires_grad_()
    log_probs = torch.log_softmax(reference_logits(reference, embeddings), -1)
    (log_probs * torch.as_tensor(loss_weights())).sum().backward()
    expected = embeddings.grad.numpy()
    actual = np.asarray(logits_and_gradient(config, parameters)[1])
    error = np.linalg.norm((actual - expected)[VALID], axis=-1) / np.linalg.norm(expected[VALID], axis=-1)
    assert error.max() < 1e-3
    assert np.all(actual[~VALID] == 0.0)


@pytest.mark.parametrize("remat", ["cheap", "everything"])
def test_remat_leaves_gradients_alone(remat):
    config, base, _ = tiny_inputs(jnp.float32)
    recomputing = dataclasses.replace(config, remat=remat)
    for changed, recomputes in ((config, False), (recomputing, True)):
        jaxpr = str(logits_and_gradient.trace(changed, base).jaxpr)
        assert ("checkpoint" in jaxpr or "remat" in jaxpr) == recomputes
    expected, actual = logits_and_gradient(config, base)[1], logits_and_gradient(recomputing, base)[1]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_positions_count_valid_tokens():
    valid = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0]], bool)
    expected = [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2], [0, 0, 1, 2, 2]]
    np.testing.assert_array_equal(qwen3.positions_of(jnp.asarray(valid)), expected)


def test_padding_changes_nothing():
    """The same tokens with other padding around them, on the left, the right and both sides."""
    config, base, adapter = tiny_inputs(jnp.float32)
    short, starts = 9, (0, 5, 2)
    tokens, valid = np.full((ROWS, LENGTH), 7), np.zeros((ROWS, LENGTH), bool)
    for row, start in enumerate(starts):
        tokens[row, start : start + short] = draw_tokens()[0, :short]
        valid[row, start : start + short] = True
    hidden = hidden_with(config, base, adapter, tokens, valid)
    assert np.all(np.isfinite(hidden))
    right, left, both = (hidden[row, start : start + short] for row, start in enumerate(starts))
    np.testing.assert_allclose(left, right, atol=2e-5)
    np.testing.assert_allclose(both, right, atol=2e-5)


def tiny_inputs(dtype):
    """A tiny model with a moved adapter: config, base, adapter."""
    config = qwen3.Qwen3Config(96, 32, 56, 2, 4, 2, 12, dtype=dtype)
    init = jax.tree.map(jnp.asarray, lora2r.init_factors(config.module_shapes(), 2, 2, seed=0))
    generator = np.random.default_rng(3)  # NumPy: jax.random would compile a program for every shape
    deltas = jax.tree.map(lambda leaf: jnp.float32(0.1 * generator.normal(size=leaf.shape)), init)
    base = jax.tree.map(jnp.asarray, init_parameters(config, 0))
    return config, base, lora2r.Adapter(init, deltas)


def hidden_with(config, base, adapter, tokens=None, valid=VALID):
    """Hidden states with both blocks of the adapter on; adapter None: of the base model alone."""
    return _hidden(config, base, adapter, draw_tokens() if tokens is None else tokens, valid)


@functools.partial(jax.jit, static_argnums=0)
def _hidden(config, base, adapter, tokens, valid):
    attention = qwen3.causal_attention(valid, config)
    layer = None if adapter is None else qwen3.AdapterLayer(lora2r.fuse(adapter, config.dtype), None)
    return qwen3.Qwen3(config).apply({"params": base}, tokens, attention, layer, lora2r.full_route(ROWS))


def test_every_module_of_every_layer_is_adapted():
    config, base, adapter = tiny_inputs(jnp.float32)
    zero = adapter.replace(deltas=lora2r.zero_deltas(adapter.init))
    unmoved = hidden_with(config, base, zero)
    np.testing.assert_allclose(unmoved[VALID], hidden_with(config, base, None)[VALID], atol=1e-6)
    for name in lora2r.MODULES:
        for layer in range(config.num_layers):
            moved = zero.deltas.b[name].at[layer].set(adapter.deltas.b[name][layer])
            alone = zero.replace(deltas=zero.deltas.replace(b={**zero.deltas.b, name: moved}))
            assert np.abs(hidden_with(config, base, alone) - unmoved)[VALID].max() > 1e-3, (name, layer)


def test_merged_weights_equal_the_adapter():
    """W + B A - B0 A0, added up in float64, is the same model as the adapter beside W."""
    config, base, adapter = tiny_inputs(jnp.float32)
    init, deltas = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (adapter.init, adapter.deltas))
    layers = dict(base["layers"])
    for name in lora2r.MODULES:
        moved = (init.b[name] + deltas.b[name]) @ (init.a[name] + deltas.a[name])
        net = moved - init.b[name] @ init.a[name]  # [L, d_out, d_in]
        layers[name] = jnp.asarray(layers[name] + net.transpose(0, 2, 1), jnp.float32)
    expected = hidden_with(config, {**base, "layers": layers}, None)
    actual = hidden_with(config, base, adapter)
    np.testing.assert_allclose(actual[VALID], expected[VALID], atol=1e-4)


def test_bfloat16_stays_close_to_float32():
    config, base, adapter = tiny_inputs(jnp.bfloat16)
    rounded = hidden_with(config, base, adapter)
    assert rounded.dtype == jnp.bfloat16 and head.unembed(base, rounded).dtype == jnp.float32
    exact = dataclasses.replace(config, dtype=jnp.float32)
    expected = hidden_with(exact, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), base), adapter)[VALID]
    error = np.asarray(rounded, np.float32)[VALID] - expected
    assert np.linalg.norm(error) < 0.03 * np.linalg.norm(expected)


def published_shapes(config: qwen3.Qwen3Config) -> dict[str, list[int]]:
    """Names and shapes of the checkpoint that the parameter table expects."""
    shapes = {}
    for row in jax.tree.leaves(parameter_table(config), is_leaf=is_parameter):
        stacked = "{layer}" in row.published
        shape = row.shape[1:] if stacked else row.shape
        for layer in range(row.shape[0] if stacked else 1):
            shapes[row.published.format(layer=layer)] = list(shape[::-1] if row.transposed else shape)
    return shapes


def test_full_size_tensors_are_the_published_ones():
    assert len(TENSORS_4B) == 36 * 11 + 2
    assert published_shapes(QWEN3_4B) == TENSORS_4B


def test_full_size_fixture_equals_transformers():
    config = transformers.Qwen3Config(
        vocab_size=151936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = transformers.Qwen3ForCausalLM(config)
    shapes = {name: list(tensor.shape) for name, tensor in model.named_parameters()}
    assert shapes == TENSORS_4B


def test_full_size_parameter_count():
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    valid = jax.ShapeDtypeStruct((1, 8), jnp.bool_)

    def init(tokens, valid):
        attention = qwen3.causal_attention(valid, QWEN3_4B)
        return qwen3.Qwen3(QWEN3_4B).init(jax.random.key(0), tokens, attention)["params"]

    parameters = jax.eval_shape(init, tokens, valid)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameters)) == 4_022_468_096
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(parameters))
    abstract = abstract_parameters(QWEN3_4B)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), parameters) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), abstract
    )


def test_full_size_forward_shapes():
    factors = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((36, *leaf.shape[1:]), jnp.float32),
        lora2r.init_factors(QWEN3_4B.module_shapes(), 1, 32, seed=0),
    )

    def forward(base, adapter, tokens, valid):
        attention = qwen3.causal_attention(valid, QWEN3_4B)
        layer = qwen3.AdapterLayer(lora2r.fuse(adapter, QWEN3_4B.dtype), None)
        route = lora2r.ablated_route(2)
        hidden = qwen3.Qwen3(QWEN3_4B).apply({"params": base}, tokens, attention, layer, route)
        return head.unembed(base, hidden), qwen3.keys_and_values(QWEN3_4B, base, tokens, attention, layer, route)

    logits, (keys, values) = jax.eval_shape(
        forward,
        abstract_parameters(QWEN3_4B),
        lora2r.Adapter(init=factors, deltas=factors),
        jax.ShapeDtypeStruct((2, 16), jnp.int32),
        jax.ShapeDtypeStruct((2, 16), jnp.bool_),
    )
    assert logits.shape == (2, 16, 151936) and logits.dtype == jnp.float32
    assert keys.shape == values.shape == (36, 2, 16, 8, 128)


def test_full_size_adapter_counts():
    factors = lora2r.init_factors(QWEN3_4B.module_shapes(), 1, 32, seed=0)
    counts = {name: 36 * (factors.a[name].size + factors.b[name].size) for name in lora2r.MODULES}
    assert counts == {
        "q_proj": 15_335_424,
        "k_proj": 8_257_536,
        "v_proj": 8_257_536,
        "o_proj": 15_335_424,
        "gate_proj": 28_311_552,
        "up_proj": 28_311_552,
        "down_proj": 28_311_552,
    }


def test_random_parameters_have_the_table_s_structure_and_are_usable():
    config = qwen3.Qwen3Config(96, 32, 56, 2, 4, 2, 12, tie_embeddings=False)
    parameters = init_parameters(config, 5)
    expected = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract_parameters(config))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), parameters) == expected
    assert np.all(parameters["layers"]["q_norm"] == 1) and np.all(parameters["final_norm"] == 1)
    assert abs(np.std(parameters["layers"]["up_proj"]) / 0.02 - 1) < 0.05
    again, other = init_parameters(config, 5), init_parameters(config, 6)
    assert np.array_equal(parameters["embed"], again["embed"])
    assert not np.array_equal(parameters["embed"], other["embed"])
