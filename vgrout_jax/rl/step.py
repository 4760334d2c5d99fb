"""One optimiser step: pass 1 reads the probe, the arm decides, pass 2 trains what the labels allow.

`build_step` makes one jitted function of it. Everything that depends on data is decided on the device; what
depends on the arm is decided here, once, outside the trace. Reference: docs/method.md section 7.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from vgrout_jax.arms.advantages import group_advantages
from vgrout_jax.arms.base import Arm, Decision, Memory, Seen
from vgrout_jax.common import xla
from vgrout_jax.config import Config
from vgrout_jax.model import lora2r, qwen3, sharding
from vgrout_jax.model.policy import Frozen
from vgrout_jax.rl import grpo
from vgrout_jax.rl.features import rollout_features
from vgrout_jax.rl.grpo import LossSettings
from vgrout_jax.rl.old_logprobs import OldLogprobs, make_old_logprobs
from vgrout_jax.rl.plain import PlainScorer
from vgrout_jax.rl.schedule.fast import FastScorer
from vgrout_jax.rl.scorer import RowLosses, Rows, Scorer
from vgrout_jax.rl.state import Batch, TrainState


@struct.dataclass
class StepMetrics:
    """Everything a step reports, read by the host after it.

    Attributes:
        loss: scalar.
        gradient_norm: global norm before clipping.
        qmass: |g_quarantine| / (|g_deployed| + |g_quarantine|) of that gradient.
        finite: name of a tensor -> whether it was finite; where one is not, the state was left as it was.
        decision: of the arm, per rollout.
        losses: `grpo.LossStats`, per rollout.
        logprobs: [N, T] float32, of the policy that sampled, as a pass computed them; 0 where none ran that policy.
        recomputed: [N], whether one did.
        probe: [N, M, r] bfloat16, of arms that have one, else None; the program is the same whether a run stores it.
    """

    loss: jax.Array
    gradient_norm: jax.Array
    qmass: jax.Array
    finite: dict[str, jax.Array]
    decision: Decision
    losses: grpo.LossStats
    logprobs: jax.Array
    recomputed: jax.Array
    probe: jax.Array | None


Step = Callable[[TrainState, Frozen, Memory, Batch, Array], tuple[TrainState, StepMetrics]]


def build_step(
    config: Config, model: qwen3.Qwen3Config, optimizer: optax.GradientTransformation, mesh: Mesh, *, arm: Arm
) -> Step:
    """The jitted step of one arm: (state, frozen, memory, batch, key) -> (state, metrics).

    The state is donated, and keeps its shardings. `memory` is what the arm's source has learnt from the pairs, None
    where it learns nothing; `key` is the step's own. `train.micro_batch` must divide N = P G.
    """
    source, scorer = arm.source, make_scorer(config, model, mesh, labels=arm.labels)
    old = make_old_logprobs(arm, config, model)
    row_losses = make_row_losses(old, LossSettings.of(config))
    read_features = functools.partial(rollout_features, model, micro_batch=config.train.micro_batch)

    def step(
        state: TrainState, frozen: Frozen, memory: Memory, batch: Batch, key: Array
    ) -> tuple[TrainState, StepMetrics]:
        rewards = batch.rewards.reshape(config.rollout.prompts, config.rollout.group_size)
        advantages, live = group_advantages(rewards, unbiased=config.grpo.unbiased)
        rows = Rows(batch, advantages.reshape(-1), jnp.repeat(live, rewards.shape[1]))
        gradients, logprobs = scorer.each(_probe_loss, state, frozen, rows) if source.reads_probe else (None, None)
        features = read_features(state, frozen, batch) if source.reads_features else None
        seen = Seen(rewards, rows.advantages, rows.live, gradients, features, batch.flags)
        decision = arm.decide(seen, memory, key)
        probed = None if logprobs is None else (logprobs, rows.advantages != 0)
        rows = Rows(batch, decision.advantages, decision.live, decision.labels)
        old_logprobs, known = old.find(scorer, state, frozen, rows, probed)
        rows = rows.replace(old_logprobs=old_logprobs)
        loss, gradient, stats = scorer.total(row_losses, state, frozen, rows)
        finite = _finite(loss, gradient, decision, batch, gradients)
        new_state = _update(state, gradient, optimizer, ok=jnp.stack(list(finite.values())).all())
        new_state = jax.lax.with_sharding_constraint(new_state, sharding.state_shardings(mesh, new_state))
        same = old.trains_as_sampled(batch, rows.labels)
        metrics = StepMetrics(
            loss=loss,
            gradient_norm=optax.tree.norm(gradient),
            qmass=_quarantine_share(gradient),
            finite=finite,
            decision=decision,
            losses=stats.replace(logprobs=None),  # those of the policy that sampled are below
            logprobs=jnp.where(same[:, None], stats.logprobs, jnp.where(known[:, None], old_logprobs, 0.0)),
            recomputed=(same & rows.live) | known,
            probe=None if gradients is None else gradients.astype(jnp.bfloat16),
        )
        return new_state, metrics

    return jax.jit(step, donate_argnums=0, compiler_options=xla.compiler_options(mesh.devices.flat[0]))


def _probe_loss(logprobs: Float[Array, "n T"], rows: Rows) -> Float[Array, ""]:
    """The loss of pass 1."""
    return grpo.probe_loss(logprobs, rows.advantages, rows.batch.completion_mask)


def make_row_losses(old: OldLogprobs, settings: LossSettings) -> RowLosses:
    """The losses of pass 2, of log-probabilities alone."""

    def row_losses(logprobs: Array, reference: Array | None, rows: Rows) -> tuple[Array, grpo.LossStats]:
        same = old.trains_as_sampled(rows.batch, rows.labels)
        before = jnp.where(same[:, None], jax.lax.stop_gradient(logprobs), rows.old_logprobs)
        rest = (reference, rows.batch.completion_mask, rows.advantages)
        return grpo.row_losses(logprobs, before, *rest, live=rows.live, settings=settings)

    return row_losses


def make_scorer(config: Config, model: qwen3.Qwen3Config, mesh: Mesh, *, labels: tuple[int, ...]) -> Scorer:
    """The scorer that `train.schedule` names."""
    if config.train.schedule == "fast":
        return FastScorer(config, model, mesh, labels=labels)
    return PlainScorer(
        model,
        rank=config.adapter.rank,
        micro_batch=config.train.micro_batch,
        logprob_chunk=config.model.logprob_chunk,
        probe_full=config.gate.probe_policy == "full",
        has_reference=config.loss.kl_coefficient > 0,
    )


def _finite(
    loss: Array, gradient: lora2r.Factors, decision: Decision, batch: Batch, probed: Array | None
) -> dict[str, Bool[Array, ""]]:
    flags = {
        "rewards": jnp.isfinite(batch.rewards).all(),
        "score": decision.finite,
        "loss": jnp.isfinite(loss),
        "gradient": jnp.isfinite(optax.tree.norm(gradient)),
    }
    if probed is not None:
        flags["probe"] = jnp.isfinite(probed).all()
    return flags


def _update(
    state: TrainState, gradient: lora2r.Factors, optimizer: optax.GradientTransformation, *, ok: Array
) -> TrainState:
    """The state after the optimiser's step, or the state as it was where something was not finite."""
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.deltas)
    moved = TrainState(state.step + 1, optax.apply_updates(state.deltas, updates), optimizer_state)
    return jax.tree.map(lambda new, old: jnp.where(ok, new, old), moved, state)


def _quarantine_share(gradient: lora2r.Factors) -> Float[Array, ""]:
    """|g_quarantine| / (|g_deployed| + |g_quarantine|), 0 where there is no gradient at all."""
    rank = next(iter(gradient.b.values())).shape[-1] // 2

    def norm(block: slice) -> Array:
        down, up = gradient.a.values(), gradient.b.values()
        return optax.tree.norm([*(leaf[..., block, :] for leaf in down), *(leaf[..., block] for leaf in up)])

    deployed, quarantine = norm(slice(rank)), norm(slice(rank, None))
    return quarantine / jnp.maximum(deployed + quarantine, jnp.finfo(jnp.float32).tiny)
