"""One optimiser step: pass 1 reads the probe, the arm decides, pass 2 trains what the labels allow.

`build_step` makes one jitted function of it. Everything that depends on data is decided on the device; what
depends on the arm is decided here, once, outside the trace. Reference: docs/method.md section 7.
"""

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
from vgrout_jax.rl.schedule.passes import Passes, Row
from vgrout_jax.rl.state import Batch, TrainState
from vgrout_jax.routing import gate


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
    passes = Passes(config, model, mesh, arm=arm)
    reads = arm.source

    def step(
        state: TrainState, frozen: Frozen, memory: Memory, batch: Batch, key: Array
    ) -> tuple[TrainState, StepMetrics]:
        rewards = batch.rewards.reshape(config.rollout.prompts, config.rollout.group_size)
        advantages, live = group_advantages(rewards, unbiased=config.grpo.unbiased)
        row = Row(batch, advantages.reshape(-1), jnp.repeat(live, rewards.shape[1]))
        gradients, logprobs = passes.read_probe(state, frozen, row) if reads.reads_probe else (None, None)
        features = None
        if reads.reads_features:
            features = rollout_features(model, state, frozen, batch, micro_batch=config.train.micro_batch)
        seen = Seen(rewards, row.advantages, row.live, gradients, features, batch.flags)
        decision = arm.decide(seen, memory, key)
        probed = row.advantages != 0
        row = row.replace(advantages=decision.advantages, live=decision.live)
        same = passes.trains_as_sampled(batch, gate.route_masks(decision.labels)[0])
        old_logprobs, known = _old_logprobs(passes, state, frozen, row, same, logprobs, probed)
        loss, gradient, stats = passes.masked_gradient(state, frozen, row, decision.labels, old_logprobs)
        finite = _finite(loss, gradient, decision, batch, gradients)
        new_state = _update(state, gradient, optimizer, ok=jnp.stack(list(finite.values())).all())
        new_state = jax.lax.with_sharding_constraint(new_state, sharding.state_shardings(mesh, new_state))
        deployed, quarantine = _block_norms(gradient)
        metrics = StepMetrics(
            loss=loss,
            gradient_norm=optax.tree.norm(gradient),
            qmass=quarantine / jnp.maximum(deployed + quarantine, jnp.finfo(jnp.float32).tiny),
            finite=finite,
            decision=decision,
            losses=stats.replace(logprobs=None),  # those of the policy that sampled are below
            logprobs=jnp.where(same[:, None], stats.logprobs, jnp.where(known[:, None], old_logprobs, 0.0)),
            recomputed=(same & row.live) | known,
            probe=None if gradients is None else gradients.astype(jnp.bfloat16),
        )
        return new_state, metrics

    return jax.jit(step, donate_argnums=0, compiler_options=xla.compiler_options(mesh.devices.flat[0]))


def _old_logprobs(
    passes: Passes,
    state: TrainState,
    frozen: Frozen,
    row: Row,
    same: Bool[Array, "N"],
    logprobs: Float[Array, "N T"] | None,
    probed: Bool[Array, "N"],
) -> tuple[Float[Array, "N T"], Bool[Array, "N"]]:
    """log pi_old where a row's ratio needs it, and whether a pass computed it.

    From pass 1 (`logprobs`, of the rows that it `probed`) where that ran the policy that sampled, else from the
    sampler where its own serves, else anew. `same`: rows that train the policy that sampled them.
    """
    batch = row.batch
    if logprobs is None:
        found, from_probe = jnp.zeros_like(batch.sampler_logprobs), jnp.zeros_like(same)
    else:
        found, from_probe = logprobs, (batch.quarantine_sampled == passes.probe_full) & probed
    anew = row.live & ~same & ~from_probe
    if passes.sampler_serves:
        found = jnp.where((anew & ~batch.taught)[:, None], batch.sampler_logprobs, found)
        anew = anew & batch.taught
    if samplers := passes.unread_samplers():
        found = jnp.where(anew[:, None], passes.sampled_logprobs(state, frozen, batch, anew, samplers), found)
    return found, from_probe | anew


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


def _block_norms(gradient: lora2r.Factors) -> tuple[Array, Array]:
    """Global norms of the gradient's deployed and quarantine blocks."""
    rank = next(iter(gradient.b.values())).shape[-1] // 2
    deployed = [leaf[..., :rank, :] for leaf in gradient.a.values()] + [
        leaf[..., :rank] for leaf in gradient.b.values()
    ]
    quarantine = [leaf[..., rank:, :] for leaf in gradient.a.values()] + [
        leaf[..., rank:] for leaf in gradient.b.values()
    ]
    return optax.tree.norm(deployed), optax.tree.norm(quarantine)
