"""The c-probe against one rollout at a time, finite differences, identities and PyTorch autograd."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.routing import torch_probe
from vgrout_jax.model import lora2r
from vgrout_jax.model.logprobs import completion_logprobs
from vgrout_jax.model.policy import Frozen, Policy
from vgrout_jax.rl.schedule.prompt_gradients import backward_through_prompts
from vgrout_jax.routing import direction, probe

ROUTES = {"ablated": lora2r.ablated_route, "full": lora2r.full_route}
WEIGHTS = jnp.asarray(np.random.default_rng(4).normal(size=tiny.ROWS), jnp.float32)  # of the rollouts' losses


def varied(frozen: Frozen) -> Frozen:
    """Norms that are not ones and embeddings of usual size, so that nothing is nearly symmetric or flat."""
    generator = np.random.default_rng(9)

    def change(leaf):
        if leaf.ndim == 3:
            return leaf
        noise = generator.standard_normal(leaf.shape)
        is_embedding = leaf.shape == frozen.base["embed"].shape
        return jnp.asarray(noise if is_embedding else 1 + 0.2 * noise, leaf.dtype)

    return frozen.replace(base=jax.tree.map(change, frozen.base))


@pytest.fixture(scope="module")
def frozen():
    return varied(tiny.frozen(tiny.model()))


@pytest.fixture(scope="module")
def deltas(frozen):
    return tiny.moved(frozen.init, 0.1)


def rollout_loss(model, frozen, deltas, batch, weights, scale, *, route):
    """Sum over rollouts of weight times -sum_t log pi_t."""
    logprobs = completion_logprobs(
        model,
        Policy(frozen.base, lora2r.Adapter(frozen.init, deltas), ROUTES[route](batch.tokens.shape[0]), scale),
        batch.tokens,
        batch.valid,
        completion_length=batch.completion_mask.shape[1],
        chunk=16,
    )
    return -jnp.sum(weights * jnp.where(batch.completion_mask, logprobs, 0.0).sum(axis=1))


@functools.partial(jax.jit, static_argnums=0, static_argnames="route")
def probe_all(model, frozen, deltas, batch, weights, *, route):
    """g_c of every rollout and module, both halves: [L, N, 2r] a module."""

    def loss(scale):
        return rollout_loss(model, frozen, deltas, batch, weights, scale, route=route), None

    rank = next(iter(deltas.b.values())).shape[-1] // 2
    return probe.probe_gradients(loss, lora2r.probe_ones(model.num_layers, batch.tokens.shape[0], rank))[0]


def stacked(gradients):
    """[N, M, 2r] in the documented order of modules, written out."""
    layers, rows = gradients["q_proj"].shape[:2]
    order = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    return np.array(
        [[gradients[name][layer, row] for layer in range(layers) for name in order] for row in range(rows)]
    )


def oracle_for(frozen, deltas, route):
    return torch_probe.Oracle(tiny.model(), frozen, deltas, blocks=1 if route == "ablated" else 2)


def sequence(batch, index):
    """A rollout's prompt and completion without padding."""
    tokens, valid = np.asarray(batch.tokens[index]), np.asarray(batch.valid[index])
    prompt, completion = np.split(np.arange(tokens.size), [tiny.PROMPT_TOKENS])
    return tokens[prompt][valid[prompt]].tolist(), tokens[completion][valid[completion]].tolist()


