"""The benchmarks' formulas and readings against counts of real programs and arrays; no noisy clock decides."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import flops, memory, roofline, shapes, timing, work
from vgrout_jax.model import logprobs, lora2r, parameters, qwen3
from vgrout_jax.model.policy import Policy

TINY = shapes.SHAPES["tiny"]


def test_the_floor_counts_a_forward_pass_without_its_attention():
    """Against the products of the model's own forward pass, less those that read no weight."""
    alone = dataclasses.replace(TINY, prompts=TINY.rows, group=1)
    model, rows, before, new = alone.model, alone.rows, alone.prompt_tokens, alone.new_tokens
    prompts, tokens = (jax.ShapeDtypeStruct((rows, length), jnp.int32) for length in (before, new + 1))

    def forward(base, prompts, tokens):
        caches = logprobs.prompt_caches(model, Policy(base), prompts, jnp.ones(prompts.shape, bool))
        return logprobs.continued_logprobs(model, Policy(base), caches, jnp.full(rows, before), tokens, chunk=1024)

    counted = flops.matmul_flops(forward, parameters.abstract_parameters(model), prompts, tokens)
    compared = (model.num_layers - 1) * before**2 + model.num_layers * new * (before + new)
    attention = 2 * 2 * rows * compared * model.num_heads * model.head_dim
    none, with_kl = (work.update_flops(alone, "none", kl=kl) for kl in (False, True))
    assert with_kl - none == counted - attention
    assert none == 2 * (counted - attention)


def one_token(before: int, maps: Sequence[str], *, back: bool, factors: bool, scored: bool = False) -> float:
    """Operations of a token in a layer, which attends to `before` ones and itself; 0 where it attends to nothing."""
    model, total = TINY.model, 2 * 2 * TINY.model.num_heads * TINY.model.head_dim * before * (3 if back else 1)
    for name in maps:
        inside, outside = model.module_shapes()[name]
        own = 2 * TINY.rank * (inside + outside)
        total += 2 * inside * outside * (2 if back else 1) + 2 * own * (4 if back else 2) + 2 * own * factors
    return total + scored * 2 * model.hidden_size * model.vocab_size * (2 if back else 1)


def one_prompt(length: int, **passes: bool) -> float:
    whole = sum(one_token(place + 1, lora2r.MODULES, **passes) for place in range(length))
    last = sum(one_token(0, ["k_proj", "v_proj"], **passes) for _ in range(length))
    return (TINY.model.num_layers - 1) * whole + last


def one_completion(before: int, length: int, **passes: bool) -> float:
    layers = TINY.model.num_layers * sum(one_token(before + i, lora2r.MODULES, **passes) for i in range(length))
    return layers + length * one_token(0, [], scored=True, **passes)


FORWARD, PROBED, TRAINED = (
    {"back": back, "factors": factors} for back, factors in ((False, False), (True, False), (True, True))
)


def test_every_product_is_counted_once():
    """Token by token, map by map: what none and routeV's probe need of two groups of two."""
    shape = dataclasses.replace(TINY, prompts=2, group=2)
    lengths = work.Lengths(np.array([3, 3, 5, 5]), np.array([2, 4, 1, 3]), group=2)
    rows = list(zip(lengths.prompts, lengths.completions, strict=True))
    expected = (
        sum(one_completion(*row, **TRAINED) for row in rows) + one_prompt(3, **TRAINED) + one_prompt(5, **TRAINED)
    )
    assert work.update_products(shape, "none", kl=False, lengths=lengths) == expected
    expected += (
        sum(one_completion(*row, **PROBED) for row in rows) + one_prompt(3, **FORWARD) + one_prompt(5, **FORWARD)
    )
    expected += sum(one_prompt(before, **PROBED) - one_prompt(before, **FORWARD) for before, _ in rows)
    assert work.update_products(shape, "routeV", kl=False, lengths=lengths, again=0.0) == expected


def test_every_product_of_a_generation_is_counted_once():
    """A prompt once a source, a completion's tokens behind it once a row."""
    prompts, of_row, lengths = np.array([3, 5]), np.array([0, 1, 1]), np.array([4, 1, 2])
    expected = one_prompt(3, **FORWARD) + one_prompt(5, **FORWARD)
    expected += sum(one_completion(prompts[of_row[row]], lengths[row], **FORWARD) for row in range(3))
    assert work.generation_products(TINY.model, TINY.rank, prompts, of_row, lengths) == expected


def test_the_adapter_and_the_cache_are_counted_as_they_are_stored():
    _, init, deltas = jax.eval_shape(lambda: shapes.draw_weights(TINY.model, TINY.rank, 0))
    for factors in (init, deltas):
        assert sum(leaf.size for leaf in jax.tree.leaves(factors)) == work.adapter_weights(TINY.model, TINY.rank)
    rows, length = 3, 5

    def prefill(base, tokens, valid):
        attention = qwen3.causal_attention(valid, TINY.model)
        return qwen3.keys_and_values(TINY.model, base, tokens, attention)

    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    valid = jax.ShapeDtypeStruct((rows, length), bool)
    caches = jax.eval_shape(prefill, parameters.abstract_parameters(TINY.model), tokens, valid)
    assert memory.size_of(caches) == rows * length * work.cache_bytes(TINY.model)


