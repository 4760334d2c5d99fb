"""The GRPO loss, row by row, so that a batch of rollouts can be processed in micro-batches of any size.

Advantages come from the arm (`arms/advantages.py`); losses are computed for any subset of the batch's rows, already
divided by the normalisers of the whole batch, so that micro-batches just add up.
"""

import dataclasses
import math

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vgrout_jax.config import Config

RATIOS = ("clip", "truncated")


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """What the loss depends on beside its arrays.

    Attributes:
        ratio: `clip` or `truncated`.
        clip_epsilon: half-width of the clip's interval around 1; unused by `truncated`.
        kl_coefficient: a Python float; 0 leaves the KL term out of the loss.
        unbiased: Dr. GRPO's normalisation: by N max_new_tokens; else by N and each rollout's own length.
        rollouts: N = P G of the whole batch, dead groups included.
        max_new_tokens: the sampler's length limit, not the width of an array.
    """

    ratio: str
    clip_epsilon: float
    kl_coefficient: float
    unbiased: bool
    rollouts: int
    max_new_tokens: int

    @classmethod
    def of(cls, config: Config) -> "LossSettings":
        """Those of a run."""
        return cls(
            ratio=config.loss.ratio,
            clip_epsilon=config.loss.clip_epsilon,
            kl_coefficient=config.loss.kl_coefficient,
            unbiased=config.grpo.unbiased,
            rollouts=config.rollout.prompts * config.rollout.group_size,
            max_new_tokens=config.rollout.max_new_tokens,
        )


@flax.struct.dataclass
class LossStats:
    """Diagnostics of each rollout; means run over its completion tokens, and are 0 where it has none.

    Weight the rows by `tokens` for the token mean of a zone. Rows of dead groups count as having no tokens.

    Attributes:
        ratio: [n] float32, mean of rho = pi / pi_old.
        clip_fraction: [n] float32, share of tokens whose policy gradient the clip takes away (`clip`), or
            whose ratio was cut down to 1 (`truncated`).
        kl: [n] float32, mean of exp(delta) - delta - 1 in nats, or None where there is no reference.
        tokens: [n] int32, completion tokens that count in the loss.
        logprobs: [n, T] float32, of the policy that trains, 0 at tokens that do not count; None once they are read.
    """

    ratio: jax.Array
    clip_fraction: jax.Array
    kl: jax.Array | None
    tokens: jax.Array
    logprobs: jax.Array | None

    @classmethod
    def of_nothing(cls, rows: int, tokens: int, *, kl: bool) -> "LossStats":
        """Those of rows that are not run."""
        zeros = jnp.zeros(rows)
        logprobs = jnp.zeros((rows, tokens))
        return cls(zeros, zeros, zeros if kl else None, jnp.zeros(rows, jnp.int32), logprobs)


def probe_loss(
    logprobs: Float[Array, "n T"], advantages: Float[Array, " n"], mask: Bool[Array, "n T"]
) -> Float[Array, ""]:
    """The policy-gradient loss that pass 1 differentiates with respect to the probe scale.

    -sum_i A_i sum_t logpi[i, t]: no ratio, no KL, no length normalisation, since a positive factor per
    rollout cancels in the gate's cosine. Logprobs in nats, float32; masked positions may hold anything.

    Returns:
        A scalar, the sum over rows. docs/method.md section 7, pass 1.
    """
    row_logprobs = jnp.sum(jnp.where(mask, logprobs, 0.0), axis=1)
    return -jnp.sum(jax.lax.stop_gradient(advantages) * row_logprobs)


