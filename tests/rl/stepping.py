"""Running the tiny step: configurations with all terms of the loss, and steps compiled once a module."""

import functools
import json

import jax
import jax.numpy as jnp

from tests import tiny
from vgrout_jax.arms.advantages import group_advantages
from vgrout_jax.arms.compose import make_arm
from vgrout_jax.rl import optim
from vgrout_jax.rl.grpo import LossSettings
from vgrout_jax.rl.old_logprobs import make_old_logprobs
from vgrout_jax.rl.scorer import Rows
from vgrout_jax.rl.state import Batch
from vgrout_jax.rl.step import build_step, make_row_losses, make_scorer
from vgrout_jax.routing import direction


def make_rows(config, batch: Batch, labels=None, old=None) -> Rows:
    shape = (config.rollout.prompts, config.rollout.group_size)
    advantages, live = group_advantages(batch.rewards.reshape(shape), unbiased=config.grpo.unbiased)
    return Rows(batch, advantages.reshape(-1), jnp.repeat(live, shape[1]), labels, old)


@functools.cache
def compiled(settings: str):
    """The jitted pass 2 and the jitted step of a configuration, given as `key(config)`; compiled once a module."""
    config = CONFIGS[settings]
    optimizer = optim.make_optimizer(config.optim, config.train.steps)
    arm, model = make_arm(config), tiny.model()
    scorer = make_scorer(config, model, tiny.mesh(), labels=arm.labels)
    row_losses = make_row_losses(make_old_logprobs(arm, config, model), LossSettings.of(config))
    step = build_step(config, model, optimizer, tiny.mesh(), arm=arm)
    return jax.jit(functools.partial(scorer.total, row_losses)), step, optimizer


CONFIGS = {}


def key(config) -> str:
    settings = json.dumps(config.to_dict(), sort_keys=True)
    CONFIGS[settings] = config
    return settings


def make_config(arm="routeV", **sections):
    """All terms of the loss, and the probe's gradients among the metrics."""
    settings = {"loss": {"kl_coefficient": 0.1}, "log": {"gradients": True}}
    for name, fields in sections.items():
        settings[name] = {**settings.get(name, {}), **fields}
    return tiny.config(arm, **settings)


def routing_for(frozen, seed=2):
    """A direction with bands that spread the tiny batch over the zones."""
    modules = 7 * tiny.model().num_layers
    v = direction.haar_direction(jax.random.key(seed), modules, tiny.RANK)
    edge = jnp.zeros(modules)
    bands = direction.Bands(edge, edge + 0.1, edge + 0.1, jnp.ones(modules, bool), jnp.int32(modules))
    return direction.Routing(v, bands)


def run_step(config, frozen, deltas, batch=None, *, seed=0):
    _, step, optimizer = compiled(key(config))
    routing = routing_for(frozen) if config.label.source == "probe" else None
    state = tiny.state(jax.tree.map(jnp.copy, deltas), optimizer)
    return step(state, frozen, routing, tiny.batch() if batch is None else batch, jax.random.key(seed))
