"""The head: log-probabilities against float64, in any chunk size, and their gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgrout_jax.model import head

ROWS, LENGTH, WIDTH, VOCABULARY = 3, 7, 12, 40
CHUNKS = (1, 4, 5, 7, 21, 1000)  # of 21 tokens: dividing, not dividing, all, more than all


def draw(tied: bool) -> tuple[dict, jax.Array, jax.Array]:
    """Parameters with a head, hidden states, targets."""
    generator = np.random.default_rng(0)
    table = jnp.float32(generator.normal(size=(VOCABULARY, WIDTH)))
    base = {"embed": table} if tied else {"embed": jnp.zeros_like(table), "lm_head": table.T}
    hidden = jnp.float32(generator.normal(size=(ROWS, LENGTH, WIDTH)))
    return base, hidden, jnp.asarray(generator.integers(0, VOCABULARY, (ROWS, LENGTH)))


def exact_log_softmax(table, hidden) -> np.ndarray:
    """[N, T, V], float64."""
    logits = np.asarray(hidden, np.float64) @ np.asarray(table, np.float64).T
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def at_targets(values, targets) -> np.ndarray:
    return np.take_along_axis(values, np.asarray(targets)[..., None], -1)[..., 0]


def exact_slopes(table, hidden, targets) -> np.ndarray:
    """d log p(target) / d logits = 1 at the target, less p; [N, T, V], float64."""
    return np.eye(VOCABULARY)[np.asarray(targets)] - np.exp(exact_log_softmax(table, hidden))


def draw_weights() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(ROWS, LENGTH)).astype(np.float32)


@functools.partial(jax.jit, static_argnames="chunk")
def value_and_gradient(base, hidden, targets, weights, *, chunk):
    def loss(hidden):
        logprobs = head.token_logprobs(base, hidden, targets, chunk=chunk)
        return jnp.sum(weights * logprobs), logprobs

    gradient, logprobs = jax.grad(loss, has_aux=True)(hidden)
    return logprobs, gradient


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_equals_float64_log_softmax_in_any_chunk(chunk, tied):
    base, hidden, targets = draw(tied)
    table, weights = np.asarray(draw(True)[0]["embed"], np.float64), draw_weights()
    logprobs, gradient = value_and_gradient(base, hidden, targets, weights, chunk=chunk)
    assert logprobs.dtype == jnp.float32
    np.testing.assert_allclose(logprobs, at_targets(exact_log_softmax(table, hidden), targets), atol=2e-5)
    expected = weights[..., None] * (exact_slopes(table, hidden, targets) @ table)
    np.testing.assert_allclose(gradient, expected, atol=2e-5)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("chunk", [4, 1000])
def test_gradient_of_the_head_equals_float64(chunk, tied):
    """What the training of a whole small model needs."""
    base, hidden, targets = draw(tied)
    weights = draw_weights()

    def loss(base):
        return jnp.sum(weights * head.token_logprobs(base, hidden, targets, chunk=chunk))

    gradient = jax.jit(jax.grad(loss))(base)
    expected = weights[..., None] * exact_slopes(draw(True)[0]["embed"], hidden, targets)
    expected = np.einsum("NTV,NTD->VD", expected, np.asarray(hidden, np.float64))
    np.testing.assert_allclose(gradient["embed"] if tied else gradient["lm_head"].T, expected, atol=5e-5)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_unembed_has_the_logits(tied):
    base, hidden, _ = draw(tied)
    logits = head.unembed(base, hidden)
    expected = np.asarray(hidden, np.float64) @ np.asarray(draw(True)[0]["embed"], np.float64).T
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_extreme_logits_stay_finite():
    base, hidden, targets = draw(True)
    logprobs, gradient = value_and_gradient(base, 1e4 * hidden, targets, np.ones((ROWS, LENGTH)), chunk=4)
    assert np.all(np.isfinite(logprobs)) and np.all(np.isfinite(gradient))
    expected = at_targets(exact_log_softmax(base["embed"], 1e4 * hidden), targets)
    np.testing.assert_allclose(logprobs, expected, rtol=1e-5, atol=0.1)


def draw_rounded() -> tuple[dict, jax.Array, jax.Array]:
    base, hidden, targets = draw(True)
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), base), hidden.astype(jnp.bfloat16), targets


def test_bfloat16_hidden_states_give_float32_sums():
    """The softmax of rounded hidden states is float32 itself: its error is that of the inputs alone."""
    base, hidden, targets = draw_rounded()
    actual = jax.jit(functools.partial(head.token_logprobs, chunk=4))(base, hidden, targets)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, at_targets(exact_log_softmax(base["embed"], hidden), targets), atol=1e-4)


def test_a_nearly_certain_token_has_an_exact_gradient_in_bfloat16():
    """1 - p is rounded, not p: where p is almost 1 the difference would be gone."""
    base, hidden, _ = draw_rounded()
    hidden = (2 * hidden).astype(jnp.bfloat16)
    targets = exact_log_softmax(base["embed"], hidden).argmax(-1)
    logprobs, gradient = value_and_gradient(base, hidden, targets, np.ones((ROWS, LENGTH)), chunk=4)
    assert logprobs.max() > -2e-3
    expected = exact_slopes(base["embed"], hidden, targets) @ np.asarray(base["embed"], np.float64)
    error = np.linalg.norm(np.asarray(gradient, np.float64) - expected, axis=-1)
    assert np.all(error < 0.01 * np.linalg.norm(expected, axis=-1))


def test_a_gradient_costs_two_products_of_the_head():
    """Logits and the way back from them; no logits a second time, no gradient of a frozen head."""
    base, hidden, targets = draw(True)
    compiled = value_and_gradient.lower(base, hidden, targets, draw_weights(), chunk=ROWS).compile()
    product = 2 * ROWS * WIDTH * VOCABULARY  # of one position; loops over positions are counted once
    assert 2 * product <= compiled.cost_analysis()["flops"] < 3 * product
