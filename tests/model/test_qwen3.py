"""Qwen3 against transformers on tiny random weights, and the full-size model by its shapes alone."""

import dataclasses
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
from vgrout_jax.model import hub, lora2r, qwen3

CASES = {
    "tied_two_groups": {},
    "untied_one_group": {"tie_word_embeddings": False, "num_key_value_heads": 1, "head_dim": 8},
    "untied_no_sharing": {
        "tie_word_embeddings": False,
        "num_key_value_heads": 4,
        "num_hidden_layers": 3,
        "rms_norm_eps": 1e-3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    },
    "tied_one_group_wide_heads": {"num_key_value_heads": 1, "head_dim": 20, "hidden_size": 24},
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
def pair(request, tmp_path_factory):
    """A reference model, our config and our parameters, loaded through the path of real weights."""
    reference = tiny.random_reference(**CASES[request.param])
    folder = tiny.save_reference(tmp_path_factory.mktemp("model"), reference)
    config = hub.load_config(folder)
    return reference, config, hub.load_parameters(folder, config)


def draw_tokens() -> np.ndarray:
    """All different, so that the gradient of an embedding row is that of one position."""
    return np.random.default_rng(0).permutation(96)[: ROWS * LENGTH].reshape(ROWS, LENGTH)


def logits_of(config, parameters, tokens, valid, embed=None):
    inputs = parameters if embed is None else {**parameters, "embed": embed}
    attention = qwen3.causal_attention(jnp.asarray(valid), config)
    hidden, _ = qwen3.Qwen3(config).apply({"params": inputs}, jnp.asarray(tokens), attention)
    return qwen3.unembed(parameters, hidden)


def reference_logits(reference, embeddings, valid):
    positions = torch.as_tensor(np.maximum(np.cumsum(valid, -1) - 1, 0))
    mask = torch.as_tensor(valid).long()
    return reference(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions).logits


def test_logits_equal_transformers(pair):
    reference, config, parameters = pair
    tokens = draw_tokens()
    with torch.no_grad():
        embeddings = reference.get_input_embeddings()(torch.as_tensor(tokens))
        expected = reference_logits(reference, embeddings, VALID).numpy()
    actual = jax.jit(lambda p: logits_of(config, p, tokens, VALID))(parameters)
    assert actual.dtype == jnp.float32
    assert np.std(expected) > 0.3  # logits that are all alike would agree with anything
    np.testing.assert_allclose(np.asarray(actual)[VALID], expected[VALID], atol=1e-4, rtol=0)


def test_gradients_of_activations_equal_transformers(pair):
    reference, config, parameters = pair
    tokens = draw_tokens()
    weights = np.random.default_rng(1).normal(size=(ROWS, LENGTH, 96)).astype(np.float32) * VALID[..., None]

    embeddings = reference.get_input_embeddings()(torch.as_tensor(tokens)).detach().requires_grad_()
    log_probs = torch.log_softmax(reference_logits(reference, embeddings, VALID), -1)
    (log_probs * torch.as_tensor(weights)).sum().backward()
    expected = embeddings.grad.numpy()

    def loss(embed):
        logits = logits_of(config, parameters, tokens, VALID, embed)
        return jnp.sum(jax.nn.log_softmax(logits) * weights)

    actual = np.asarray(jax.jit(jax.grad(loss))(parameters["embed"]))[tokens]  # [N, T, D]
    error = np.linalg.norm((actual - expected)[VALID], axis=-1) / np.linalg.norm(expected[VALID], axis=-1)
    assert error.max() < 1e-3
    assert np.all(actual[~VALID] == 0.0)


@pytest.mark.parametrize("before, after", [(4, 0), (0, 3), (5, 2)])
def test_padding_changes_nothing(pair, before, after):
    _, config, parameters = pair
    tokens = draw_tokens()
    run = jax.jit(lambda t, v: logits_of(config, parameters, t, v))
    expected = run(tokens, np.ones_like(tokens, bool))
    pad = ((0, 0), (before, after))
    padded = run(np.pad(tokens, pad, constant_values=7), np.pad(np.ones_like(tokens, bool), pad))
    np.testing.assert_allclose(padded[:, before : before + LENGTH], expected, atol=2e-5)
    assert np.all(np.isfinite(padded))


def tiny_inputs(dtype):
    """A tiny model with a moved adapter: config, base, adapter."""
    config = qwen3.Qwen3Config(96, 32, 56, 2, 4, 2, 12, dtype=dtype)
    init = jax.tree.map(jnp.asarray, lora2r.init_factors(config.module_shapes(), 2, 2, seed=0))
    keys = iter(jax.random.split(jax.random.key(3), 14))
    deltas = jax.tree.map(lambda leaf: 0.1 * jax.random.normal(next(keys), leaf.shape), init)
    return config, qwen3.init_parameters(config, 0), lora2r.Adapter(init, deltas)


def test_remat_leaves_gradients_alone():
    config, base, adapter = tiny_inputs(jnp.float32)
    tokens = jnp.asarray(draw_tokens())

    def gradients(remat):
        changed = dataclasses.replace(config, remat=remat)

        def loss(deltas):
            layer = qwen3.AdapterLayer(lora2r.fuse(adapter.replace(deltas=deltas), config.dtype), None)
            attention = qwen3.causal_attention(jnp.asarray(VALID), config)
            route = lora2r.full_route(ROWS)
            hidden, _ = qwen3.Qwen3(changed).apply({"params": base}, tokens, attention, layer, route)
            return jnp.sum(jnp.square(jax.nn.softmax(qwen3.unembed(base, hidden))))

        program = jax.jit(jax.grad(loss))
        saved = len(jax.make_jaxpr(jax.grad(loss))(adapter.deltas).pretty_print().split("remat"))
        return program(adapter.deltas), saved

    (with_remat, with_count), (without, without_count) = gradients(True), gradients(False)
    assert with_count > without_count  # the switch does something
    for actual, expected in zip(jax.tree.leaves(with_remat), jax.tree.leaves(without), strict=True):
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-7)


