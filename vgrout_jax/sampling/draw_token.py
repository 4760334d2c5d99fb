"""Drawing a token from logits: temperature, top-k, nucleus, and the Gumbel-max rule with a key for every row."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32


def draw(
    logits: Float[Array, "N V"], keys: jax.Array, temperature: Float[Array, ""], *, top_k: int, top_p: float
) -> tuple[Int[Array, " N"], Float[Array, " N"], Float[Array, " N"]]:
    """One token a row by the Gumbel-max rule, each with a key of its own: no row sees another.

    Args:
        logits: float32.
        keys: [N] PRNG keys.
        temperature: 0 takes the most probable token.
        top_k: see `truncate`.
        top_p: likewise.

    Returns:
        The tokens, their log-probabilities under the distribution they were drawn from, and those under
        softmax(logits), both float32.
    """
    greedy = temperature <= 0.0
    kept = truncate(logits / jnp.where(greedy, 1.0, temperature), top_k=top_k, top_p=top_p)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:], jnp.float32))(keys)
    token = _first_greatest(jnp.where(greedy, logits, kept + noise))

    def logprob(scores: Array) -> Array:
        chosen = jnp.take_along_axis(scores, token[:, None], axis=-1)[:, 0]
        return chosen - jax.nn.logsumexp(scores, axis=-1)

    return token, jnp.where(greedy, 0.0, logprob(kept)), logprob(logits)


def _first_greatest(scores: Float[Array, "N V"]) -> Int[Array, " N"]:
    """The place of each row's greatest score, as two plain reductions: XLA's argmax on the CPU is no vector code."""
    places = jnp.arange(scores.shape[1], dtype=jnp.int32)
    greatest = jnp.max(scores, axis=-1, keepdims=True)
    first = jnp.min(jnp.where(scores == greatest, places, scores.shape[1]), axis=-1)
    return jnp.minimum(first, scores.shape[1] - 1)  # where a score is not a number, none equals the greatest


def truncate(logits: Float[Array, "N V"], *, top_k: int, top_p: float) -> Float[Array, "N V"]:
    """Sets to -inf what lies outside the `top_k` most probable tokens, and of those outside the nucleus.

    The nucleus is the smallest set of most probable tokens whose probability, renormalised after top-k,
    reaches `top_p`; it holds one token at least. Tokens whose logit equals the least one of a set are all in
    it, so that ties do not depend on token ids. `top_k` 0 or at least V and `top_p` 1 are off. Nucleus
    sampling: Holtzman et al. 2020, arXiv 1904.09751.
    """
    by_count, by_mass = 0 < top_k < logits.shape[-1], top_p < 1.0
    if not (by_count or by_mass):
        return logits
    ranks = _ranks(logits)
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    least = jnp.zeros_like(ranks[:, :1])
    if by_count:
        least = _least_kept(ranks, jnp.ones_like(weights), jnp.full(least.shape, top_k, jnp.float32))
        weights = jnp.where(ranks >= least, weights, 0.0)
    if by_mass:
        needed = top_p * jnp.sum(weights, axis=-1, keepdims=True)
        least = jnp.maximum(least, _least_kept(ranks, weights, needed))
    return jnp.where(ranks >= least, logits, -jnp.inf)


def _ranks(x: Float[Array, "N V"]) -> UInt32[Array, "N V"]:
    """Integers ordered as the float32 numbers are: bit patterns, with those of negative numbers reversed."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits >= sign, ~bits, bits | sign)


def _least_kept(
    ranks: UInt32[Array, "N V"], amounts: Float[Array, "N V"], needed: Float[Array, "N 1"]
) -> UInt32[Array, "N 1"]:
    """The largest rank such that the tokens of at least that rank have amounts that sum to `needed`.

    Found exactly and without a sort of the vocabulary: its 32 bits are settled from the top, two in each pass
    over the row.
    """

    def settle(index: Array, found: Array) -> Array:
        place = (30 - 2 * index).astype(jnp.uint32)
        floors = [found + (jnp.uint32(digit) << place) for digit in (1, 2, 3)]  # each [N, 1]
        sums = [jnp.sum(jnp.where(ranks >= floor, amounts, 0.0), -1, keepdims=True) for floor in floors]
        passed = sum((total >= needed).astype(jnp.uint32) for total in sums)
        return found + (passed << place)

    found = jax.lax.fori_loop(0, 16, settle, jnp.zeros(needed.shape, jnp.uint32))
    # `needed` may have rounded to zero; the most probable token stays all the same.
    return jnp.minimum(found, jnp.max(ranks, axis=-1, keepdims=True))
