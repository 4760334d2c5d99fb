"""How the rewards of a group become advantages (docs/method.md section 8)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vgrout_jax.arms.base import Decision, Flags

MIN_REWARD_SPREAD = 1e-4  # a group whose rewards differ by less has nothing to teach
STD_FLOOR = 1e-4  # added to a group's standard deviation before it divides


def group_advantages(rewards: Float[Array, "P G"], *, unbiased: bool) -> tuple[Float[Array, "P G"], Bool[Array, "P"]]:
    """How much better each rollout did than its group, and which groups have anything to teach.

    A = r - mean(r); with `unbiased` off, A / (std(r) + 1e-4) with the sample standard deviation (n - 1). A
    group with max(r) - min(r) < 1e-4 is dead: its advantages are exactly 0. A difference within the rounding
    error of the mean is exactly 0 too, since the probe's cosine would read a direction out of its sign.

    Args:
        rewards: [P, G] float32.
        unbiased: Dr. GRPO (Liu et al. 2025, arXiv 2503.20783); off: GRPO (Shao et al. 2024,
            arXiv 2402.03300).

    Returns:
        Advantages [P, G] and live [P]. A reward that is not finite leaves its group live and makes its
        advantages non-finite, for the divergence guard to see. docs/method.md section 8.
    """
    group_size = rewards.shape[1]
    live = ~(jnp.max(rewards, axis=1) - jnp.min(rewards, axis=1) < MIN_REWARD_SPREAD)
    centred = rewards - jnp.mean(rewards, axis=1, keepdims=True)
    rounding = group_size * jnp.finfo(rewards.dtype).eps * jnp.max(jnp.abs(rewards), axis=1, keepdims=True)
    advantages = jnp.where(jnp.abs(centred) <= rounding, 0.0, centred)
    if not unbiased:
        variance = jnp.sum(jnp.square(centred), axis=1, keepdims=True) / max(group_size - 1, 1)
        advantages = advantages / (jnp.sqrt(variance) + STD_FLOOR)
    return jnp.where(live[:, None], advantages, 0.0), live


def reweighted(rewards: Float[Array, "P G"], flags: Flags, *, unbiased: bool, label: int) -> Decision:
    """The decision of a use that changes rewards: advantages made anew from `rewards`, and one label for all.

    `flags` says what is recorded; zone shares speak of the rollouts that have an advantage now.
    """
    advantages, live = group_advantages(rewards, unbiased=unbiased)
    weights = advantages.reshape(-1)
    return Decision(
        labels=jnp.full(weights.shape, label, jnp.int32),
        advantages=weights,
        live=jnp.repeat(live, rewards.shape[1]),
        scored=weights != 0,
        finite=flags.finite,
        record=flags.record | {"flag": flags.flagged},
    )
