"""One optimiser step: pass 1 reads the probe, the gate labels, pass 2 trains what the labels allow.

`build_step` makes one jitted function of it. Everything that depends on data is decided on the device; what
depends on the arm is decided here, once, outside the trace. Reference: docs/method.md section 7.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from vgrout_jax import sharding
from vgrout_jax.config import Config
from vgrout_jax.model import lora2r, policy, qwen3
from vgrout_jax.rl import grpo
from vgrout_jax.routing import direction, gate, probe


@struct.dataclass
class Frozen:
    """What training never changes.

    Attributes:
        base: parameters of the model.
        init: A0 and B0.
    """

    base: dict
    init: lora2r.Factors


@struct.dataclass
class TrainState:
    """What a step changes.

    Attributes:
        step: int32, optimiser steps taken.
        deltas: dA and dB, float32.
        optimizer: optax state.
    """

    step: jax.Array
    deltas: lora2r.Factors
    optimizer: Any


@struct.dataclass
class Batch:
    """The rollouts of one step, groups contiguous: row = prompt * G + replica.

    Attributes:
        tokens: [N, S] int32, prompt left-padded to S - T, completion right-padded to T.
        valid: [N, S] bool, False on padding.
        completion_mask: [N, T] bool.
        rewards: [N] float32.
        quarantine_sampled: [N] bool, whether the policy that sampled had both blocks on.
    """

    tokens: jax.Array
    valid: jax.Array
    completion_mask: jax.Array
    rewards: jax.Array
    quarantine_sampled: jax.Array


@struct.dataclass
class StepMetrics:
    """Everything a step reports, read by the host after it.

    Attributes:
        loss: scalar.
        gradient_norm: global norm before clipping.
        qmass: |g_quarantine| / (|g_deployed| + |g_quarantine|) of that gradient.
        finite: name of a tensor -> whether it was finite; where one is not, the state was left as it was.
        gate: `gate.GateResult`, per rollout.
        advantages: [N].
        live: [N], False for rows of groups whose rewards are equal.
        losses: `grpo.LossStats`, per rollout.
        old_logprobs: [N, T], recomputed log-probabilities of the policy that sampled, 0 where not needed.
        old_known: [N], whether they were computed.
        probe: [N, M, r] bfloat16 where the run stores gradients, else None.
    """

    loss: jax.Array
    gradient_norm: jax.Array
    qmass: jax.Array
    finite: dict[str, jax.Array]
    gate: gate.GateResult
    advantages: jax.Array
    live: jax.Array
    losses: grpo.LossStats
    old_logprobs: jax.Array
    old_known: jax.Array
    probe: jax.Array | None


@struct.dataclass
class _Row:
    """What the passes need of each rollout besides the batch itself."""

    batch: Batch
    advantages: jax.Array
    live: jax.Array


Step = Callable[
    [TrainState, Frozen, direction.Routing | None, Batch, Array], tuple[TrainState, StepMetrics]
]


class Passes:
    """The forward and backward passes over a batch, as pure functions closed over the run's settings."""

    def __init__(self, config: Config, model: qwen3.Qwen3Config, mesh: Mesh):
        self.config, self.model, self.mesh = config, model, mesh
        self.rollouts = config.rollout.prompts * config.rollout.group_size
        self.probe_full = config.gate.probe_policy == "full"

    def logprobs(
        self, frozen: Frozen, deltas: lora2r.Factors | None, batch: Batch, route: lora2r.Route | None, scale: Any = None
    ) -> Float[Array, "n T"]:
        """log pi of the completions under one policy; `deltas` None: the base with the adapter off."""
        return policy.completion_logprobs(
            self.model,
            frozen.base,
            batch.tokens,
            batch.valid,
            completion_length=batch.completion_mask.shape[1],
            chunk=self.config.model.logprob_chunk,
            adapter=None if deltas is None else lora2r.Adapter(frozen.init, deltas),
            route=route,
            scale=scale,
        )

    def over_rows(
        self, body: Callable, carry: Any, rows: Any, *, needed: Bool[Array, "N"], skipped: Any
    ) -> tuple[Any, Any]:
        """Scans `body(carry, rows) -> (carry, outputs)` over micro-batches of the rows that need it.

        Rows that need it come first, and a micro-batch without any is not run: its outputs are `skipped`.

        Returns:
            The last carry, and the outputs in the rows' own order.
        """
        order = jnp.argsort(~needed, stable=True)
        size = self.config.train.micro_batch

        def split(leaf: Array) -> Array:
            chunks = leaf[order].reshape(-1, size, *leaf.shape[1:])
            axes = (None, "batch") + (None,) * (leaf.ndim - 1)
            return jax.lax.with_sharding_constraint(chunks, sharding.sharding_of(self.mesh, axes, chunks.shape))

        def visit(carry: Any, inputs: tuple[Any, Array]) -> tuple[Any, Any]:
            chunk, wanted = inputs
            return jax.lax.cond(jnp.any(wanted), body, lambda carry, _: (carry, skipped), carry, chunk)

        carry, outputs = jax.lax.scan(visit, carry, jax.tree.map(split, (rows, needed)))
        inverse = jnp.argsort(order)
        return carry, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[inverse], outputs)

    def _zeros(self, *shape: int) -> Array:
        """What a skipped micro-batch puts out: float32 zeros [n, *shape]."""
        return jnp.zeros((self.config.train.micro_batch, *shape), jnp.float32)

    def read_probe(
        self, state: TrainState, frozen: Frozen, row: _Row
    ) -> tuple[Float[Array, "N M r"], Float[Array, "N T"]]:
        """Pass 1: every rollout's probe gradient, and log pi of the policy that the probe reads."""

        def body(carry: None, rows: _Row) -> tuple[None, tuple[Array, Array]]:
            size = rows.live.shape[0]
            route = lora2r.full_route(size) if self.probe_full else lora2r.ablated_route(size)

            def loss(scale: dict[str, Array]) -> tuple[Array, Array]:
                logprobs = self.logprobs(frozen, state.deltas, rows.batch, route, scale)
                return grpo.probe_loss(logprobs, rows.advantages, rows.batch.completion_mask), logprobs

            ones = lora2r.probe_ones(self.model.num_layers, size, self.config.adapter.rank)
            gradients, logprobs = probe.probe_gradients(loss, ones)
            return None, (probe.deployed_half(gradients, lora2r.MODULES), logprobs)

        gradients = self._zeros(self.model.num_layers * len(lora2r.MODULES), self.config.adapter.rank)
        skipped = (gradients, self._zeros(row.batch.completion_mask.shape[1]))
        return self.over_rows(body, None, row, needed=row.advantages != 0, skipped=skipped)[1]

    def sampled_logprobs(
        self, state: TrainState, frozen: Frozen, batch: Batch, needed: Bool[Array, "N"]
    ) -> Float[Array, "N T"]:
        """log pi of the policy that sampled each row, without gradient, for the rows that need it."""

        def body(carry: None, rows: Batch) -> tuple[None, Array]:
            return None, self.logprobs(frozen, state.deltas, rows, lora2r.Route(rows.quarantine_sampled))

        skipped = self._zeros(batch.completion_mask.shape[1])
        return self.over_rows(body, None, batch, needed=needed, skipped=skipped)[1]

    def masked_gradient(
        self, state: TrainState, frozen: Frozen, row: _Row, labels: Int[Array, "N"], old_logprobs: Float[Array, "N T"]
    ) -> tuple[Array, lora2r.Factors, grpo.LossStats]:
        """Pass 2: the loss, its gradient with respect to dA and dB under the labels' masks, and diagnostics."""

        def body(carry: Any, rows: tuple[_Row, Array, Array]) -> tuple[Any, grpo.LossStats]:
            total, gradients = carry

            def loss(deltas: lora2r.Factors) -> tuple[Array, grpo.LossStats]:
                losses, stats = self._losses(frozen, deltas, *rows)
                return jnp.sum(losses), stats

            (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(state.deltas)
            return (total + value, jax.tree.map(jnp.add, gradients, gradient)), stats

        start = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.deltas))
        nothing = self._zeros()
        kl = nothing if self.config.loss.kl_coefficient > 0 else None
        skipped = grpo.LossStats(ratio=nothing, clip_fraction=nothing, kl=kl, tokens=nothing.astype(jnp.int32))
        rows = (row, labels, old_logprobs)
        (loss, gradients), stats = self.over_rows(body, start, rows, needed=row.live, skipped=skipped)
        return loss, gradients, stats

    def _losses(
        self, frozen: Frozen, deltas: lora2r.Factors, row: _Row, labels: Array, old_logprobs: Array
    ) -> tuple[Float[Array, "n"], grpo.LossStats]:
        config, batch = self.config, row.batch
        quarantine_on, detach = gate.route_masks(labels)
        logprobs = self.logprobs(frozen, deltas, batch, lora2r.Route(quarantine_on, detach))
        same_policy = self.trains_as_sampled(batch, quarantine_on)
        old = jnp.where(same_policy[:, None], jax.lax.stop_gradient(logprobs), old_logprobs)
        reference = None
        if config.loss.kl_coefficient > 0:
            reference = jax.lax.stop_gradient(self.logprobs(frozen, None, batch, None))
        return grpo.row_losses(
            logprobs,
            old,
            reference,
            batch.completion_mask,
            row.advantages,
            live=row.live,
            rollouts=self.rollouts,
            max_new_tokens=config.rollout.max_new_tokens,
            unbiased=config.grpo.unbiased,
            ratio=config.loss.ratio,
            clip_epsilon=config.loss.clip_epsilon,
            kl_coefficient=config.loss.kl_coefficient,
        )

    def trains_as_sampled(self, batch: Batch, quarantine_on: Bool[Array, "n"]) -> Bool[Array, "n"]:
        """Rows whose training policy is the one that sampled them, where the ratio is 1 by definition.

        Pinned clean, the quarantine never moves from its init, where its output is exactly 0: the policy with
        it and the one without are the same function, bit for bit.
        """
        if self.config.gate.kind == "clean":
            return jnp.ones_like(quarantine_on)
        return batch.quarantine_sampled == quarantine_on


