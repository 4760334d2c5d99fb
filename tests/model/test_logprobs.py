"""Token log-probabilities: against float64, in any chunk size, under any padding, without the full logits."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgrout_jax.model import head, logprobs, lora2r, parameters, qwen3
from vgrout_jax.model.logprobs import continued_logprobs, prompt_caches
from vgrout_jax.model.policy import Policy

ROWS, LENGTH, VOCABULARY = 3, 7, 40
CONFIG = qwen3.Qwen3Config(VOCABULARY, 16, 24, 2, 4, 2, 6)
BUCKET = 5


@functools.cache
def model() -> tuple[dict, lora2r.Adapter]:
    generator = np.random.default_rng(3)
    # Ten times the usual spread: probabilities that are not flat. Norms stay ones.
    initial = parameters.init_parameters(CONFIG, 0)
    base = jax.tree.map(lambda leaf: jnp.asarray(leaf + 9 * (leaf - leaf.mean())), initial)
    init = jax.tree.map(jnp.asarray, lora2r.init_factors(CONFIG.module_shapes(), 2, 2, seed=0))
    deltas = jax.tree.map(lambda leaf: jnp.float32(0.1 * generator.normal(size=leaf.shape)), init)
    return base, lora2r.Adapter(init=init, deltas=deltas)


@functools.partial(jax.jit, static_argnames=("length", "chunk"))
def completion_logprobs(tokens, valid, adapter, scale=None, *, length=LENGTH, chunk=4):
    route = lora2r.full_route(len(tokens)) if adapter is not None else None
    return logprobs.completion_logprobs(
        CONFIG, Policy(model()[0], adapter, route, scale), tokens, valid, completion_length=length, chunk=chunk
    )


def batch() -> tuple[np.ndarray, np.ndarray]:
    tokens = np.random.default_rng(4).integers(0, VOCABULARY, (ROWS, BUCKET + LENGTH))
    return tokens, np.ones(tokens.shape, bool)


def test_completion_tokens_are_read_by_the_position_before_them():
    """Each value is the log-softmax at the token before, of the logits of the plain forward pass."""
    tokens, valid = batch()
    base, _ = model()

    @jax.jit
    def logits_of(tokens, valid):
        attention = qwen3.causal_attention(valid, CONFIG)
        hidden = qwen3.Qwen3(CONFIG).apply({"params": base}, tokens, attention)
        return head.unembed(base, hidden)

    logprobs = jax.nn.log_softmax(logits_of(tokens, valid)[:, BUCKET - 1 : -1])
    expected = np.take_along_axis(np.asarray(logprobs), tokens[:, BUCKET:, None], -1)[..., 0]
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(completion_logprobs(tokens, valid, None), expected, atol=1e-5)


def test_padding_on_either_side_changes_nothing():
    tokens, valid = batch()
    _, adapter = model()
    expected = completion_logprobs(tokens, valid, adapter)
    pad = ((0, 0), (6, 3))
    padded = completion_logprobs(
        np.pad(tokens, pad, constant_values=1), np.pad(valid, pad), adapter, length=LENGTH + 3
    )
    np.testing.assert_allclose(padded[:, :LENGTH], expected, atol=2e-5)
    assert np.all(np.isfinite(padded))


def test_rows_do_not_read_each_other():
    tokens, valid = batch()
    _, adapter = model()
    expected = completion_logprobs(tokens, valid, adapter)
    others = tokens.copy()
    others[1:] = (others[1:] + 1) % VOCABULARY
    changed = completion_logprobs(others, valid, adapter)
    np.testing.assert_array_equal(changed[0], expected[0])
    assert np.abs(changed[1:] - expected[1:]).max() > 0.1


def test_adapter_and_scale_reach_the_model():
    tokens, valid = batch()
    _, adapter = model()
    plain = completion_logprobs(tokens, valid, None)
    unmoved = adapter.replace(deltas=lora2r.zero_deltas(adapter.init))
    ones = lora2r.probe_ones(CONFIG.num_layers, ROWS, 2)
    np.testing.assert_allclose(completion_logprobs(tokens, valid, unmoved), plain, atol=1e-5)
    moved = completion_logprobs(tokens, valid, adapter)
    assert np.abs(moved - plain).max() > 1e-2
    np.testing.assert_allclose(completion_logprobs(tokens, valid, adapter, ones), moved, atol=1e-5)
    halved = {name: leaf / 2 for name, leaf in ones.items()}
    assert np.abs(completion_logprobs(tokens, valid, adapter, halved) - moved).max() > 1e-2


@pytest.mark.parametrize("remat", qwen3.REMATS)
def test_reading_the_prompt_first_changes_neither_values_nor_gradients(remat):
    """Prompts of one token and of all the bucket's; gradients with respect to differences and the probe's scale."""
    config = dataclasses.replace(CONFIG, remat=remat)
    tokens, valid = batch()
    valid = valid & (np.arange(BUCKET + LENGTH) >= np.arange(ROWS)[:, None] * (BUCKET - 1) // (ROWS - 1))
    assert valid[:, :BUCKET].sum(1).min() == 1 and valid[0].all()
    base, adapter = model()
    generator = np.random.default_rng(9)
    weights = jnp.asarray(generator.normal(size=(ROWS, LENGTH)), jnp.float32)
    route = lora2r.Route(jnp.arange(ROWS) % 2 == 0, jnp.arange(ROWS) % 4 == 0)

    def whole(deltas, scale):
        policy = Policy(base, lora2r.Adapter(adapter.init, deltas), route, scale)
        arrays = jnp.asarray(tokens), jnp.asarray(valid)
        found = logprobs.completion_logprobs(config, policy, *arrays, completion_length=LENGTH, chunk=4)
        return jnp.sum(found * weights), found

    def in_two(deltas, scale):
        policy = Policy(base, lora2r.Adapter(adapter.init, deltas), route, scale)
        prompts, where = jnp.asarray(tokens[:, :BUCKET]), jnp.asarray(valid[:, :BUCKET])
        caches = prompt_caches(config, policy, prompts, where)
        following, lengths = jnp.asarray(tokens[:, BUCKET - 1 :]), where.sum(1)
        found = continued_logprobs(config, policy, caches, lengths, following, chunk=4)
        return jnp.sum(found * weights), found

    ones = lora2r.probe_ones(CONFIG.num_layers, ROWS, 2)
    (expected, found) = (
        jax.jit(jax.grad(function, argnums=(0, 1), has_aux=True))(adapter.deltas, ones)
        for function in (whole, in_two)
    )
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(found[0]), jax.tree.leaves(expected[0]), strict=True):
        assert np.abs(theirs).max() > 1e-3
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * max(1.0, float(np.abs(theirs).max())))


def float32_shapes(chunk: int) -> set[tuple[int, ...]]:
    """Shapes of all float32 arrays in the compiled forward and backward pass."""
    base, adapter = model()
    tokens, valid = batch()

    def loss(deltas):
        found = logprobs.completion_logprobs(
            CONFIG,
            Policy(base, adapter.replace(deltas=deltas), lora2r.full_route(ROWS)),
            jnp.asarray(tokens),
            jnp.asarray(valid),
            completion_length=LENGTH,
            chunk=chunk,
        )
        return jnp.sum(found)

    text = jax.jit(jax.value_and_grad(loss)).lower(adapter.deltas).compile().as_text()
    return {tuple(map(int, shape.split(","))) for shape in re.findall(r"\bf32\[([\d,]+)\]", text)}


def holds_logits(shapes: set[tuple[int, ...]], tokens: int) -> bool:
    """Whether some array has `tokens` times the vocabulary, in whatever layout."""
    return any(VOCABULARY in shape and np.prod(shape) >= tokens * VOCABULARY for shape in shapes)


def test_full_logits_never_exist_in_the_compiled_program():
    chunked = float32_shapes(chunk=4)
    assert holds_logits(chunked, 4)
    assert not holds_logits(chunked, ROWS * LENGTH)
    assert holds_logits(float32_shapes(chunk=ROWS * LENGTH), ROWS * LENGTH)  # what the test would find