def row_losses(
    logprobs: Float[Array, "n T"],
    old_logprobs: Float[Array, "n T"],
    reference_logprobs: Float[Array, "n T"] | None,
    mask: Bool[Array, "n T"],
    advantages: Float[Array, " n"],
    *,
    live: Bool[Array, " n"],
    settings: LossSettings,
) -> tuple[Float[Array, " n"], LossStats]:
    """Each rollout's share of the batch's loss: the sum over all N rows, in any micro-batches, is the loss.

    Token loss: policy + kl_coefficient kl, the terms of `policy_token_losses` and `kl_terms`. A row's share
    is its sum over completion tokens, divided by N max_new_tokens when `unbiased`, else by N len_i.

    Args:
        logprobs: [n, T] float32, nats, of pass 2's masked policy; the only argument that a gradient reaches.
        old_logprobs: [n, T], of the policy that sampled. `logprobs` itself gives rho = 1.
        reference_logprobs: [n, T], of the base with the adapter off; may be None where kl_coefficient is 0.
        mask: [n, T], completion tokens up to and including the first EOS. Elsewhere the log-probabilities may
            hold anything, NaN and infinities too: value 0, gradient 0. A row without tokens has loss 0.
        advantages: [n], of `group_advantages`.
        live: [n], False for rows of dead groups, which contribute nothing, KL included.
        settings: of the run.

    Returns:
        Losses [n] and `LossStats`. docs/method.md sections 7 and 8.

    Raises:
        ValueError: unknown ratio, or a KL term without a reference.
    """
    kl_coefficient, length = settings.kl_coefficient, settings.max_new_tokens
    if kl_coefficient != 0 and reference_logprobs is None:
        raise ValueError(
            f"loss.kl_coefficient must be 0 where no reference is given, got {kl_coefficient}: pass the "
            "log-probabilities of the base model with the adapter off"
        )
    counted = mask & live[:, None]
    # Masked here and again on the token losses: the second alone would let a masked NaN into the gradient.
    current = jnp.where(counted, logprobs, 0.0)
    policy, clipped = policy_token_losses(
        current, old_logprobs, advantages, ratio=settings.ratio, clip_epsilon=settings.clip_epsilon
    )
    stats = LossStats(
        ratio=_token_mean(jnp.exp(current - old_logprobs), counted),
        clip_fraction=_token_mean(clipped.astype(current.dtype), counted),
        kl=None,
        tokens=jnp.sum(counted, axis=1),
        logprobs=jax.lax.stop_gradient(current),
    )
    token_losses = policy
    if reference_logprobs is not None:
        divergence = kl_terms(current, reference_logprobs)
        stats = stats.replace(kl=_token_mean(divergence, counted))
        if kl_coefficient != 0:
            token_losses = policy + kl_coefficient * divergence
    if not settings.unbiased:
        length = jnp.maximum(stats.tokens, 1)
    return jnp.sum(jnp.where(counted, token_losses, 0.0), axis=1) / (settings.rollouts * length), stats


def policy_token_losses(
    logprobs: Float[Array, "n T"],
    old_logprobs: Float[Array, "n T"],
    advantages: Float[Array, " n"],
    *,
    ratio: str,
    clip_epsilon: float,
) -> tuple[Float[Array, "n T"], Bool[Array, "n T"]]:
    """The policy-gradient loss of every token, with rho = exp(logpi - logpi_old), and where rho was cut.

    `clip`:      -min(rho A, clip(rho, 1 - epsilon, 1 + epsilon) A)
    `truncated`: -stop_gradient(min(rho, 1)) A logpi

    For negative advantages `clip` does not bound rho from above, and under masks rho can be far from 1;
    `truncated` bounds it for either sign. docs/method.md section 7, the ratio under masks, and section 8.

    Returns:
        Token losses [n, T], and [n, T] True where the clip takes the gradient away (`clip`) or rho > 1
        (`truncated`).

    Raises:
        ValueError: unknown ratio.
    """
    advantage = jax.lax.stop_gradient(advantages)[:, None]  # [n, 1]
    log_ratio = logprobs - jax.lax.stop_gradient(old_logprobs)
    if ratio == "truncated":
        weight = jax.lax.stop_gradient(jnp.exp(jnp.minimum(log_ratio, 0.0)))
        return -weight * advantage * logprobs, log_ratio > 0.0
    if ratio != "clip":
        raise ValueError(f"loss.ratio must be one of {RATIOS}, got {ratio!r}")
    # Beyond the upper edge the value is constant where A >= 0, so the bound changes nothing; without it a rho
    # that overflows would turn the clip's zero gradient into 0 * inf.
    bounded = jnp.minimum(log_ratio, math.log1p(clip_epsilon) + 1.0)
    rho = jnp.exp(jnp.where(advantage < 0.0, log_ratio, bounded))
    unclipped = rho * advantage
    clipped = jnp.clip(rho, 1.0 - clip_epsilon, 1.0 + clip_epsilon) * advantage
    return -jnp.minimum(unclipped, clipped), clipped < unclipped


def kl_terms(logprobs: Float[Array, "n T"], reference_logprobs: Float[Array, "n T"]) -> Float[Array, "n T"]:
    """A non-negative estimate of KL(pi || pi_ref) from each sampled token, in nats.

    exp(delta) - delta - 1 with delta = logpi_ref - logpi. No gradient reaches the reference.
    docs/method.md section 8.
    """
    delta = jax.lax.stop_gradient(reference_logprobs) - logprobs
    # exp(delta) - 1 in one operation: early in training delta is small, and the difference is all rounding.
    return jnp.expm1(delta) - delta


def _token_mean(values: jax.Array, counted: jax.Array) -> jax.Array:
    """Mean over each row's counted tokens, 0 for a row without any; no gradient. [n, T] -> [n]."""
    total = jnp.sum(jnp.where(counted, values, 0.0), axis=1)
    return jax.lax.stop_gradient(total / jnp.maximum(jnp.sum(counted, axis=1), 1))
