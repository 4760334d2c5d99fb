"""Run in a process with eight forced host devices: one step and one generation, sharded and on one device.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.eight_devices 2,2,2
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from tests import tiny
from vgrout_jax.arms.compose import make_arm
from vgrout_jax.model import lora2r, sharding
from vgrout_jax.model.policy import Frozen
from vgrout_jax.rl import optim
from vgrout_jax.rl.schedule import blocks
from vgrout_jax.rl.state import initial_state
from vgrout_jax.rl.step import build_step
from vgrout_jax.routing import direction
from vgrout_jax.sampling import keys, sampler


def place(mesh: Mesh) -> Frozen:
    frozen = tiny.frozen(tiny.model())
    return Frozen(
        jax.device_put(frozen.base, sharding.parameter_shardings(mesh, tiny.model())),
        jax.device_put(frozen.init, sharding.factor_shardings(mesh, frozen.init)),
    )


def one_step(mesh: Mesh) -> tuple:
    config = tiny.config(loss={"kl_coefficient": 0.1}, log={"gradients": True})
    frozen, optimizer = place(mesh), optim.make_optimizer(config.optim, config.train.steps)
    state = initial_state(frozen.init, optimizer, mesh)
    moved = tiny.moved(frozen.init, 0.05)
    state = state.replace(deltas=jax.device_put(moved, sharding.factor_shardings(mesh, moved)))
    modules = 7 * tiny.model().num_layers
    edge = jnp.zeros(modules)
    bands = direction.Bands(edge, edge + 0.1, edge + 0.1, jnp.ones(modules, bool), jnp.int32(modules))
    routing = direction.Routing(direction.haar_direction(jax.random.key(2), modules, tiny.RANK), bands)
    batch = tiny.batch()
    batch = jax.device_put(batch, sharding.batch_shardings(mesh, batch))
    everywhere = sharding.replicated(mesh)
    step = build_step(config, tiny.model(), optimizer, mesh, arm=make_arm(config))
    routing, key = jax.device_put((routing, jax.random.key(0)), everywhere)
    state, metrics = step(state, frozen, routing, batch, key)
    expected = sharding.factor_shardings(mesh, state.deltas)
    for leaf, wanted in zip(jax.tree.leaves(state.deltas), jax.tree.leaves(expected), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), (leaf.sharding, wanted)
    return jax.device_get((state.deltas, metrics))


def one_generation(mesh: Mesh) -> sampler.Samples:
    frozen = place(mesh)
    deltas = tiny.moved(frozen.init, 0.05)
    sample = sampler.build_sampler(tiny.model(), max_new_tokens=tiny.NEW_TOKENS, eos_ids=(3,), pad_id=0, mesh=mesh)
    generator = np.random.default_rng(0)
    rows = tiny.ROWS
    return jax.device_get(
        sample(
            frozen.base,
            lora2r.Adapter(frozen.init, deltas),
            generator.integers(4, tiny.VOCAB, (4, 5)).astype(np.int32),
            np.ones((4, 5), bool),
            source_policy=np.array([True, False, True, False]),
            source_of_row=np.arange(rows, dtype=np.int32) // 2,
            active=np.ones(rows, bool),
            keys=keys.training_keys(0, 0, ["a"] * rows, list(range(rows))),
            temperature=1.0,
        )
    )


def main(shape: tuple[int, int, int]) -> None:
    blocks._LEAST_SHARED = 1  # so that prompts are shared among the rows of a device, short as they are here
    axis_types = (AxisType.Auto,) * 3
    one = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.MESH_AXES, axis_types=axis_types)
    eight = Mesh(np.array(jax.devices()).reshape(shape), sharding.MESH_AXES, axis_types=axis_types)
    (deltas, metrics), (many_deltas, many_metrics) = one_step(one), one_step(eight)
    np.testing.assert_allclose(metrics.decision.record["score"], many_metrics.decision.record["score"], atol=1e-5)
    np.testing.assert_array_equal(metrics.decision.labels, many_metrics.decision.labels)
    np.testing.assert_allclose(metrics.loss, many_metrics.loss, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics.gradient_norm, many_metrics.gradient_norm, rtol=1e-4)
    for ours, theirs in zip(jax.tree.leaves(deltas), jax.tree.leaves(many_deltas), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)
    samples, many = one_generation(one), one_generation(eight)
    np.testing.assert_array_equal(samples.tokens, many.tokens)
    np.testing.assert_allclose(samples.policy_logprobs, many.policy_logprobs, atol=1e-4)
    print("equal")


if __name__ == "__main__":
    main(tuple(int(part) for part in sys.argv[1].split(",")))
