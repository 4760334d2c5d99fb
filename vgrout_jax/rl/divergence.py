"""The divergence guard: what stops a run before it wastes hours (docs/method.md section 9)."""

import dataclasses
import logging
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vgrout_jax.config import Config, GuardConfig
from vgrout_jax.model import lora2r, qwen3
from vgrout_jax.model.policy import Frozen
from vgrout_jax.rl.step import StepMetrics
from vgrout_jax.routing.extraction import Sides, length_mean_logprobs

logger = logging.getLogger(__name__)


class Divergence(RuntimeError):
    """A run that must stop; the message names the step, the tensor and what to try."""


@dataclasses.dataclass
class Guard:
    """Watches the mean log-probability of fixed reference completions over the run.

    Attributes:
        config: thresholds in nats.
        best: the highest mean log-probability so far.
        low_steps: steps in a row that were more than `stop_nats` below the best.
    """

    config: GuardConfig
    best: float = -np.inf
    low_steps: int = 0

    def check_reference(self, step: int, logprob: float) -> bool:
        """Takes a step's mean reference log-probability in nats.

        Returns:
            Whether nothing is wrong: it is less than `guard.warn_nats` below its best.

        Raises:
            Divergence: it is not finite, or fell by more than `guard.stop_nats` for two steps running.
        """
        if not np.isfinite(logprob):
            raise Divergence(
                f"step {step}: not finite: logits (the mean log-probability of the reference completions); {REMEDY}"
            )
        self.best = max(self.best, logprob)
        fall = self.best - logprob
        self.low_steps = self.low_steps + 1 if fall > self.config.stop_nats else 0
        if self.low_steps >= 2:
            raise Divergence(
                f"step {step}: the mean log-probability of the reference completions fell {fall:.1f} nats below "
                f"its best ({self.best:.2f}) for two steps running (limit {self.config.stop_nats} nats); {REMEDY}"
            )
        if fall >= self.config.warn_nats:
            logger.warning("step %d: reference log-probability is %.1f nats below its best", step, fall)
        return fall < self.config.warn_nats


REMEDY = "try a lower optim.lr or a longer optim.warmup_frac"


def check_sampled(step: int, logprobs: Float[np.ndarray, "N T"]) -> None:
    """Stops the run at a step whose completions were drawn from logits that were not finite.

    Args:
        step: of the run.
        logprobs: the sampler's own log-probabilities, 0 where nothing was sampled.

    Raises:
        Divergence: names the step and how many tokens it concerns.
    """
    bad = int((~np.isfinite(logprobs)).sum())
    if bad:
        raise Divergence(
            f"step {step}: not finite: logits (the sampler's log-probabilities of {bad} tokens); nothing was "
            f"updated; {REMEDY}, and look at the weights at model.path and at model.dtype"
        )


def check_finite(step: int, metrics: StepMetrics) -> None:
    """Stops the run at a step whose tensors were not finite; its update was not applied.

    Raises:
        Divergence: names the step and the tensors.
    """
    bad = [name for name, finite in metrics.finite.items() if not bool(finite)]
    if bad:
        # The step looks at what it adds up; where the logits themselves are to blame, their log-probabilities tell.
        seen = [metrics.logprobs, metrics.losses.kl if metrics.losses is not None else None]
        if any(leaf is not None and not np.isfinite(leaf).all() for leaf in seen):
            bad.insert(0, "logits")
        raise Divergence(f"step {step}: not finite: {', '.join(bad)}; the update was not applied; {REMEDY}")


def build_reference(
    config: Config, model: qwen3.Qwen3Config, references: Sides
) -> Callable[[lora2r.Factors, Frozen], Float[Array, ""]]:
    """Jitted (deltas, frozen) -> mean over references of the length-mean log-probability, both blocks on."""
    rows = references.tokens.shape[0]

    def mean_logprob(deltas: lora2r.Factors, frozen: Frozen) -> Float[Array, ""]:
        policy = frozen.policy(deltas, lora2r.full_route(rows))
        return length_mean_logprobs(config, model, policy, references).mean()

    return jax.jit(mean_logprob)


def encode_references(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], *, max_new_tokens: int, pad_id: int
) -> Sides:
    """Pads prompts to the left and completions, cut at the length limit, to the right."""
    cut = [list(completion)[:max_new_tokens] for completion in completions]
    bucket, length = max(map(len, prompts)), max(map(len, cut))
    tokens = np.full((len(cut), bucket + length), pad_id, np.int32)
    valid = np.zeros(tokens.shape, bool)
    for row, (prompt, completion) in enumerate(zip(prompts, cut, strict=True)):
        tokens[row, bucket - len(prompt) : bucket + len(completion)] = [*prompt, *completion]
        valid[row, bucket - len(prompt) : bucket + len(completion)] = True
    return Sides(jnp.asarray(tokens), jnp.asarray(valid), jnp.asarray(valid[:, bucket:]))
