"""The sampler against transformers, the full forward pass and NumPy."""

import dataclasses
import functools
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.model.sampling import (
    GROUPED,
    NEW_TOKENS,
    PAD,
    POLICIES,
    PROMPTS,
    SHALLOW,
    SOURCE_OF_ROW,
    UNTIED,
    built,
    call,
    fixed,
    published_model,
    row_keys,
    whole_sequences,
)
from vgrout_jax.model import head, logprobs, lora2r, padding, qwen3
from vgrout_jax.model.policy import Policy
from vgrout_jax.sampling import decode, draw_token, sampler


@functools.partial(jax.jit, static_argnums=0)
def recompute(config: qwen3.Qwen3Config, base: dict, adapter, tokens: jax.Array, valid: jax.Array):
    route = lora2r.Route(jnp.asarray(POLICIES[SOURCE_OF_ROW]))
    return logprobs.completion_logprobs(
        config, Policy(base, adapter, route), tokens, valid, completion_length=NEW_TOKENS, chunk=16
    )


def recomputed(samples: sampler.Samples, config: qwen3.Qwen3Config, adapter) -> np.ndarray:
    return np.asarray(recompute(config, fixed(config)[0], adapter, *whole_sequences(samples)))


@functools.partial(jax.jit, static_argnums=0)
def full_logits(config: qwen3.Qwen3Config, base: dict, adapter, tokens: jax.Array, valid: jax.Array):
    """Logits [N, T, V] of the tokens' predecessors from one whole forward pass."""
    layer = qwen3.AdapterLayer(lora2r.fuse(adapter, config.dtype), None)
    route = lora2r.Route(jnp.asarray(POLICIES[SOURCE_OF_ROW]))
    attention = qwen3.causal_attention(valid, config)
    hidden = qwen3.Qwen3(config).apply({"params": base}, tokens, attention, layer, route)
    return head.unembed(base, hidden[:, -NEW_TOKENS - 1 : -1])