def initial_state(
    init: lora2r.Factors, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The state before the first step, dA = dB = 0, on the devices of the mesh."""
    deltas = lora2r.zero_deltas(init)
    state = TrainState(jnp.zeros((), jnp.int32), deltas, optimizer.init(deltas))
    return jax.device_put(state, sharding.state_shardings(mesh, state))


def build_step(
    config: Config, model: qwen3.Qwen3Config, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Step:
    """The jitted step of one arm: (state, frozen, routing, batch, key) -> (state, metrics).

    The state is donated, and keeps its shardings. `routing` is what `extraction.build_extractor` made, None for
    the pinned arms; `key` is used by the placebo that permutes labels. `train.micro_batch` must divide N = P G.
    """
    passes = Passes(config, model, mesh)
    routed = config.gate.kind == "route"

    def step(
        state: TrainState, frozen: Frozen, routing: direction.Routing | None, batch: Batch, key: Array
    ) -> tuple[TrainState, StepMetrics]:
        groups = (config.rollout.prompts, config.rollout.group_size)
        advantages, live = grpo.group_advantages(batch.rewards.reshape(groups), unbiased=config.grpo.unbiased)
        row = _Row(batch, advantages.reshape(-1), jnp.repeat(live, groups[1]))
        gradients, logprobs = passes.read_probe(state, frozen, row) if routed else (None, None)
        gated = gate.gate(gradients, routing, row.advantages != 0, key, **gate_settings(config))
        old_logprobs, known = _old_logprobs(passes, state, frozen, row, gated.labels, logprobs)
        loss, gradient, stats = passes.masked_gradient(state, frozen, row, gated.labels, old_logprobs)
        finite = _finite(loss, gradient, gated, batch, gradients)
        new_state = _update(state, gradient, optimizer, ok=jnp.stack(list(finite.values())).all())
        new_state = jax.lax.with_sharding_constraint(new_state, sharding.state_shardings(mesh, new_state))
        deployed, quarantine = _block_norms(gradient)
        metrics = StepMetrics(
            loss=loss,
            gradient_norm=optax.global_norm(gradient),
            qmass=quarantine / jnp.maximum(deployed + quarantine, jnp.finfo(jnp.float32).tiny),
            finite=finite,
            gate=gated,
            advantages=row.advantages,
            live=row.live,
            losses=stats,
            old_logprobs=old_logprobs,
            old_known=known,
            probe=gradients.astype(jnp.bfloat16) if routed and config.log.gradients else None,
        )
        return new_state, metrics

    return jax.jit(step, donate_argnums=0)


def gate_settings(config: Config) -> dict[str, Any]:
    """The settings that `gate.gate` takes, from the run's configuration."""
    return {
        "kind": config.gate.kind,
        "placebo": config.placebo.kind,
        "low": config.gate.low,
        "high": config.gate.high,
    }


def _old_logprobs(
    passes: Passes, state: TrainState, frozen: Frozen, row: _Row, labels: Array, probed: Array | None
) -> tuple[Float[Array, "N T"], Bool[Array, "N"]]:
    """log pi_old where a row's ratio needs it: from pass 1 where that ran the policy that sampled, else anew."""
    batch = row.batch
    differs = row.live & ~passes.trains_as_sampled(batch, gate.route_masks(labels)[0])
    if probed is None:
        return passes.sampled_logprobs(state, frozen, batch, differs), differs
    from_probe = (batch.quarantine_sampled == passes.probe_full) & (row.advantages != 0)
    anew = passes.sampled_logprobs(state, frozen, batch, differs & ~from_probe)
    return jnp.where(from_probe[:, None], probed, anew), from_probe | differs


def _finite(
    loss: Array, gradient: lora2r.Factors, gated: gate.GateResult, batch: Batch, probed: Array | None
) -> dict[str, Bool[Array, ""]]:
    flags = {
        "rewards": jnp.isfinite(batch.rewards).all(),
        "score": gated.finite,
        "loss": jnp.isfinite(loss),
        "gradient": jnp.isfinite(optax.global_norm(gradient)),
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
    return optax.global_norm(deployed), optax.global_norm(quarantine)
