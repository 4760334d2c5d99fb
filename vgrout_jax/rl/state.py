"""What a step reads and changes: the trained differences with their optimiser, and a batch of rollouts."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from vgrout_jax.model import lora2r, sharding


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
        sampler_logprobs: [N, T] float32, of the untruncated policy at temperature 1, as the sampler computed them.
        taught: [N] bool, rows that a teacher brought; the sampler has nothing to say of them.
        flags: [N] float32 in [0, 1] of a monitor, or None, which is the case of every arm that does not read one.
    """

    tokens: jax.Array
    valid: jax.Array
    completion_mask: jax.Array
    rewards: jax.Array
    quarantine_sampled: jax.Array
    sampler_logprobs: jax.Array
    taught: jax.Array
    flags: jax.Array | None = None

    @classmethod
    def shapes(cls, rows: int, prompt_tokens: int, new_tokens: int, *, flags: bool = False) -> "Batch":
        """A batch of `jax.ShapeDtypeStruct`s, for N rows whose prompts are padded to so many tokens."""

        def array(kind: Any, *axes: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((rows, *axes), kind)

        length = prompt_tokens + new_tokens
        return cls(
            tokens=array(jnp.int32, length),
            valid=array(bool, length),
            completion_mask=array(bool, new_tokens),
            rewards=array(jnp.float32),
            quarantine_sampled=array(bool),
            sampler_logprobs=array(jnp.float32, new_tokens),
            taught=array(bool),
            flags=array(jnp.float32) if flags else None,
        )


def initial_state(init: lora2r.Factors, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state before the first step, dA = dB = 0, on the devices of the mesh."""
    deltas = lora2r.zero_deltas(init)
    state = TrainState(jnp.zeros((), jnp.int32), deltas, optimizer.init(deltas))
    return jax.device_put(state, sharding.state_shardings(mesh, state))
