"""The step costs no more than it did: operations, bytes, memory and compilations, which no noisy clock decides."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import flops, shapes, update, work
from benchmarks.compiled_flops import compiled_flops
from vgrout_jax.arms.compose import make_arm
from vgrout_jax.model import sharding
from vgrout_jax.rl.optim import make_optimizer
from vgrout_jax.rl.schedule import blocks
from vgrout_jax.rl.step import build_step

A, B = jax.ShapeDtypeStruct((3, 4), jnp.float32), jax.ShapeDtypeStruct((4, 5), jnp.float32)
PRODUCT = 2 * 3 * 4 * 5
# Of the shape "tiny", with KL. A change that lowers them should lower the bounds too.
MOST_FLOPS = {"none": 1.92e8, "routeV": 4.85e8}
# Written by the operations one by one, before XLA fuses them: with padded completions, and with packed ones.
MOST_BYTES = {"batch": {"none": 5.1e7, "routeV": 1.19e8}, "packed": {"none": 5.3e7, "routeV": 1.26e8}}
# Of the program before XLA sees it: what is traced again although an equal part was traced before adds to them.
MOST_LINES = {"batch": {"none": 6_700, "routeV": 10_900}, "packed": {"none": 7_700, "routeV": 12_800}}
MOST_TEMPORARIES = 5e6  # bytes


@pytest.fixture(autouse=True)
def prompts_are_shared(monkeypatch):
    """As at any scale that is worth measuring, short as they are here."""
    monkeypatch.setattr(blocks, "_LEAST_SHARED", 1)


def scanned(a, b):
    return jax.lax.scan(lambda carry, _: (carry + jnp.sum(a @ b), None), 0.0, None, length=7)[0]


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (lambda a, b: a @ b, 1),
        (jax.jit(lambda a, b: jnp.sum(a @ b)), 1),
        (scanned, 7),
        (jax.grad(lambda a, b: jnp.sum(jnp.sin(a @ b)), argnums=(0, 1)), 3),
        # Backward and once more forward; the value itself is not asked for.
        (jax.grad(jax.checkpoint(lambda a, b: jnp.sum(jnp.sin(jnp.sin(a) @ b)))), 2),
        (jax.value_and_grad(jax.checkpoint(lambda a, b: jnp.sum(jnp.sin(jnp.sin(a) @ b)))), 3),
        (lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: jnp.sum(a @ b), lambda: 0.0), 1),
        (lambda a, b: jax.lax.fori_loop(0, a.shape[0] + jnp.int32(a[0, 0]), lambda _, c: c + jnp.sum(a @ b), 0.0), 4),
    ],
)
def test_operations_are_those_of_the_matrix_products(function, products):
    assert flops.matmul_flops(function, A, B, trips=4) == products * PRODUCT


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (lambda a, b: a @ b, 1),
        (lambda a, b: jax.lax.fori_loop(0, 7, lambda _, c: c + jnp.sum((c + a) @ b), 0.0), 7),
        (jax.grad(lambda a, b: jnp.sum(jnp.sin(a @ b)), argnums=(0, 1)), 3),
        (lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: jnp.sum(jnp.sin(a @ b)), lambda: jnp.sum(jnp.sin(a))), 1),
        (lambda a, b: jax.lax.while_loop(lambda c: c < 9, lambda c: c + jnp.sum(jnp.sin(c * a @ b)), 0.0), 4),
    ],
)
def test_operations_of_a_compiled_program_are_those_that_were_asked_for(function, products):
    text = jax.jit(function).lower(A, B).compile().as_text()
    assert compiled_flops(text, trips=4) == products * PRODUCT


def test_operations_of_a_gpus_program_are_those_of_its_library():
    text = """HloModule jit_f, is_scheduled=true

%body.1 (p: (f32[3,4], f32[4,5])) -> (f32[3,4], f32[4,5]) {
  %p = (f32[3,4]{1,0}, f32[4,5]{1,0}) parameter(0)
  %a.1 = f32[3,4]{1,0} get-tuple-element(%p), index=0
  %b = f32[4,5]{1,0} get-tuple-element(%p), index=1
  %custom-call.1 = (f32[3,5]{1,0}, s8[32]{0}) custom-call(%a.1, %b), custom_call_target="__cublas$lt$matmul", CONFIG
  %k = f32[3,5]{1,0} custom-call(%a.1, %b), custom_call_target="__gpu$xla.gpu.triton"
  ROOT %t = (f32[3,4]{1,0}, f32[4,5]{1,0}) tuple(%a.1, %b)
}

