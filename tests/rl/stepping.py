"""Running the tiny step: configurations with all terms of the loss, and steps compiled once a module."""

import functools
import json

import jax
import jax.numpy as jnp

from tests import tiny
from vgrout_jax.rl import grpo, optim
from vgrout_jax.rl.schedule.passes import Passes, Row
from vgrout_jax.rl.state import Batch
from vgrout_jax.rl.step import build_step
from vgrout_jax.routing import direction


def make_row(config, batch: Batch) -> Row:
    shape = (config.rollout.prompts, config.rollout.group_size)
    advantages, live = grpo.group_advantages(batch.rewards.reshape(shape), unbiased=config.grpo.unbiased)
    return Row(batch, advantages.reshape(-1), jnp.repeat(live, shape[1]))


@functools.cache
def compiled(settings: str):
    """The jitted pass 2 and the jitted step of a configuration, given as `key(config)`; compiled once a module."""
    config = CONFIGS[settings]
    optimizer = optim.make_optimizer(config.optim, config.train.steps)
    passes = Passes(config, tiny.model(), tiny.mesh())
    return (
        jax.jit(passes.masked_gradient),
        build_step(config, tiny.model(), optimizer, tiny.mesh()),
        optimizer,
    )


CONFIGS = {}


def key(config) -> str:
    settings = json.dumps(config.to_dict(), sort_keys=True)
    CONFIGS[settings] = config
    return settings


def make_config(**sections):
    """All terms of the loss, and the probe's gradients among the metrics."""
    settings = {"loss": {"kl_coefficient": 0.1}, "log": {"gradients": True}}
    for name, fields in sections.items():
        settings[name] = {**settings.get(name, {}), **fields}
    return tiny.config(**settings)


def routing_for(frozen, seed=2):
    """A direction with bands that spread the tiny batch over the zones."""
    modules = 7 * tiny.model().num_layers
    v = direction.haar_direction(jax.random.key(seed), modules, tiny.RANK)
    edge = jnp.zeros(modules)
    bands = direction.Bands(edge, edge + 0.1, edge + 0.1, jnp.ones(modules, bool), jnp.int32(modules))
    return direction.Routing(v, bands)


def run_step(config, frozen, deltas, batch=None, *, seed=0):
    _, step, optimizer = compiled(key(config))
    routing = routing_for(frozen) if config.gate.kind == "route" else None
    state = tiny.state(jax.tree.map(jnp.copy, deltas), optimizer)
    return step(state, frozen, routing, tiny.batch() if batch is None else batch, jax.random.key(seed))