@pytest.mark.parametrize("config", [GROUPED, UNTIED], ids=["grouped_tied", "untied"])
def test_greedy_equals_transformers_token_for_token(config):
    model = published_model(config)
    prompts, valid = padding.pad_prompts(PROMPTS, 12, PAD)
    with torch.no_grad():
        generated = model.generate(
            torch.tensor(prompts, dtype=torch.long),
            attention_mask=torch.tensor(valid, dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=PAD,
        )
    expected = generated[:, 12:].numpy()[SOURCE_OF_ROW]
    samples = call(built(config), config, adapter=None, temperature=0.0)
    assert len(np.unique(expected)) > 8  # a model that repeats itself would agree by accident
    np.testing.assert_array_equal(samples.tokens, expected)
    assert samples.mask.all()
    np.testing.assert_array_equal(samples.logprobs, 0.0)  # one outcome
    assert (samples.policy_logprobs < 0).all()


def test_greedy_stops_early_at_the_first_eos_as_transformers_does_though_eos_is_pad():
    free = call(built(), adapter=None, temperature=0.0).tokens
    eos_ids = tuple(int(token) for token in {*free[:, 2], free[1, 0]})
    pad_id = eos_ids[0]
    with torch.no_grad():
        prompts, valid = padding.pad_prompts(PROMPTS, 12, PAD)
        generated = published_model(GROUPED).generate(
            torch.tensor(prompts, dtype=torch.long),
            attention_mask=torch.tensor(valid, dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=list(eos_ids),
            pad_token_id=pad_id,
        )
    expected = generated[:, 12:].numpy()[SOURCE_OF_ROW]
    samples = call(built(eos_ids=eos_ids, pad_id=pad_id), adapter=None, temperature=0.0)
    np.testing.assert_array_equal(samples.tokens[:, : expected.shape[1]], expected)
    is_eos = np.isin(free, eos_ids)
    np.testing.assert_array_equal(samples.mask, np.cumsum(is_eos, axis=1) - is_eos == 0)
    lengths = samples.mask.sum(axis=1)
    assert lengths.min() == 1 and lengths.max() <= 3
    assert samples.steps == lengths.max() == expected.shape[1]  # the loop ends with the last row
    for array, filler in [(samples.tokens, pad_id), (samples.logprobs, 0.0), (samples.policy_logprobs, 0.0)]:
        np.testing.assert_array_equal(array[~samples.mask], filler)
    assert call(built(), adapter=None, temperature=0.0).steps == NEW_TOKENS


@pytest.mark.parametrize("with_adapter", [True, False])
def test_cached_decode_equals_the_full_forward(with_adapter):
    adapter = fixed()[1] if with_adapter else None
    samples = call(built(), adapter=adapter)
    np.testing.assert_allclose(samples.policy_logprobs, recomputed(samples, GROUPED, adapter), atol=1e-4)


def test_the_routes_differ_so_that_mixed_rows_test_something():
    samples = call(built())
    swapped = call(built(), source_policy=~POLICIES)
    assert (samples.policy_logprobs[:, 0] != swapped.policy_logprobs[:, 0]).all()


def test_cached_decode_in_bfloat16_equals_the_full_forward():
    config = dataclasses.replace(SHALLOW, dtype=jnp.bfloat16)
    adapter = fixed(config)[1]
    samples = call(built(config), config)
    assert samples.policy_logprobs.dtype == np.float32
    difference = np.abs(samples.policy_logprobs - recomputed(samples, config, adapter))
    assert difference.max() < 0.2 and difference.mean() < 0.03


def test_logprobs_are_the_policys_own_at_temperature_one():
    samples = call(built())
    np.testing.assert_array_equal(samples.logprobs, samples.policy_logprobs)
    cooler = call(built(), temperature=0.7)
    assert np.abs(cooler.logprobs - cooler.policy_logprobs).max() > 0.1


def test_logprobs_are_of_the_truncated_distribution_at_its_temperature():
    samples = call(built(SHALLOW, top_k=9, top_p=0.8), SHALLOW, temperature=0.7)
    logits = np.asarray(full_logits(SHALLOW, *fixed(SHALLOW), *whole_sequences(samples)), np.float64)
    scaled = logits / 0.7
    order = np.argsort(-scaled, axis=-1)[..., :9]
    top = np.take_along_axis(scaled, order, -1)
    probabilities = np.exp(top - top.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    needed = np.cumsum(probabilities, -1) - probabilities < 0.8  # [N, T, 9]
    probabilities = np.where(needed, probabilities, 0.0)
    probabilities /= probabilities.sum(-1, keepdims=True)
    chosen = order == samples.tokens[..., None]
    assert (chosen & needed).any(-1).all()
    expected = np.log((probabilities * chosen).sum(-1))
    np.testing.assert_allclose(samples.logprobs, expected, atol=1e-4)
    untruncated = np.take_along_axis(logits, samples.tokens[..., None], -1)[..., 0]
    untruncated -= np.log(np.exp(logits).sum(-1))
    np.testing.assert_allclose(samples.policy_logprobs, untruncated, atol=1e-4)


def test_a_token_is_drawn_with_its_rows_key_folded_with_its_index():
    settings = {"top_k": 9, "top_p": 0.8}
    samples = call(built(SHALLOW, **settings), SHALLOW, temperature=0.7)
    logits = full_logits(SHALLOW, *fixed(SHALLOW), *whole_sequences(samples))
    for index in range(NEW_TOKENS):
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(row_keys(), index)
        expected, _, _ = draw_token.draw(logits[:, index], keys, jnp.float32(0.7), **settings)
        np.testing.assert_array_equal(samples.tokens[:, index], expected)


def test_inactive_rows_are_born_finished_and_change_no_other():
    active = np.array([True, False, True, True, False, True, True, True])
    samples, everyone = call(built(), active=active), call(built())
    assert not samples.mask[~active].any()
    np.testing.assert_array_equal(samples.tokens[~active], PAD)
    np.testing.assert_array_equal(samples.logprobs[~active], 0.0)
    np.testing.assert_array_equal(samples.tokens[active], everyone.tokens[active])
    assert call(built(), active=np.zeros(8, bool)).steps == 0


def test_one_compilation_serves_every_temperature_prompt_and_key():
    sample = built()
    call(sample)
    programs = (sample.prefill, sample.take_layer, sample.start, sample.advance)
    compiled = [program._cache_size() for program in programs]
    tokens = []
    for seed, temperature in enumerate([1.0, 0.7, 0.0]):
        prompts = np.full((4, 12), 3 + seed, np.int32)
        tokens.append(call(sample, temperature=temperature, prompts=prompts, keys=row_keys(seed)).tokens)
    assert [program._cache_size() for program in programs] == compiled
    assert (tokens[0] != tokens[1]).any() and (tokens[1] != tokens[2]).any()


def test_a_row_depends_neither_on_its_neighbours_nor_on_its_place():
    reference = call(built())
    order = np.array([6, 2, 7, 0, 5, 1, 4, 3])
    moved = call(built(), source_of_row=SOURCE_OF_ROW[order], keys=row_keys()[order])
    for name in ("tokens", "logprobs", "policy_logprobs"):
        np.testing.assert_array_equal(getattr(moved, name), getattr(reference, name)[order])

    sources = np.array([2, 0, 3, 1])  # the sources in another order, too
    prompts, valid = padding.pad_prompts([PROMPTS[i] for i in sources], 12, PAD)
    moved = call(
        built(),
        prompts=prompts,
        prompt_valid=valid,
        source_policy=POLICIES[sources],
        source_of_row=np.argsort(sources)[SOURCE_OF_ROW].astype(np.int32),
    )
    np.testing.assert_array_equal(moved.tokens, reference.tokens)
    np.testing.assert_array_equal(moved.policy_logprobs, reference.policy_logprobs)

    others = [PROMPTS[0], [33] * 12, [1, 2], [50, 51, 52, 53, 54, 55]]
    prompts, valid = padding.pad_prompts(others, 12, PAD)
    new_keys = jnp.where(SOURCE_OF_ROW == 0, row_keys(0), row_keys(1))
    replaced = call(built(), prompts=prompts, prompt_valid=valid, keys=new_keys)
    kept = SOURCE_OF_ROW == 0
    np.testing.assert_array_equal(replaced.tokens[kept], reference.tokens[kept])
    np.testing.assert_array_equal(replaced.policy_logprobs[kept], reference.policy_logprobs[kept])
    assert (replaced.tokens[~kept] != reference.tokens[~kept]).any(axis=1).all()


def test_rows_of_one_source_differ_by_their_keys_alone():
    samples = call(built())
    assert (samples.tokens[:4] != samples.tokens[4:]).any(axis=1).all()
    twins = call(built(), keys=row_keys()[np.array([0, 1, 2, 3, 0, 1, 2, 3])])
    np.testing.assert_array_equal(twins.tokens[:4], twins.tokens[4:])


@pytest.fixture
def in_parts(monkeypatch):
    """(eos_ids) -> a sampler whose first part has three tokens, and the shapes (cache, tokens) that it advances."""
    monkeypatch.setattr(padding, "_SHORTEST", 2)
    monkeypatch.setattr(sampler, "_LEAST_ROWS", 1)

    def build(eos_ids=()):
        sample = sampler.build_sampler(GROUPED, max_new_tokens=NEW_TOKENS, eos_ids=eos_ids, pad_id=PAD)
        shapes, advance = [], sample.advance

        def seen(policy, prompts, rows, carry, span):
            shapes.append((carry[0].caches[0][0].shape, carry[1].tokens.shape))
            return advance(policy, prompts, rows, carry, span)

        sample.advance = seen
        return sample, shapes

    return build


def test_parts_change_no_token_and_each_reads_only_the_slots_so_far(in_parts):
    sample, shapes = in_parts()
    parts, whole = call(sample), call(built())
    np.testing.assert_array_equal(parts.tokens, whole.tokens)
    np.testing.assert_allclose(parts.policy_logprobs, whole.policy_logprobs, atol=1e-5)
    assert padding.completion_lengths(NEW_TOKENS) == [3, 6, 10] and parts.steps == whole.steps == NEW_TOKENS
    assert [cache[2] for cache, _ in shapes] == [3, 6, 10]
    assert [tokens for _, tokens in shapes] == [(8, 3), (8, 3), (8, 4)]


def test_rows_that_have_ended_are_dropped_and_the_others_go_on_as_they_would_have(in_parts):
    free = call(built()).tokens
    early = {int(token) for row in (0, 2, 3, 5, 6) for token in free[row, :2]}
    eos_ids = tuple(sorted(early - {int(token) for token in free[7]}))
    sample, shapes = in_parts(eos_ids)
    parts, whole = call(sample), call(built(eos_ids=eos_ids))
    for name in ("tokens", "mask", "ended", "steps"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    np.testing.assert_allclose(parts.policy_logprobs, whole.policy_logprobs, atol=1e-5)
    rows = [cache[0] for cache, _ in shapes]
    live = parts.mask[:, [0, 3, 6]].sum(0).tolist()
    assert rows == [sampler.batch_size(count, 8, divisor=1) for count in live] and rows[-1] < rows[0]
    assert parts.mask[7].all() and not parts.mask[:, 2].all()


@pytest.mark.parametrize(
    ("live", "rows", "divisor", "expected"),
    [(256, 256, 1, 256), (129, 256, 1, 256), (128, 256, 1, 128), (9, 256, 1, 16), (3, 256, 1, 8), (1, 6, 1, 6)]
    + [(3, 256, 8, 8), (3, 48, 16, 48), (20, 48, 8, 24), (1, 24, 1, 12)],
)
def test_a_batch_is_halved_while_the_live_rows_fit_and_all_devices_share_it(live, rows, divisor, expected):
    assert sampler.batch_size(live, rows, divisor=divisor) == expected


@pytest.mark.parametrize(
    ("sources", "count", "inactive", "seats", "expected"),
    [
        ([0, 1, 0, 1], 2, [], 2, [0, 2, 1, 3]),
        ([0, 0, 0, 1], 2, [], 4, [0, 1, 2, 4]),  # three need four seats
        ([0, 0, 0, 1], 2, [1], 2, [0, 4, 1, 2]),  # who draws nothing takes none
        ([0, 2, 1, 3], 5, [], 1, [0, 2, 1, 3]),
    ],
)
def test_every_active_row_has_a_seat_of_its_own_at_its_source(sources, count, inactive, seats, expected):
    active = ~np.isin(np.arange(4), inactive)
    seat, most = sampler.take_seats(np.array(sources, np.int32), active, count)
    assert most == seats and seat.tolist() == expected and seat.dtype == np.int32


def test_rows_may_be_spread_unevenly_over_sources():
    """Six rows of one prompt and two of another, in any order, draw what each draws elsewhere."""
    uneven = np.array([0, 3, 0, 0, 0, 3, 0, 0], np.int32)
    found = call(built(), source_of_row=uneven)
    for source in (0, 3):
        alone = call(built(), source_of_row=np.full(8, source, np.int32))
        rows = uneven == source
        np.testing.assert_array_equal(found.tokens[rows], alone.tokens[rows])
        np.testing.assert_allclose(found.policy_logprobs[rows], alone.policy_logprobs[rows], atol=1e-5)


@pytest.fixture(scope="module")
def lowered() -> tuple[jax.stages.Lowered, jax.stages.Lowered]:
    """Prefill and decode loop."""
    base, adapter = fixed(SHALLOW)
    prompts, valid = padding.pad_prompts(PROMPTS, 12, PAD)
    active = np.ones(8, bool)
    seat, seats = sampler.take_seats(SOURCE_OF_ROW, active, len(PROMPTS))
    rows = {"source_policy": POLICIES, "source_of_row": SOURCE_OF_ROW, "active": active, "keys": row_keys()}
    rows |= {"seat": seat, "seats": seats, "slots": NEW_TOKENS}
    sample = built(SHALLOW)
    prefill = sample.prefill.lower(base, adapter, prompts, valid, POLICIES)
    policy, shared, fixed_rows, state = sample.begin(base, adapter, prompts, valid, **rows)
    part = decode.empty_part(sample.settings, 8, NEW_TOKENS)
    span = decode.Span(jnp.int32(0), jnp.int32(NEW_TOKENS), jnp.float32(1))
    return prefill, sample.advance.lower(policy, shared, fixed_rows, (state, part), span)


def test_a_group_shares_its_prompts_prefill(lowered):
    text = lowered[0].as_text()
    assert "tensor<4x12x16xf32>" in text  # [Q, B, D]
    assert "tensor<8x12x16xf32>" not in text  # [N, B, D]


def test_caches_are_written_in_place_and_never_copied_or_transposed(lowered):
    cache = (8, 2, NEW_TOKENS, 6)  # [N, K, T, E]
    compiled = lowered[1].compile()
    assert compiled.memory_analysis().alias_size_in_bytes >= 2 * 4 * math.prod(cache)  # given back in place
    text = compiled.as_text()
    computations = text.split("\n\n")
    written = f"= f32[{','.join(map(str, cache))}]"
    loop = next(part for part in computations if written in part and "dynamic-update-slice_fusion" in part)
    results = re.findall(r"^ +(?:ROOT )?%(\S+) = f32\[([\d,]+)\]", loop, re.MULTILINE)
    sized = [name for name, shape in results if math.prod(map(int, shape.split(","))) == math.prod(cache)]
    made = [name for name in sized if not name.startswith("get-tuple-element")]
    assert len(made) == 2 and all("dynamic-update-slice" in name for name in made), made  # keys and values
    updated = re.findall(rf"{re.escape(written)}\S* dynamic-update-slice\(%(\w+)", text)
    assert len(updated) == 2 and all(name.startswith("param") for name in updated), updated


@pytest.mark.parametrize(("setting", "value"), [("top_p", 0.0), ("top_p", 1.5), ("top_k", -1), ("max_new_tokens", 0)])
def test_settings_out_of_range_are_named(setting, value):
    with pytest.raises(ValueError, match=rf"rollout\.{setting} must .* got {value}"):
        built(**{setting: value})


ON_A_MESH = """
import jax, numpy as np
from tests.model import sampling
from vgrout_jax.config import MeshConfig
from vgrout_jax.model import lora2r, sharding
from vgrout_jax.sampling import sampler

mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
base, adapter = sampling.fixed()
placed = jax.device_put(base, sharding.parameter_shardings(mesh, sampling.GROUPED))
assert len(placed["layers"]["q_proj"].sharding.device_set) == 8
parts = [jax.device_put(part, sharding.factor_shardings(mesh, part)) for part in (adapter.init, adapter.deltas)]
settings = dict(max_new_tokens=sampling.NEW_TOKENS, eos_ids=(), pad_id=0, top_k=20, top_p=0.9)
sample = sampler.build_sampler(sampling.GROUPED, mesh=mesh, **settings)
for temperature in (0.0, 0.7):
    found = sampling.call(sample, base=placed, adapter=lora2r.Adapter(*parts), temperature=temperature)
    expected = sampling.call(sampling.built(top_k=20, top_p=0.9), temperature=temperature)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.policy_logprobs, expected.policy_logprobs, atol=1e-4)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-4)
print("equal")
"""


@pytest.mark.slow
def test_sampling_on_eight_devices_equals_one():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", ON_A_MESH],
        cwd=Path(__file__).parents[2],
        env=os.environ | flags,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "equal" in run.stdout