def test_adapter_changes_every_module_it_is_given():
    config, base, adapter = tiny_inputs(jnp.float32)
    tokens, attention = jnp.asarray(draw_tokens()), qwen3.causal_attention(jnp.asarray(VALID), config)

    @jax.jit
    def hidden_with(deltas):
        layer = qwen3.AdapterLayer(lora2r.fuse(adapter.replace(deltas=deltas), config.dtype), None)
        route = lora2r.full_route(ROWS)
        return qwen3.Qwen3(config).apply({"params": base}, tokens, attention, layer, route)[0]

    plain, _ = qwen3.Qwen3(config).apply({"params": base}, tokens, attention)
    zero = lora2r.zero_deltas(adapter.init)
    np.testing.assert_allclose(hidden_with(zero), plain, atol=1e-6)
    for name in lora2r.MODULES:
        for layer in range(config.num_layers):
            one = adapter.deltas.b[name][layer]
            alone = zero.replace(b={**zero.b, name: zero.b[name].at[layer].set(one)})
            assert np.abs(hidden_with(alone) - hidden_with(zero))[VALID].max() > 1e-3, (name, layer)


def test_merged_weights_equal_the_adapter():
    """W + B A - B0 A0, added up in float64, is the same model as the adapter beside W."""
    config, base, adapter = tiny_inputs(jnp.float32)
    tokens, attention = jnp.asarray(draw_tokens()), qwen3.causal_attention(jnp.asarray(VALID), config)
    init, deltas = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (adapter.init, adapter.deltas))
    layers = dict(base["layers"])
    for name in lora2r.MODULES:
        moved = (init.b[name] + deltas.b[name]) @ (init.a[name] + deltas.a[name])
        net = moved - init.b[name] @ init.a[name]  # [L, d_out, d_in]
        layers[name] = (layers[name] + net.transpose(0, 2, 1)).astype(np.float32)
    merged = {**base, "layers": layers}
    expected, _ = qwen3.Qwen3(config).apply({"params": merged}, tokens, attention)
    layer = qwen3.AdapterLayer(lora2r.fuse(adapter, config.dtype), None)
    route = lora2r.full_route(ROWS)
    actual, _ = qwen3.Qwen3(config).apply({"params": base}, tokens, attention, layer, route)
    np.testing.assert_allclose(np.asarray(actual)[VALID], np.asarray(expected)[VALID], atol=1e-4)


def test_bfloat16_stays_close_to_float32():
    config, base, adapter = tiny_inputs(jnp.bfloat16)
    exact = dataclasses.replace(config, dtype=jnp.float32)
    tokens, attention = jnp.asarray(draw_tokens()), qwen3.causal_attention(jnp.asarray(VALID), config)

    def run(config, base):
        layer = qwen3.AdapterLayer(lora2r.fuse(adapter, config.dtype), None)
        route = lora2r.full_route(ROWS)
        hidden, _ = qwen3.Qwen3(config).apply({"params": base}, tokens, attention, layer, route)
        assert hidden.dtype == config.dtype
        return np.asarray(qwen3.unembed(base, hidden))[VALID]

    rounded = run(config, base)
    expected = run(exact, jax.tree.map(lambda leaf: leaf.astype(np.float32), base))
    assert rounded.dtype == np.float32
    assert np.linalg.norm(rounded - expected) < 0.03 * np.linalg.norm(expected)


def published_shapes(config: qwen3.Qwen3Config) -> dict[str, list[int]]:
    """Names and shapes of the checkpoint that the parameter table expects."""
    shapes = {}
    for row in jax.tree.leaves(qwen3.parameter_table(config), is_leaf=qwen3.is_parameter):
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
    abstract = qwen3.abstract_parameters(QWEN3_4B)
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
        hidden, caches = qwen3.Qwen3(QWEN3_4B).apply(
            {"params": base}, tokens, attention, layer, route, with_cache=True
        )
        return qwen3.unembed(base, hidden), caches

    logits, (keys, values) = jax.eval_shape(
        forward,
        qwen3.abstract_parameters(QWEN3_4B),
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
    parameters = qwen3.init_parameters(config, 5)
    expected = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), qwen3.abstract_parameters(config))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), parameters) == expected
    assert np.all(parameters["layers"]["q_norm"] == 1) and np.all(parameters["final_norm"] == 1)
    assert abs(np.std(parameters["layers"]["up_proj"]) / 0.02 - 1) < 0.05
    again, other = qwen3.init_parameters(config, 5), qwen3.init_parameters(config, 6)
    assert np.array_equal(parameters["embed"], again["embed"])
    assert not np.array_equal(parameters["embed"], other["embed"])
