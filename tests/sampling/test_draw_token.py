"""Truncation against a NumPy sort in float64, and drawing against the exact distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgrout_jax.sampling import draw_token


def kept_by_sorting(logits: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """Which tokens remain, [V] bool, by the definition: sort, cut at k, renormalise, cut at mass p."""
    order = np.argsort(-logits)
    if top_k:
        order = order[:top_k]
    probabilities = np.exp(logits[order] - logits.max())
    probabilities /= probabilities.sum()
    before = np.cumsum(probabilities) - probabilities
    kept = np.zeros(len(logits), bool)
    kept[order[(before < top_p) | (top_p == 1.0)]] = True
    return kept


@pytest.mark.parametrize("spread", [0.3, 3.0, 30.0])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 0.95), (0, 0.5), (0, 1e-6), (1, 1.0), (7, 1.0), (7, 0.6), (59, 0.99), (60, 0.9)]
)
def test_truncation_equals_a_sort(top_k, top_p, spread):
    logits = np.random.default_rng(0).normal(size=(100, 60)).astype(np.float32) * spread
    kept = np.isfinite(draw_token.truncate(jnp.asarray(logits), top_k=top_k, top_p=top_p))
    expected = [kept_by_sorting(row, top_k, top_p) for row in logits.astype(np.float64)]
    np.testing.assert_array_equal(kept, expected)


def test_truncation_equals_a_sort_at_full_vocabulary():
    logits = np.random.default_rng(1).normal(size=(3, 151_936)).astype(np.float32) * np.float32(2.5)
    for top_k, top_p in [(0, 0.95), (5000, 0.9)]:
        kept = np.asarray(np.isfinite(draw_token.truncate(jnp.asarray(logits), top_k=top_k, top_p=top_p)))
        for row, found in zip(logits.astype(np.float64), kept, strict=True):
            expected = kept_by_sorting(row, top_k, top_p)
            # float32 sums of 151,936 terms settle the edge to about one part in a million of the mass
            mass = np.exp(row - row.max())
            assert mass[expected ^ found].sum() <= 3e-6 * mass.sum()
            assert found.sum() > 1000


def test_kept_logits_are_untouched_and_the_rest_is_impossible():
    logits = jnp.asarray(np.random.default_rng(2).normal(size=(4, 30)), jnp.float32)
    cut = np.asarray(draw_token.truncate(logits, top_k=5, top_p=1.0))
    assert (np.isfinite(cut).sum(axis=1) == 5).all()
    np.testing.assert_array_equal(cut[np.isfinite(cut)], np.asarray(logits)[np.isfinite(cut)])
    assert (cut[~np.isfinite(cut)] == -np.inf).all()


@pytest.mark.parametrize("top_k", [0, 30, 31, 10**9])
def test_top_k_of_the_vocabulary_and_more_is_off(top_k):
    logits = jnp.asarray(np.random.default_rng(2).normal(size=(4, 30)), jnp.float32)
    np.testing.assert_array_equal(draw_token.truncate(logits, top_k=top_k, top_p=1.0), logits)


def test_tied_tokens_are_kept_together():
    logits = jnp.log(jnp.array([[0.4, 0.2, 0.2, 0.2]], jnp.float32))
    np.testing.assert_array_equal(np.isfinite(draw_token.truncate(logits, top_k=2, top_p=1.0)), [[True] * 4])
    np.testing.assert_array_equal(np.isfinite(draw_token.truncate(logits, top_k=0, top_p=0.5)), [[True] * 4])
    one = [[True, False, False, False]]
    np.testing.assert_array_equal(np.isfinite(draw_token.truncate(logits, top_k=0, top_p=0.3)), one)
    np.testing.assert_array_equal(np.isfinite(draw_token.truncate(logits, top_k=1, top_p=1.0)), one)


@pytest.mark.parametrize("top_p", [1e-30, 1e-45, 0.5])
def test_the_most_probable_token_always_stays(top_p):
    logits = jnp.array([[0.0, 200.0, -200.0], [5.0, 1.0, -1.0]], jnp.float32)
    kept = np.isfinite(draw_token.truncate(logits, top_k=0, top_p=top_p))
    np.testing.assert_array_equal(kept, [[False, True, False], [True, False, False]])


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 0, 0.9), (1.6, 6, 0.9)])
def test_frequencies_are_those_of_the_truncated_softmax(temperature, top_k, top_p):
    rows = 60_000
    logits = np.random.default_rng(3).normal(size=12) * 1.5
    kept = kept_by_sorting(logits / temperature, top_k, top_p)
    expected = np.where(kept, np.exp(logits / temperature), 0.0)
    expected /= expected.sum()
    keys = jax.random.split(jax.random.key(0), rows)
    repeated = jnp.asarray(np.tile(logits, (rows, 1)), jnp.float32)
    tokens, logprobs, policy_logprobs = draw_token.draw(
        repeated, keys, jnp.float32(temperature), top_k=top_k, top_p=top_p
    )
    counts = np.bincount(tokens, minlength=12)
    np.testing.assert_array_equal(counts[~kept], 0)
    deviations = np.sqrt(rows * expected * (1 - expected))
    assert (np.abs(counts - rows * expected) <= 5.5 * deviations).all()  # one in 10^7 by chance
    np.testing.assert_allclose(logprobs, np.log(expected[tokens]), atol=1e-5)
    untempered = logits - np.log(np.exp(logits).sum())
    np.testing.assert_allclose(policy_logprobs, untempered[np.asarray(tokens)], atol=1e-5)


def test_temperature_zero_takes_the_most_probable_token():
    logits = jnp.asarray(np.random.default_rng(4).normal(size=(50, 20)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 50)
    tokens, logprobs, _ = draw_token.draw(logits, keys, jnp.float32(0.0), top_k=3, top_p=0.5)
    np.testing.assert_array_equal(tokens, np.argmax(logits, axis=-1))
    np.testing.assert_array_equal(logprobs, 0.0)
