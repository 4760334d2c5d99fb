"""Model and batch shapes of the benchmarks, with random weights drawn on the device, or none at all."""

import argparse
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgrout_jax.arms.compose import make_arm
from vgrout_jax.config import ARMS, Config, MeshConfig
from vgrout_jax.config.scales import make_config
from vgrout_jax.model import lora2r, parameters, qwen3, sharding
from vgrout_jax.model.policy import Frozen
from vgrout_jax.rl.old_logprobs import make_old_logprobs
from vgrout_jax.rl.optim import make_optimizer
from vgrout_jax.rl.state import Batch, TrainState
from vgrout_jax.routing import direction
from vgrout_jax.run import build


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model and the batch that it is measured with.

    Attributes:
        model: shape and dtype.
        rank: r, of each block of the adapter.
        prompts, group: P and G.
        prompt_tokens: the bucket that prompts are padded to; they have seven eighths to all of it.
        new_tokens: T, the longest that a completion can be.
        micro_batch: rollouts of one forward and backward pass.
        mean_tokens: of completions that end with probability 1 / mean_tokens after every token, and at T; None:
            where lengths are drawn, a third to all of T, and where completions are, all of T.
        shared: whether the update reads a prompt once for its group.
        temperature, top_p: that rollouts are sampled with.
    """

    model: qwen3.Qwen3Config
    rank: int
    prompts: int
    group: int
    prompt_tokens: int
    new_tokens: int
    micro_batch: int
    mean_tokens: int | None = None
    shared: bool = True
    temperature: float = 0.7
    top_p: float = 0.95

    @property
    def rows(self) -> int:
        """N, rollouts of a step."""
        return self.prompts * self.group

    @property
    def sampler_serves(self) -> bool:
        """Whether the sampler's own log-probabilities serve as the old policy's; no rows are run again then."""
        config = configuration(self, "routeV", kl=True)
        return make_old_logprobs(make_arm(config), config, self.model).sampler_serves


def _qwen(vocabulary: int, width: int, forward: int, layers: int, heads: tuple[int, int, int], **more: Any) -> Any:
    return qwen3.Qwen3Config(vocabulary, width, forward, layers, *heads, **more)


SHAPES = {
    "tiny": Shape(_qwen(512, 64, 160, 2, (4, 2, 16)), 8, 2, 4, 32, 16, 4),
    # Sampled as the smoke run and the toy world are.
    "cpu": Shape(
        _qwen(4096, 256, 768, 4, (8, 4, 32), remat="cheap"), 8, 8, 8, 512, 64, 8, temperature=1.0, top_p=1.0
    ),
    "qwen3-4b": Shape(
        _qwen(151936, 2560, 9728, 36, (32, 8, 128), dtype=jnp.bfloat16, remat="cheap"), 32, 16, 16, 1024, 1536, 8, 400
    ),
}
_COUNTS = ("prompts", "group", "prompt_tokens", "new_tokens", "micro_batch", "mean_tokens")
_SAMPLED_WITH = ("temperature", "top_p")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --shape and what changes it."""
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    for name in _COUNTS + _SAMPLED_WITH:
        kind = int if name in _COUNTS else float
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="instead of the shape's own")
    parser.add_argument("--arms", default="none,routeV", help="separated by commas")
    parser.add_argument("--unshared", action="store_true", help="every pass reads a prompt once a rollout")
    parser.add_argument("--no-kl", action="store_true", help="beta 0: no forward of the base model")
    parser.add_argument("--json", help="also write the figures to this file")