def test_decoding_reads_what_stands_before_each_token():
    """Token by token: each row's own, and a prompt as long as any of its rows goes on."""
    prompts, of_row, lengths = np.array([3, 5, 2]), np.array([0, 1, 1, 2]), np.array([4, 1, 2, 0])
    found = work.decode_work(TINY.model, TINY.rank, prompts, of_row, lengths)
    weights = work.layer_weights(TINY.model) + work.head_weights(TINY.model)
    read = sum(token for length in lengths for token in range(length)) + 3 * 4 + 5 * 2
    stored = 4 * (weights + work.adapter_weights(TINY.model, TINY.rank))
    assert found.flops == 2 * weights * lengths.sum()
    assert found.bytes == 4 * stored + read * work.cache_bytes(TINY.model)  # four passes


def test_utilisation_counts_four_operations_a_weight_and_token():
    """With the head on every token the count is 4 N for none without KL, and 6 for each of the adapter's weights."""
    tokens = work.Tokens(prompts=0, shared=0, scored=10)
    weights = work.layer_weights(TINY.model) + work.head_weights(TINY.model)
    own = work.adapter_weights(TINY.model, TINY.rank)
    assert work.update_flops(TINY, "none", kl=False, tokens=tokens, adapter=True) == 10 * (4 * weights + 6 * own)
    routed = work.update_flops(TINY, "routeV", kl=True, tokens=tokens, again=0.0, adapter=True)
    assert routed == 10 * ((4 + 4 + 2) * weights + (6 + 4) * own)
    tokens = work.Tokens(prompts=14, shared=7, scored=0)  # of which the probe goes back through all
    weights, own = work.prompt_weights(TINY.model), work.adapter_weights(TINY.model, TINY.rank, of_prompts=True)
    routed = work.update_flops(TINY, "routeV", kl=True, tokens=tokens, again=0.0, adapter=True)
    assert routed == 7 * ((4 + 2 + 2) * weights + (6 + 2) * own) + 14 * 2 * (weights + own)


def test_the_account_of_memory_is_that_of_real_arrays():
    config = shapes.configuration(TINY, "routeV", kl=True)
    inputs, account = shapes.step_inputs(TINY, config), memory.account(TINY, config)

    def stored(tree: object) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

    assert account["weights"] == stored(inputs.frozen.base)
    assert account["adapter as drawn"] == stored(inputs.frozen.init)
    assert account["adapter's differences"] == account["gradient"] == stored(inputs.state.deltas)
    shared = dataclasses.replace(TINY, prompt_tokens=64)  # one pack of four, its prompt under three labels
    packed = TINY.micro_batch * TINY.new_tokens + 3 * 64
    account = memory.account(shared, config)
    assert account["layers' inputs of a micro-batch"] == memory.kept_inputs(TINY.model, packed)
    counters = 3 * 4  # the schedule's and Adam's, besides the moments; at most
    assert 0 <= stored(inputs.state.optimizer) - account["moments"] <= counters
    assert account["[N, T, V] float32, which must not be"] == 4 * 8 * 16 * 512


def test_a_rematerialised_layer_keeps_its_input_alone():
    """Residuals of the forward pass: what is stacked over layers and has a row's positions is the layers' inputs."""
    shape = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, remat="everything", num_layers=3))
    rows, length = shape.micro_batch, shape.prompt_tokens + shape.new_tokens
    base, init, deltas = shapes.draw_weights(shape.model, shape.rank, 0)
    tokens, valid = jnp.ones((rows, length), jnp.int32), jnp.ones((rows, length), bool)

    def hidden(deltas):
        fused = qwen3.AdapterLayer(lora2r.fuse(lora2r.Adapter(init, deltas), shape.model.dtype), None)
        attention, route = qwen3.causal_attention(valid, shape.model), lora2r.full_route(rows)
        return qwen3.Qwen3(shape.model).apply({"params": base}, tokens, attention, fused, route)

    _, backward = jax.vjp(hidden, deltas)
    kept = [leaf for leaf in jax.tree.leaves(backward) if leaf.shape[:1] == (3,) and length in leaf.shape]
    assert sum(leaf.nbytes for leaf in kept) == memory.kept_inputs(shape.model, rows * length)


@pytest.mark.parametrize("arm", ["none", "routeV"])
def test_inputs_without_memory_are_those_with_it(arm):
    config = shapes.configuration(TINY, arm, kl=True)
    real, abstract = shapes.step_inputs(TINY, config), shapes.abstract_inputs(TINY, config)

    def described(inputs: shapes.Inputs) -> object:
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), inputs.arguments())

    assert described(real) == described(abstract)


