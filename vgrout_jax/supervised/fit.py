"""Supervised fine-tuning of all parameters on prompts with their completions.

What gives the toy world's base policy its skills, and a larger model a warm start before reinforcement learning.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from vgrout_jax.config import OptimConfig
from vgrout_jax.model import padding, qwen3, sharding
from vgrout_jax.model.logprobs import completion_logprobs
from vgrout_jax.model.parameters import abstract_parameters
from vgrout_jax.model.policy import Policy
from vgrout_jax.rl.optim import make_optimizer


@dataclasses.dataclass
class FitConfig:
    """How the parameters are fitted."""

    epochs: int = 1
    batch: int = 64  # examples of an optimiser step
    micro_batch: int = 64  # examples of one forward and backward pass
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    seed: int = 0  # of the order of examples
    logprob_chunk: int = 4096  # tokens whose [chunk, V] logits exist at one time


@struct.dataclass
class Examples:
    """n prompts with their completions.

    Attributes:
        tokens: [n, S] int32, S = B + T: the prompt left-padded to B, the completion right-padded to T.
        valid: [n, S] bool, False on padding.
        completion_mask: [n, T] bool, what is learnt: the completion up to and including its end-of-sequence token,
            but for what of its beginning is given.
    """

    tokens: Int[Array, "n S"] | np.ndarray
    valid: Bool[Array, "n S"] | np.ndarray
    completion_mask: Bool[Array, "n T"] | np.ndarray


def lay_out(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int, given: Sequence[int] | None = None
) -> Examples:
    """Examples from token ids of (prompt, completion), the completion with its end-of-sequence token.

    Args:
        rows: one an example.
        pad_id: stands where nothing does.
        given: of each row the number of completion tokens that it begins with and that are read, not learnt.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("supervised fine-tuning needs at least one example, got none")
    length = max(len(completion) for _, completion in rows)
    prompts, valid = padding.pad_prompts([prompt for prompt, _ in rows], max(len(p) for p, _ in rows), pad_id)
    completions = np.full((len(rows), length), pad_id, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for row, (_, completion) in enumerate(rows):
        completions[row, : len(completion)] = completion
        mask[row, : len(completion)] = True
    learnt = mask if given is None else mask & (np.arange(length) >= np.asarray(given)[:, None])
    return Examples(np.concatenate([prompts, completions], 1), np.concatenate([valid, mask], 1), learnt)


def token_loss(model: qwen3.Qwen3Config, parameters: dict, examples: Examples, *, chunk: int) -> Float[Array, ""]:
    """Sum over completion tokens of -log pi; the parameters are cast to the model's type for the pass."""
    cast = jax.tree.map(lambda leaf: leaf.astype(model.dtype), parameters)
    logprobs = completion_logprobs(
        model,
        Policy(cast),
        examples.tokens,
        examples.valid,
        completion_length=examples.completion_mask.shape[1],
        chunk=chunk,
    )
    return -jnp.sum(jnp.where(examples.completion_mask, logprobs, 0.0))


def fit_shardings(
    model: qwen3.Qwen3Config, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> tuple[Any, Any]:
    """Of the parameters, and of the optimiser's state: its moments stand where their parameters do."""
    parameters = sharding.parameter_shardings(mesh, model)
    moments = optax.tree.map_params(
        optimizer,
        lambda _, place: place,
        jax.eval_shape(optimizer.init, abstract_parameters(model)),
        parameters,
        transform_non_params=lambda _: sharding.replicated(mesh),
    )
    return parameters, moments


def build_update(
    model: qwen3.Qwen3Config, optimizer: optax.GradientTransformation, config: FitConfig, mesh: jax.sharding.Mesh
) -> Callable[..., tuple[Any, Any, Array]]:
    """The jitted update (parameters, moments, examples) -> (parameters, moments, nats per token).

    The loss is the mean over the batch's completion tokens. Gradients are summed over micro-batches in float32;
    parameters and moments are donated, and keep their `fit_shardings`, so that one program serves all steps.
    """

    def update(parameters: Any, moments: Any, examples: Examples) -> tuple[Any, Any, Array]:
        size = config.micro_batch
        chunks = jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), examples)

        def visit(carry: tuple[Array, Any], chunk: Examples) -> tuple[tuple[Array, Any], None]:
            value, gradient = jax.value_and_grad(lambda p: token_loss(model, p, chunk, chunk=config.logprob_chunk))(
                parameters
            )
            return (carry[0] + value, jax.tree.map(jnp.add, carry[1], gradient)), None

        start = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, parameters))
        (total, gradient), _ = jax.lax.scan(visit, start, chunks)
        tokens = jnp.maximum(jnp.sum(examples.completion_mask), 1)
        gradient = jax.tree.map(lambda leaf: leaf / tokens, gradient)
        change, moments = optimizer.update(gradient, moments, parameters)
        return optax.apply_updates(parameters, change), moments, total / tokens

    places = (*fit_shardings(model, optimizer, mesh), sharding.replicated(mesh))
    return jax.jit(update, donate_argnums=(0, 1), out_shardings=places)


def batches(count: int, config: FitConfig) -> Iterator[np.ndarray]:
    """The rows of every step: each epoch a seeded order of all examples, what does not fill a batch left out."""
    for epoch in range(config.epochs):
        order = np.random.default_rng((config.seed, epoch)).permutation(count)
        for start in range(0, count - config.batch + 1, config.batch):
            yield order[start : start + config.batch]


def check(count: int, config: FitConfig) -> None:
    """Refuses a batch that the examples or the micro-batch do not fill.

    Raises:
        ValueError: one line.
    """
    if config.batch % config.micro_batch:
        raise ValueError(
            f"fit.batch must be a multiple of fit.micro_batch, got {config.batch} and {config.micro_batch}"
        )
    if count < config.batch:
        raise ValueError(f"fit.batch must be <= the number of examples, got {config.batch} of {count}; lower it")


def fit(
    model: qwen3.Qwen3Config, parameters: Any, examples: Examples, config: FitConfig, mesh: jax.sharding.Mesh
) -> tuple[Any, list[float]]:
    """Fits all parameters; float32 masters, passes in the model's type.

    Args:
        model: shape and dtype.
        parameters: of any float type; they are taken over.
        examples: NumPy arrays.
        config: epochs, batch, optimiser.
        mesh: parameters and moments are split over fsdp and tensor, a batch over data and fsdp.

    Returns:
        Float32 parameters, and the loss of every step in nats per token.

    Raises:
        ValueError: the batch does not fit the examples, or the loss is not finite.
    """
    count = examples.tokens.shape[0]
    check(count, config)
    steps = config.epochs * (count // config.batch)
    optimizer = make_optimizer(config.optim, steps)
    parameters = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), parameters)
    places = fit_shardings(model, optimizer, mesh)
    parameters = jax.device_put(parameters, places[0])
    moments = jax.device_put(optimizer.init(parameters), places[1])
    update = build_update(model, optimizer, config, mesh)
    losses: list[float] = []
    with tqdm(total=steps, desc="fitting", unit="step", disable=None) as progress:
        for rows in batches(count, config):
            chosen = jax.tree.map(lambda leaf, rows=rows: leaf[rows], examples)
            chosen = jax.device_put(chosen, sharding.batch_shardings(mesh, chosen))
            parameters, moments, loss = update(parameters, moments, chosen)
            losses.append(float(loss))
            if not np.isfinite(losses[-1]):
                raise ValueError(f"fit.optim.lr: the loss of step {len(losses) - 1} is not finite; lower the rate")
            progress.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}")
            progress.update()
    return parameters, losses
