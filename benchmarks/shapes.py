"""Model and batch shapes of the benchmarks, with random weights or none at all."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgrout_jax import sharding
from vgrout_jax.config import Config, MeshConfig
from vgrout_jax.model import lora2r, qwen3
from vgrout_jax.presets import make_config
from vgrout_jax.rl.optim import make_optimizer
from vgrout_jax.rl.state import Batch, Frozen, TrainState
from vgrout_jax.routing import direction


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model and the batch that it is measured with; names of the axes as in README.md."""

    model: qwen3.Qwen3Config
    rank: int
    prompts: int
    group: int
    prompt_tokens: int
    new_tokens: int
    micro_batch: int

    @property
    def rows(self) -> int:
        """N, rollouts of a step."""
        return self.prompts * self.group


def _qwen(vocabulary: int, width: int, forward: int, layers: int, heads: tuple[int, int, int], **more: Any) -> Any:
    return qwen3.Qwen3Config(vocabulary, width, forward, layers, *heads, **more)


SHAPES = {
    "tiny": Shape(_qwen(512, 64, 160, 2, (4, 2, 16)), 8, 2, 4, 32, 16, 4),
    "cpu": Shape(_qwen(4096, 256, 768, 4, (8, 4, 32)), 8, 8, 8, 512, 64, 8),
    "qwen3-4b": Shape(
        _qwen(151936, 2560, 9728, 36, (32, 8, 128), dtype=jnp.bfloat16, remat=True), 32, 16, 16, 1024, 1536, 8
    ),
}


def configuration(shape: Shape, arm: str, *, kl: bool) -> Config:
    """A run's configuration with the shape's sizes."""
    config = make_config(arm, "full")
    config.adapter.rank = shape.rank
    config.rollout.prompts, config.rollout.group_size = shape.prompts, shape.group
    config.rollout.max_new_tokens = shape.new_tokens
    config.train.micro_batch = shape.micro_batch
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


def step_inputs(shape: Shape, config: Config, seed: int = 0) -> Inputs:
    """Random inputs of a step; completions have a third to all of their length, rewards differ in every group."""
    draw = np.random.default_rng(seed)
    model, count = shape.model, shape.rows
    init = lora2r.init_factors(model.module_shapes(), model.num_layers, shape.rank, seed=0)
    init = jax.tree.map(jnp.asarray, init)
    deltas = jax.tree.map(lambda leaf: jnp.asarray(1e-3 * draw.standard_normal(leaf.shape), jnp.float32), init)
    optimizer = make_optimizer(config.optim, config.train.steps)
    state = TrainState(jnp.zeros((), jnp.int32), deltas, optimizer.init(deltas))
    lengths = draw.integers(shape.new_tokens // 3, shape.new_tokens + 1, count)
    mask = np.arange(shape.new_tokens) < lengths[:, None]
    tokens = draw.integers(0, model.vocab_size, (count, shape.prompt_tokens + shape.new_tokens)).astype(np.int32)
    valid = np.concatenate([np.ones((count, shape.prompt_tokens), bool), mask], 1)
    rewards = np.tile(np.linspace(0.0, 3.5, shape.group, dtype=np.float32), shape.prompts)
    sampled = np.tile(np.arange(shape.group) % 2 == 0, shape.prompts)
    batch = jax.tree.map(jnp.asarray, Batch(tokens, valid, mask, rewards, sampled))
    base = jax.tree.map(jnp.asarray, qwen3.init_parameters(model, seed))
    return Inputs(state, Frozen(base, init), _routing(shape, config), batch, jax.random.key(0))


def abstract_inputs(shape: Shape, config: Config) -> Inputs:
    """The same as shapes and types alone: nothing is allocated."""
    model = shape.model
    init = jax.eval_shape(lambda: _factor_zeros(model, shape.rank))
    optimizer = make_optimizer(config.optim, config.train.steps)
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), init, jax.eval_shape(optimizer.init, init))
    length = shape.prompt_tokens + shape.new_tokens

    def array(kind: Any, *axes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((shape.rows, *axes), kind)

    batch = Batch(
        array(jnp.int32, length), array(bool, length), array(bool, shape.new_tokens), array(jnp.float32), array(bool)
    )
    routing = jax.eval_shape(lambda: _routing(shape, config))
    key = jax.eval_shape(lambda: jax.random.key(0))
    return Inputs(state, Frozen(qwen3.abstract_parameters(model), init), routing, batch, key)


def _factor_zeros(model: qwen3.Qwen3Config, rank: int) -> lora2r.Factors:
    shapes, layers = model.module_shapes(), model.num_layers
    a = {name: jnp.zeros((layers, 2 * rank, inward)) for name, (inward, _) in shapes.items()}
    b = {name: jnp.zeros((layers, outward, 2 * rank)) for name, (_, outward) in shapes.items()}
    return lora2r.Factors(a=a, b=b)


def _routing(shape: Shape, config: Config) -> direction.Routing | None:
    """A random direction, with bands that spread the rollouts over all three zones."""
    if config.gate.kind != "route":
        return None
    modules = 7 * shape.model.num_layers
    edge = jnp.zeros(modules)
    bands = direction.Bands(edge - 0.02, edge + 0.02, edge + 0.04, jnp.ones(modules, bool), jnp.int32(modules))
    return direction.Routing(direction.haar_direction(jax.random.key(2), modules, shape.rank), bands)


def mesh() -> jax.sharding.Mesh:
    """One device."""
    return sharding.make_mesh(MeshConfig())