def test_prompts_are_padded_on_the_left_and_both_policies_sample_in_every_group():
    prompts = shapes.sources(dataclasses.replace(TINY, group=5))
    tokens, valid = prompts.rows()
    assert tokens.shape == valid.shape == (10, 32) and valid[:, -1].all() and not valid.all()
    assert (np.diff(valid.astype(int), axis=1) >= 0).all() and valid.sum(1).min() >= 28
    assert prompts.policy[prompts.of_row].reshape(2, 5).sum(1).tolist() == [3, 3]
    assert all((group == group[0]).all() for group in tokens.reshape(2, 5, 32))
    assert (tokens[0] != tokens[5]).any()
    alone = shapes.sources(dataclasses.replace(TINY, group=5), both=False)
    np.testing.assert_array_equal(alone.rows()[0], tokens)
    assert alone.tokens.shape[0] == 2 and not alone.policy.any()


@pytest.mark.parametrize("mean", [3, 8, 100, 512])
def test_so_many_ids_end_a_completion_that_its_mean_length_is_as_asked(mean):
    ids = shapes.ending_ids(dataclasses.replace(TINY, mean_tokens=mean))
    assert len(set(ids)) == len(ids) == round(512 / mean) and set(ids) <= set(range(512))


def test_without_a_mean_no_id_ends_a_completion():
    assert set(shapes.ending_ids(TINY)).isdisjoint(range(TINY.model.vocab_size))


def test_compilation_inside_of_compilation_counts_once():
    watch = timing.Compilations()
    watch.intervals = [(1.0, 2.0), (0.5, 3.0), (2.5, 4.0), (6.0, 7.0), (9.0, 12.0)]
    assert watch.seconds(0.0, 10.0) == pytest.approx(3.5 + 1.0 + 1.0)
    assert watch.seconds(1.5, 2.75) == pytest.approx(1.25)


def test_compilation_is_told_apart_from_running():
    watch = timing.Compilations()
    function = jax.jit(lambda x: jnp.sin(x) @ x)
    first, second = (watch.measured(lambda: function(jnp.ones((7, 7))))[1] for _ in range(2))
    assert 0 < first.compiling <= first.wall and second.compiling == 0 and second.running == second.wall


def test_published_peaks_are_found_by_the_devices_name():
    assert roofline.published("NVIDIA H200") == (989e12, 4.8e12)
    assert roofline.published("NVIDIA H100 80GB HBM3") == (989e12, 3.35e12)
    assert roofline.published("NVIDIA A100-SXM4-80GB") == (312e12, 2.04e12)
    assert roofline.published("NVIDIA H100 PCIe") is None  # another chip's rates would be wrong


def test_logits_of_all_rollouts_are_found_in_a_programs_text():
    whole = f"f32[{TINY.rows},{TINY.new_tokens},512]"
    text = f"%a = bf16{whole[3:]} x(), %b = f32[4,16,512]{{2,1,0}} y(), %c = f32[9999999,64] z()"
    assert memory.whole_logits(text, TINY) == []
    assert memory.whole_logits(f"{text} %d = {whole}{{2,1,0}} w()", TINY) == ["8,16,512"]
    assert memory.whole_logits("%e = f32[128,512]{1,0} v()", TINY) == ["128,512"]  # flattened


def test_a_program_that_makes_the_logits_of_all_rollouts_is_found_out():
    def bad(hidden, head):
        return jnp.exp(jnp.sin(hidden @ head)).sum(1)

    shape = ((8, 16, 64), (64, 512))
    program = memory.Program(
        "bad", lambda: jax.jit(bad).trace(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shape)), 7
    )
    found = memory.look(program, memory.make(program), TINY)
    assert found["whole_logits"] and found["arguments"] == 4 * (8 * 16 * 64 + 64 * 512)
    assert found["in all"] == found["arguments"] + found["outputs"] + found["temporaries"] + 7


def test_what_a_loop_reads_is_not_counted_in_another_type():
    """Products of bfloat16 stacks, a layer at a time; the CPU would convert the whole stack to float32 first."""
    layers, width = 16, 256

    def product(x, stack):
        return jax.lax.scan(lambda x, weights: (jnp.tanh(x @ weights), None), x, stack)[0]

    arrays = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((8, width), (layers, width, width))]
    program = memory.Program("loop", lambda: jax.jit(product).trace(*arrays), 0)
    found = memory.look(program, memory.make(program), TINY)
    assert found["temporaries"] < 4 * width * width * layers / 2
    assert f"{layers},{width},{width}" not in found["largest"]


def test_arrays_inside_a_fusion_are_not_listed():
    text = """%inner (p: bf16[9,9]) -> bf16[9] {
  %c = f32[9,9]{1,0} convert(%p)
}

ENTRY %main (x: bf16[9,9]) -> bf16[9] {
  ROOT %f = bf16[9]{0} fusion(%x), kind=kLoop, calls=%inner, metadata={}
  %y = f32[5]{0} add(%z, %z)
}"""
    assert memory.largest_arrays(text) == ["5"]
    assert memory.largest_arrays(text.replace("fusion(", "call(")) == ["9,9", "5"]
