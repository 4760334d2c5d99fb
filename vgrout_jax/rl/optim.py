"""The optimiser: AdamW on the differences dA and dB, with warm-up, cosine decay and gradient clipping."""

import math

import optax

from vgrout_jax.config import OptimConfig


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """The learning rate of step t = 0, 1, ..., steps - 1: linear warm-up, then cosine decay to 0.

    With W = ceil(warmup_frac steps):

        t < W:   peak (t + 1) / (W + 1)
        t >= W:  peak (1 + cos(pi (t - W) / (steps - W))) / 2

    The first step's rate is above 0, the peak falls on step W, the last step's rate is above 0 again, and 0
    is reached at t = steps, after the last step, and kept from there on. This is PyTorch's SequentialLR of a
    LinearLR that starts from 1 / (W + 1) over W steps and a CosineAnnealingLR over the rest. With
    warmup_frac = 1 the rate only rises, to peak steps / (steps + 1) at the last step.

    Args:
        config: `lr` is the peak, `warmup_frac` the share of steps before it.
        steps: optimiser steps of the whole run.

    Returns:
        A function of the step count, a scalar or an integer array. docs/method.md section 9.

    Raises:
        ValueError: fewer than one step, or a warm-up share outside [0, 1].
    """
    if steps < 1:
        raise ValueError(f"train.steps must be >= 1, got {steps}")
    if not 0.0 <= config.warmup_frac <= 1.0:
        raise ValueError(f"optim.warmup_frac must be between 0 and 1, got {config.warmup_frac}")
    # The small term undoes a product that lands just above a whole number, such as 0.14 * 50.
    warmup = math.ceil(config.warmup_frac * steps - 1e-9)
    decay = optax.cosine_decay_schedule(config.lr, decay_steps=max(steps - warmup, 1))
    if warmup == 0:
        return decay
    rise = optax.linear_schedule(config.lr / (warmup + 1), config.lr, transition_steps=warmup)
    return optax.join_schedules([rise, decay], boundaries=[warmup])


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clip the gradient by its global norm, then AdamW with decoupled weight decay.

    With the clipped gradient g, the bias-corrected moments m and s of g and g^2, and the rate of step t:

        dA <- dA - rate(t) (m / (sqrt(s) + epsilon) + weight_decay dA)

    and the same for dB. The trained leaves are differences, so this plain decay pulls A toward A0 and B
    toward B0. `update` needs the parameters; they are float32, and so are the moments. The clip sees one norm
    over all leaves, both blocks together.

    A gradient of exactly 0 leaves a block where it is only while the block's moments are 0, and its decay too
    (weight_decay 0 or differences 0): after one non-zero gradient the moments go on moving it, and decay
    pulls it back at every step (docs/method.md section 3). To freeze a block, mask its updates.

    Returns:
        An optax gradient transformation. docs/method.md section 9; decoupled decay: Loshchilov and Hutter
        2019, arXiv 1711.05101.

    Raises:
        ValueError: as `learning_rate`.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
        ),
    )
