"""Reads the pairs on the current adapter and lets a source learn from them (docs/method.md section 5)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float

from vgrout_jax.common import xla
from vgrout_jax.config import Config
from vgrout_jax.model import lora2r, qwen3, sharding
from vgrout_jax.model.logprobs import completion_logprobs
from vgrout_jax.model.policy import Frozen, Policy
from vgrout_jax.model.residuals import residual_means
from vgrout_jax.routing import probe


@struct.dataclass
class Sides:
    """Both sides of all pairs as sequences: the hack sides first, then the clean ones in the same order.

    Attributes:
        tokens: [2P, S] int32, prompt left-padded, completion right-padded.
        valid: [2P, S] bool.
        completion_mask: [2P, T] bool.
    """

    tokens: jax.Array
    valid: jax.Array
    completion_mask: jax.Array


Learn = Callable[[Array | None, Array | None], Any]  # (gradients [2P, M, r], features [2P, L, D]) -> memory
Extractor = Callable[[lora2r.Factors, Frozen], tuple[Any, Float[Array, "TwoP M r"] | None]]


def build_extractor(
    config: Config,
    model: qwen3.Qwen3Config,
    sides: Sides,
    mesh: Mesh,
    *,
    learn: Learn,
    reads_probe: bool = True,
    reads_features: bool = False,
) -> Extractor:
    """The jitted extraction: (deltas, frozen) -> (what `learn` makes of the pairs, both sides' gradients).

    The gradients, hack sides first, let any direction be replayed offline without another pass; None where the
    probe is not read.
    """

    def extract(deltas: lora2r.Factors, frozen: Frozen) -> tuple[Any, Array | None]:
        given = {"deltas": deltas, "frozen": frozen}
        gradients = side_gradients(config, model, sides, mesh, **given) if reads_probe else None
        features = side_features(config, model, sides, mesh, **given) if reads_features else None
        return learn(gradients, features), gradients

    how = xla.compiler_options(mesh.devices.flat[0])
    return jax.jit(extract, out_shardings=sharding.replicated(mesh), compiler_options=how)


def length_mean_logprobs(
    config: Config,
    model: qwen3.Qwen3Config,
    policy: Policy,
    rows: Sides,
) -> Float[Array, "n"]:
    """Mean over each completion's tokens of their log-probability, in nats; 0 for a row without tokens."""
    logprobs = completion_logprobs(
        model,
        policy,
        rows.tokens,
        rows.valid,
        completion_length=rows.completion_mask.shape[1],
        chunk=config.model.logprob_chunk,
    )
    mask = rows.completion_mask
    return jnp.where(mask, logprobs, 0.0).sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)


def side_gradients(
    config: Config, model: qwen3.Qwen3Config, sides: Sides, mesh: Mesh, *, deltas: lora2r.Factors, frozen: Frozen
) -> Float[Array, "TwoP M r"]:
    """grad_c of -logp, the length-mean token log-probability, per side, with the quarantine ablated."""
    size = config.direction.pairs_per_batch

    def read(rows: Sides) -> Array:
        def loss(scale: dict[str, Array]) -> tuple[Array, None]:
            policy = frozen.policy(deltas, lora2r.ablated_route(size), scale)
            return -jnp.sum(length_mean_logprobs(config, model, policy, rows)), None

        ones = lora2r.probe_ones(model.num_layers, size, config.adapter.rank)
        gradients, _ = probe.probe_gradients(loss, ones)
        return probe.deployed_half(gradients, lora2r.MODULES)

    return _by_batches(read, sides, size, mesh)


def side_features(
    config: Config, model: qwen3.Qwen3Config, sides: Sides, mesh: Mesh, *, deltas: lora2r.Factors, frozen: Frozen
) -> Float[Array, "TwoP L D"]:
    """Mean residual stream over each side's completion after every layer, with the quarantine ablated."""
    size = config.direction.pairs_per_batch

    def read(rows: Sides) -> Array:
        policy = frozen.policy(deltas, lora2r.ablated_route(size))
        return residual_means(model, policy, rows.tokens, rows.valid, rows.completion_mask)

    return _by_batches(read, sides, size, mesh)


def _by_batches(read: Callable[[Sides], Array], sides: Sides, size: int, mesh: Mesh) -> Array:
    """`read` of `size` sides at a time, one after the other, joined."""
    count = sides.tokens.shape[0]

    def body(_: None, rows: Sides) -> tuple[None, Array]:
        return None, read(rows)

    def split(leaf: Array) -> Array:
        padded = jnp.pad(leaf, ((0, -count % size),) + ((0, 0),) * (leaf.ndim - 1))
        chunks = padded.reshape(-1, size, *leaf.shape[1:])
        axes = (None, "batch") + (None,) * (leaf.ndim - 1)
        return jax.lax.with_sharding_constraint(chunks, sharding.sharding_of(mesh, axes, chunks.shape))

    _, found = jax.lax.scan(body, None, jax.tree.map(split, jax.tree.map(jnp.asarray, sides)))
    return found.reshape(-1, *found.shape[2:])[:count]


def as_sides(tokens: np.ndarray, valid: np.ndarray, completion_mask: np.ndarray) -> Sides:
    """The encoded pairs as device arrays."""
    return Sides(jnp.asarray(tokens), jnp.asarray(valid), jnp.asarray(completion_mask))