ENTRY %main.2 (x: f32[3,4], y: f32[4,5]) -> (f32[3,4], f32[4,5]) {
  %x = f32[3,4]{1,0} parameter(0)
  %y = f32[4,5]{1,0} parameter(1)
  %c = (f32[3,4]{1,0}, f32[4,5]{1,0}) tuple(%x, %y)
  ROOT %w = (f32[3,4]{1,0}, f32[4,5]{1,0}) while(%c), condition=%c.1, body=%body.1, TRIPS
}
"""
    config = 'backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}'
    text = text.replace("CONFIG", config).replace("TRIPS", 'backend_config={"known_trip_count":{"n":"6"}}')
    assert compiled_flops(text) == 6 * PRODUCT
    with pytest.raises(ValueError, match="no ENTRY"):
        compiled_flops("HloModule jit_f")


def test_bytes_are_those_of_every_intermediate_array():
    def function(a, b):
        def body(carry, _):
            product = a @ b  # [3, 5]
            return carry + jnp.sum(product), jnp.sin(product)  # two scalars, and [3, 5] once more

        return jax.lax.scan(body, jnp.float32(0), None, length=7)

    assert flops.written_bytes(function, A, B) == 7 * 4 * (15 + 1 + 1 + 15)


def test_the_floor_is_that_of_the_weights():
    """Counted by hand for one map and one token."""
    shape = shapes.SHAPES["tiny"]
    layer, cached = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 160, 2 * 64 * 32  # weights; those of keys and values
    before = layer * (shape.model.num_layers - 1) + cached  # what a prompt's token needs
    shared, every = 2 * 32 * before, 8 * 32 * before
    completions = 8 * 16 * (layer * shape.model.num_layers + 512 * 64)
    assert work.update_flops(shape, "none", kl=False) == 2 * 2 * (shared + completions)
    assert work.update_flops(shape, "none", kl=True) == 3 * 2 * (shared + completions)
    routed = work.update_flops(shape, "routeV", kl=True, again=0.0)
    assert routed == 2 * (4 * shared + every + 5 * completions)


@pytest.mark.parametrize("arm", ["none", "routeV"])
@pytest.mark.parametrize("attention", MOST_BYTES)
def test_the_step_does_no_more_than_it_did(attention, arm):
    shape = shapes.SHAPES["tiny"]
    shape = dataclasses.replace(shape, model=dataclasses.replace(shape.model, attention=attention))
    most, lines = MOST_BYTES[attention][arm], MOST_LINES[attention][arm]
    arguments = shapes.abstract_inputs(shape, shapes.configuration(shape, arm, kl=True)).arguments()
    step = update.step_of(shape, arm, kl=True)
    assert work.update_flops(shape, arm, kl=True) <= flops.matmul_flops(step, *arguments) <= MOST_FLOPS[arm]
    assert most / 1.1 <= flops.written_bytes(step, *arguments) <= most
    assert lines / 1.1 <= step.lower(*arguments).as_text().count("\n") <= lines


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["none", "routeV"])
def test_the_compiled_step_holds_no_more_than_it_did(arm):
    found = update.look(shapes.SHAPES["tiny"], arm, kl=True)
    assert found["temporaries_gb"] * 1e9 <= MOST_TEMPORARIES
    assert compiled_flops(found["compiled"].as_text()) <= 1.001 * found["flops"]
    state = found["donated_gb"] * 1e9
    model = shapes.SHAPES["tiny"].model
    factors = sum(i + o for i, o in model.module_shapes().values()) * 2 * 8 * model.num_layers
    assert state >= 4 * 3 * factors  # differences and both moments are given back in place


@pytest.mark.slow
def test_one_program_serves_all_steps_and_no_logits_of_the_batch_exist():
    shape = shapes.SHAPES["tiny"]
    config = shapes.configuration(shape, "routeV", kl=True)
    config.model.logprob_chunk = 32
    step = build_step(
        config, shape.model, make_optimizer(config.optim, config.train.steps), shapes.mesh(), arm=make_arm(config)
    )
    state, *rest = shapes.step_inputs(shape, config).arguments()
    text = step.lower(state, *rest).compile().as_text()
    whole = f"f32[{shape.rows},{shape.new_tokens},{shape.model.vocab_size}]"
    assert whole not in text and f"f32[4,{shape.new_tokens},{shape.model.vocab_size}]" not in text
    assert f",{shape.model.vocab_size}]" in text  # those of a chunk do
    state = jax.device_put(state, sharding.state_shardings(shapes.mesh(), state))  # as a run places it
    programs = []
    for seed in range(3):
        _, frozen, routing, batch, key = shapes.step_inputs(shape, config, seed).arguments()
        state, metrics = step(state, frozen, routing, batch, key)
        assert np.isfinite(metrics.loss)
        programs.append(step._cache_size())
    assert programs[1] == programs[2] <= 2  # a step's own state may stand elsewhere than the first one