def chosen(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Shape:
    """The shape that the options name; ends the program with one line where it or an arm cannot be."""
    given = {name: getattr(options, name) for name in _COUNTS + _SAMPLED_WITH}
    changes = {name: value for name, value in given.items() if value is not None}
    for name, value in changes.items():
        if name in _COUNTS and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be >= 1, got {value}")
    if not 0 < changes.get("top_p", 1) <= 1:
        parser.error(f"--top-p must be in (0, 1], got {options.top_p}")
    if changes.get("temperature", 0) < 0:
        parser.error(f"--temperature must be >= 0, got {options.temperature}")
    for arm in options.arms.split(","):
        if arm not in ARMS:
            parser.error(f"--arms must be of {', '.join(ARMS)}, got {arm!r}")
    shape = dataclasses.replace(SHAPES[options.shape], **changes)
    if shape.rows % shape.micro_batch:
        parser.error(f"--micro-batch must divide {shape.rows} rollouts, got {shape.micro_batch}")
    shape = dataclasses.replace(shape, shared=not options.unshared)
    return dataclasses.replace(shape, model=on_device(shape.model, jax.devices()[0]))


def on_device(model: qwen3.Qwen3Config, device: jax.Device) -> qwen3.Qwen3Config:
    """The model with the attention that a run takes on this device."""
    attention = build.attention_for(device, model.dtype, devices=jax.device_count())
    return dataclasses.replace(model, attention=attention)


def sizes(shape: Shape) -> dict[str, Any]:
    """The shape as plain values, for JSON."""
    return {**dataclasses.asdict(shape), "model": {**dataclasses.asdict(shape.model), "dtype": _name(shape)}}


def _name(shape: Shape) -> str:
    return jnp.dtype(shape.model.dtype).name


def configuration(shape: Shape, arm: str, *, kl: bool) -> Config:
    """A run's configuration with the shape's sizes."""
    config = make_config(arm, "full")
    config.adapter.rank = shape.rank
    config.rollout.prompts, config.rollout.group_size = shape.prompts, shape.group
    config.rollout.max_new_tokens = shape.new_tokens
    config.rollout.temperature, config.rollout.top_p = shape.temperature, shape.top_p
    config.train.micro_batch, config.train.share_prompts = shape.micro_batch, shape.shared
    config.loss.kl_coefficient = 1e-3 if kl else 0.0
    return config


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a step takes, as arrays or, for a program that is only looked at, as `jax.ShapeDtypeStruct`s."""

    state: TrainState
    frozen: Frozen
    routing: direction.Routing | None
    batch: Batch
    key: Any

    def arguments(self) -> tuple[Any, ...]:
        """In the order of the step."""
        return self.state, self.frozen, self.routing, self.batch, self.key


@dataclasses.dataclass(frozen=True)
class Sources:
    """Prompts as the sampler takes them, NumPy arrays.

    Attributes:
        tokens, valid: [Q, B] int32 and bool, left-padded.
        policy: [Q] bool, True as trained, False with the quarantine ablated.
        of_row: [N] int32, the source that each rollout continues.
        keys: [N] PRNG keys.
    """

    tokens: np.ndarray
    valid: np.ndarray
    policy: np.ndarray
    of_row: np.ndarray
    keys: jax.Array

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Every rollout's prompt and where it is valid, [N, B]."""
        return self.tokens[self.of_row], self.valid[self.of_row]


def sources(shape: Shape, seed: int = 0, *, both: bool = True) -> Sources:
    """Random prompts; the first half of every group samples the policy as trained, the rest the deployed one.

    `both` False: all sample the deployed one, as in the arm that never trains the quarantine.
    """
    draw = np.random.default_rng((seed, 1))
    size = shape.prompt_tokens
    lengths = draw.integers(-(-7 * size // 8), size + 1, shape.prompts)
    valid = np.arange(size) >= size - lengths[:, None]
    tokens = np.where(valid, draw.integers(0, shape.model.vocab_size, valid.shape), 0).astype(np.int32)
    deployed = np.arange(shape.group) >= shape.group - shape.group // 2
    policies = np.array([True, False]) if both else np.array([False])
    place = deployed if both else np.zeros(shape.group, bool)
    of_row = (policies.size * np.arange(shape.prompts)[:, None] + place).reshape(-1).astype(np.int32)
    keys = jax.random.split(jax.random.key(seed), shape.rows)
    tokens, valid = np.repeat(tokens, policies.size, axis=0), np.repeat(valid, policies.size, axis=0)
    return Sources(tokens, valid, np.tile(policies, shape.prompts), of_row, keys)


def ending_ids(shape: Shape) -> tuple[int, ...]:
    """Ids that end a completion, so many of the vocabulary that completions get the shape's mean length.

    Under random weights all tokens are about equally probable. Without a mean no id that is ever drawn.
    """
    if shape.mean_tokens is None:
        return (-1,)
    count = max(1, round(shape.model.vocab_size / shape.mean_tokens))
    return tuple(range(0, shape.model.vocab_size, shape.model.vocab_size // count))[:count]


def step_inputs(shape: Shape, config: Config, seed: int = 0, device: jax.Device | None = None) -> Inputs:
    """Random inputs of a step, placed as in a run; rewards differ in every group."""
    count, places = shape.rows, mesh(device)
    with jax.default_device(device or jax.devices()[0]):
        base, init, deltas = draw_weights(shape.model, shape.rank, seed)
        prompts = sources(shape, seed)
        routing = _routing(shape, config)
    draw = np.random.default_rng(seed)
    if shape.mean_tokens is None:
        lengths = draw.integers(shape.new_tokens // 3, shape.new_tokens + 1, count)
    else:
        lengths = np.minimum(draw.geometric(1 / shape.mean_tokens, count), shape.new_tokens)
    mask = np.arange(shape.new_tokens) < lengths[:, None]
    drawn = np.where(mask, draw.integers(0, shape.model.vocab_size, mask.shape), 0).astype(np.int32)
    batch = batch_of(shape, prompts, drawn, mask, -math.log(shape.model.vocab_size))  # random weights: about that
    optimizer = make_optimizer(config.optim, config.train.steps)
    state = TrainState(jnp.zeros((), jnp.int32), deltas, optimizer.init(deltas))
    frozen = Frozen(
        jax.device_put(base, sharding.parameter_shardings(places, shape.model)),
        jax.device_put(init, sharding.factor_shardings(places, init)),
    )
    key, routing = jax.device_put((jax.random.key(0), routing), sharding.replicated(places))
    state = jax.device_put(state, sharding.state_shardings(places, state))
    return Inputs(state, frozen, routing, jax.device_put(batch, sharding.batch_shardings(places, batch)), key)


def batch_of(
    shape: Shape, prompts: Sources, tokens: np.ndarray, mask: np.ndarray, logprobs: np.ndarray | float
) -> Batch:
    """The batch of completions [N, T], NumPy arrays; each group's rewards go evenly from 0 to 3.5.

    `logprobs` [N, T]: the sampler's own.
    """
    before, valid = prompts.rows()
    return Batch(
        tokens=np.concatenate([before, tokens], axis=1),
        valid=np.concatenate([valid, mask], axis=1),
        completion_mask=mask,
        rewards=np.tile(np.linspace(0.0, 3.5, shape.group, dtype=np.float32), shape.prompts),
        quarantine_sampled=prompts.policy[prompts.of_row],
        sampler_logprobs=np.where(mask, logprobs, 0.0).astype(np.float32),
        taught=np.zeros(shape.rows, bool),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def draw_weights(model: qwen3.Qwen3Config, rank: int, seed: int) -> tuple[dict, lora2r.Factors, lora2r.Factors]:
    """Random base parameters, A0 and B0, and small differences dA and dB, drawn where the program runs.

    The scales are those of a run that begins; differences of zero would leave products out of the arithmetic.
    """
    counter = iter(range(10_000))

    def normal(shape: tuple[int, ...], scale: float, kind: Any = jnp.float32) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), next(counter))
        return (scale * jax.random.normal(key, shape, kind)).astype(kind)

    def parameter(row: parameters.Parameter) -> jax.Array:
        if "norm" in row.published:
            return jnp.ones(row.shape, model.dtype)
        return normal(row.shape, 0.02, model.dtype)

    base = jax.tree.map(parameter, parameters.parameter_table(model), is_leaf=parameters.is_parameter)
    zeros = jax.eval_shape(lambda: _factor_zeros(model, rank))
    init = lora2r.Factors(
        a={name: normal(leaf.shape, leaf.shape[-1] ** -0.5) for name, leaf in zeros.a.items()},
        b={name: normal(leaf.shape, leaf.shape[-1] ** -0.5) for name, leaf in zeros.b.items()},
    )
    return base, init, jax.tree.map(lambda leaf: normal(leaf.shape, 1e-3), zeros)


def abstract_inputs(shape: Shape, config: Config) -> Inputs:
    """The same as shapes and types alone: nothing is allocated."""
    model = shape.model
    init = jax.eval_shape(lambda: _factor_zeros(model, shape.rank))
    optimizer = make_optimizer(config.optim, config.train.steps)
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), init, jax.eval_shape(optimizer.init, init))
    batch = Batch.shapes(shape.rows, shape.prompt_tokens, shape.new_tokens)
    routing = jax.eval_shape(lambda: _routing(shape, config))
    key = jax.eval_shape(lambda: jax.random.key(0))
    return Inputs(state, Frozen(parameters.abstract_parameters(model), init), routing, batch, key)


def _factor_zeros(model: qwen3.Qwen3Config, rank: int) -> lora2r.Factors:
    shapes, layers = model.module_shapes(), model.num_layers
    a = {name: jnp.zeros((layers, 2 * rank, inward)) for name, (inward, _) in shapes.items()}
    b = {name: jnp.zeros((layers, outward, 2 * rank)) for name, (_, outward) in shapes.items()}
    return lora2r.Factors(a=a, b=b)


def _routing(shape: Shape, config: Config) -> direction.Routing | None:
    """A random direction, with bands that spread the rollouts over all three zones."""
    if config.label.source != "probe":
        return None
    modules = 7 * shape.model.num_layers
    edge = jnp.zeros(modules)
    bands = direction.Bands(edge - 0.02, edge + 0.02, edge + 0.04, jnp.ones(modules, bool), jnp.int32(modules))
    return direction.Routing(direction.haar_direction(jax.random.key(2), modules, shape.rank), bands)


def mesh(device: jax.Device | None = None) -> jax.sharding.Mesh:
    """One device, as a run's mesh; None: the one that JAX computes on."""
    if device is None:
        return sharding.make_mesh(MeshConfig())
    kinds = (jax.sharding.AxisType.Auto,) * 3
    return jax.make_mesh((1, 1, 1), sharding.MESH_AXES, axis_types=kinds, devices=[device])