@pytest.mark.parametrize("route", ROUTES)
def test_batched_equals_one_rollout_at_a_time(frozen, deltas, route):
    batch = tiny.batch()
    together = stacked(probe_all(tiny.model(), frozen, deltas, batch, WEIGHTS, route=route))
    for index in range(tiny.ROWS):
        weight = WEIGHTS[index : index + 1]
        alone = probe_all(tiny.model(), frozen, deltas, tiny.row(batch, index), weight, route=route)
        scale = np.abs(together[index]).max()
        np.testing.assert_allclose(together[index], stacked(alone)[0], rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("route", ROUTES)
def test_equals_central_finite_differences_in_float64(frozen, deltas, route):
    """Differences of the textbook adapter's loss, in PyTorch and float64, one entry of c at a time."""
    batch, index, step = tiny.batch(), 2, 1e-4
    ours = stacked(probe_all(tiny.model(), frozen, deltas, batch, WEIGHTS, route=route))[index]
    oracle = oracle_for(frozen, deltas, route)
    prompt, completion = sequence(batch, index)

    def loss(module, entry, change):
        scale = np.ones(ours.shape)
        scale[module, entry] += change
        oracle.set_scale(scale)
        return -float(WEIGHTS[index]) * float(oracle.logprobs(prompt, completion).detach().sum())

    tolerance = 2e-5 * np.abs(ours).max()
    chosen = np.random.default_rng(0).permutation(ours.size)[:24]
    for module, entry in zip(*np.unravel_index(chosen, ours.shape), strict=True):
        slope = (loss(module, entry, step) - loss(module, entry, -step)) / (2 * step)
        assert abs(slope - ours[module, entry]) < tolerance + 1e-4 * abs(slope), (module, entry)
    if route == "ablated":
        assert np.all(ours[:, tiny.RANK :] == 0.0)


@pytest.mark.parametrize("route", ROUTES)
def test_equals_autograd_of_the_textbook_adapter(frozen, deltas, route):
    batch = tiny.batch()
    ours = stacked(probe_all(tiny.model(), frozen, deltas, batch, WEIGHTS, route=route))
    oracle = oracle_for(frozen, deltas, route)
    for index in range(tiny.ROWS):
        logprobs = oracle.logprobs(*sequence(batch, index))
        expected = oracle.gradient(-float(WEIGHTS[index]) * logprobs.sum())
        np.testing.assert_allclose(ours[index], expected, rtol=1e-3, atol=2e-5 * np.abs(expected).max())


def test_sums_over_the_prompt_s_positions_too(frozen, deltas):
    batch, index = tiny.batch(), 2
    ours = stacked(probe_all(tiny.model(), frozen, deltas, batch, WEIGHTS, route="full"))[index]
    oracle = oracle_for(frozen, deltas, "full")
    prompt, completion = sequence(batch, index)
    length = len(prompt) + len(completion)
    oracle.set_scale(np.ones((ours.shape[0], length, ours.shape[1])))
    by_position = oracle.gradient(-float(WEIGHTS[index]) * oracle.logprobs(prompt, completion).sum())
    np.testing.assert_allclose(ours, by_position.sum(axis=1), rtol=1e-3, atol=2e-5 * np.abs(ours).max())
    of_prompt = by_position[:, : len(prompt) - 1].sum(axis=1)
    assert np.linalg.norm(of_prompt) > 0.1 * np.linalg.norm(ours)


@pytest.mark.parametrize("route", ROUTES)
def test_both_identities_hold_for_one_rollout(frozen, deltas, route):
    """g_c[k] = <A[k,:], dL/dA[k,:]> = <B[:,k], dL/dB[:,k]>, dL/dA and dL/dB through the trainable branch."""
    batch = tiny.batch()
    gradient = jax.jit(jax.grad(lambda d, b, w: rollout_loss(tiny.model(), frozen, d, b, w, None, route=route)))
    for index in (0, 3, 6):
        row, weight = tiny.row(batch, index), WEIGHTS[index : index + 1]
        g = probe_all(tiny.model(), frozen, deltas, row, weight, route=route)
        through = gradient(deltas, row, weight)  # A0, B0 and the branch B0 A0 x are fixed
        for name in lora2r.MODULES:
            a, b = (
                np.asarray(frozen.init.a[name] + deltas.a[name]),
                np.asarray(frozen.init.b[name] + deltas.b[name]),
            )
            ours = np.asarray(g[name][:, 0])
            tolerance = 2e-5 * np.abs(ours).max() + 1e-6
            np.testing.assert_allclose(ours, (a * through.a[name]).sum(-1), rtol=1e-3, atol=tolerance)
            np.testing.assert_allclose(ours, (b * through.b[name]).sum(-2), rtol=1e-3, atol=tolerance)


def test_a_constant_factor_of_the_loss_is_a_factor_of_the_gradient(frozen, deltas):
    batch = tiny.batch()
    once = stacked(probe_all(tiny.model(), frozen, deltas, batch, WEIGHTS, route="full"))
    negated = stacked(probe_all(tiny.model(), frozen, deltas, batch, -2.0 * WEIGHTS, route="full"))
    np.testing.assert_allclose(negated, -2.0 * once, rtol=1e-3, atol=1e-5 * np.abs(once).max())


def test_modules_stand_layer_by_layer_in_the_documented_order():
    """Values that spell out their place go through jax's trees, which sort the keys of dicts."""
    layers, rows, rank = 3, 2, 4
    place = {name: index for index, name in enumerate(lora2r.MODULES)}

    def loss(scale):
        total = 0.0
        for name, leaf in scale.items():
            layer = jnp.arange(layers)[:, None, None]
            row, entry = jnp.arange(rows)[:, None], jnp.arange(2 * rank)
            total += jnp.sum(leaf * (1000 * layer + 100 * place[name] + 10 * row + entry))
        return total, "auxiliary"

    gradients, auxiliary = probe.probe_gradients(loss, lora2r.probe_ones(layers, rows, rank))
    assert auxiliary == "auxiliary"
    assert list(gradients) != list(lora2r.MODULES)  # the sorted order is another one
    half = probe.deployed_half(gradients, lora2r.MODULES)
    row, layer, module, entry = np.indices((rows, layers, len(lora2r.MODULES), rank))
    expected = (1000 * layer + 100 * module + 10 * row + entry).reshape(rows, -1, rank)
    np.testing.assert_array_equal(half, expected)


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 6, 8])
def test_every_rollout_goes_back_through_its_own_prompt(rows):
    """Whatever number goes at a time: a linear way back, rollout by rollout."""
    layers, prompts, tokens, size = 2, 3, 5, 4
    draw = np.random.default_rng(rows)
    # What each layer's cache gives to c of layer `l`, prompt by prompt.
    ways = draw.normal(size=(layers, prompts, layers, tokens, 2 * size)).astype(np.float32)
    of_caches = jnp.float32(draw.normal(size=(layers, prompts * rows, tokens)))

    def pull(gradients):  # [L, 1, Q, tokens]
        return ({"q_proj": jnp.einsum("kQt,lQktr->lQr", gradients[:, 0], ways)},)

    found = backward_through_prompts(of_caches, pull, rows)["q_proj"]
    for row in range(prompts * rows):
        expected = np.einsum("kt,lktr->lr", of_caches[:, row], ways[:, row // rows])
        np.testing.assert_allclose(found[:, row], expected, atol=1e-5)


def test_bfloat16_points_the_same_way_as_float32():
    """At a realistic width, on an adapter that has moved; also under the cosine that the gate takes."""
    wide = dataclasses.replace(
        tiny.model(jnp.bfloat16, layers=4),
        hidden_size=128,
        intermediate_size=320,
        head_dim=32,
        vocab_size=512,
    )
    rounded = tiny.frozen(wide, scale=4.0)
    deltas = tiny.moved(rounded.init, 0.01)
    exact = rounded.replace(base=jax.tree.map(lambda leaf: leaf.astype(jnp.float32), rounded.base))
    generator = np.random.default_rng(1)
    batch = tiny.batch()
    tokens = generator.integers(0, 512, (tiny.ROWS, 48)).astype(np.int32)
    valid = np.ones(tokens.shape, bool)
    batch = batch.replace(
        tokens=jnp.asarray(tokens), valid=jnp.asarray(valid), completion_mask=jnp.asarray(valid[:, 16:])
    )
    outputs = []
    for model, frozen in ((wide, rounded), (dataclasses.replace(wide, dtype=jnp.float32), exact)):
        gradients = probe_all(model, frozen, deltas, batch, WEIGHTS, route="ablated")
        assert all(leaf.dtype == jnp.float32 for leaf in gradients.values())
        outputs.append(probe.deployed_half(gradients, lora2r.MODULES))
    ours, expected = outputs
    cosine = np.asarray(jnp.sum(direction.unit(ours) * direction.unit(expected), -1))
    # Where a module's gradient nearly cancels, what is left of it is rounding: one in fifty may point elsewhere.
    assert cosine.shape == (tiny.ROWS, 28) and np.quantile(cosine, 0.02) >= 0.99 and cosine.mean() >= 0.999
    assert not np.array_equal(ours, expected)
