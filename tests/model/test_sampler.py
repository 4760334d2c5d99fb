"""The sampler against transformers, the full forward pass and NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgrout_jax.model import lora2r, policy, qwen3, sampler

GROUPED = qwen3.Qwen3Config(
    vocab_size=67,
    hidden_size=16,
    intermediate_size=40,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
)
UNTIED = dataclasses.replace(GROUPED, num_kv_heads=4, head_dim=4, tie_embeddings=False, rope_theta=10_000.0)
PROMPTS = ([5, 9, 2, 44, 17], [3], [8, 8, 1, 60, 61, 62, 7, 20, 31], [12, 40])
SOURCE_OF_ROW = np.array([0, 1, 2, 3, 0, 1, 2, 3], np.int32)
POLICIES = np.array([True, False, False, True])
NEW_TOKENS = 10
PAD = 0


def weights(config: qwen3.Qwen3Config, seed: int = 0) -> dict:
    """Parameters large enough that the model's opinions differ from token to token."""
    generator = np.random.default_rng(seed)

    def fill(row: qwen3.Parameter) -> jax.Array:
        is_norm = "norm" in row.published
        values = generator.normal(size=row.shape) * 0.3 + (1.0 if is_norm else 0.0)
        return jnp.asarray(values, config.dtype)

    return jax.tree.map(fill, qwen3.parameter_table(config), is_leaf=qwen3.is_parameter)


def trained_adapter(config: qwen3.Qwen3Config) -> lora2r.Adapter:
    init = lora2r.init_factors(config.module_shapes(), config.num_layers, 2, seed=1)
    generator = np.random.default_rng(7)
    moved = jax.tree.map(lambda leaf: (0.2 * generator.normal(size=leaf.shape)).astype(np.float32), init)
    return lora2r.Adapter(init=init, deltas=moved)


@functools.cache
def built(config: qwen3.Qwen3Config = GROUPED, **settings):
    defaults = {"max_new_tokens": NEW_TOKENS, "eos_ids": (), "pad_id": PAD, "top_k": 0, "top_p": 1.0}
    return sampler.build_sampler(config, **(defaults | settings))


@functools.cache
def fixed(config: qwen3.Qwen3Config = GROUPED) -> tuple[dict, lora2r.Adapter]:
    return weights(config), trained_adapter(config)


def row_keys(seed: int = 0, rows: int = len(SOURCE_OF_ROW)) -> jax.Array:
    return jax.random.split(jax.random.key(seed), rows)


def call(sample, config: qwen3.Qwen3Config = GROUPED, **changes) -> sampler.Samples:
    """Eight rollouts of four (prompt, policy) sources; `changes` replaces any argument."""
    base, adapter = fixed(config)
    prompts, valid = sampler.pad_prompts(PROMPTS, 12, PAD)
    arguments = {
        "adapter": adapter,
        "prompts": prompts,
        "prompt_valid": valid,
        "source_policy": POLICIES,
        "source_of_row": SOURCE_OF_ROW,
        "active": np.ones(len(SOURCE_OF_ROW), bool),
        "keys": row_keys(),
        "temperature": 1.0,
    } | changes
    arguments = {
        name: value if name in ("adapter", "keys") else jnp.asarray(value) for name, value in arguments.items()
    }
    return jax.device_get(sample(base, **arguments))


def whole_sequences(samples: sampler.Samples) -> tuple[jax.Array, jax.Array]:
    prompts, valid = sampler.pad_prompts(PROMPTS, 12, PAD)
    tokens = np.concatenate([prompts[SOURCE_OF_ROW], samples.tokens], axis=1)
    return jnp.asarray(tokens), jnp.asarray(np.concatenate([valid[SOURCE_OF_ROW], samples.mask], axis=1))


def recomputed(samples: sampler.Samples, config: qwen3.Qwen3Config, adapter) -> np.ndarray:
    tokens, valid = whole_sequences(samples)
    route = lora2r.Route(jnp.asarray(POLICIES[SOURCE_OF_ROW]))
    return np.asarray(
        policy.completion_logprobs(
            config,
            fixed(config)[0],
            tokens,
            valid,
            completion_length=NEW_TOKENS,
            chunk=16,
            adapter=adapter,
            route=route,
        )
    )


def full_logits(samples: sampler.Samples) -> np.ndarray:
    """Logits [N, T, V] of the tokens' predecessors from one whole forward pass, in float64."""
    base, adapter = fixed()
    tokens, valid = whole_sequences(samples)
    layer = qwen3.AdapterLayer(lora2r.fuse(adapter, jnp.float32), None)
    route = lora2r.Route(jnp.asarray(POLICIES[SOURCE_OF_ROW]))
    attention = qwen3.causal_attention(valid, GROUPED)
    hidden, _ = qwen3.Qwen3(GROUPED).apply({"params": base}, tokens, attention, layer, route)
    return np.asarray(qwen3.unembed(base, hidden[:, -NEW_TOKENS - 1 : -1]), np.float64)


def published_model(config: qwen3.Qwen3Config):
    """A transformers model with our random weights, filled in by published names."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rope_theta=config.rope_theta,
            rms_norm_eps=config.norm_epsilon,
            tie_word_embeddings=config.tie_embeddings,
            attn_implementation="eager",
        )
    ).eval()
    state = {}

    def publish(row: qwen3.Parameter, leaf: jax.Array) -> None:
        stacked = "{layer}" in row.published
        for layer, values in enumerate(np.asarray(leaf) if stacked else [np.asarray(leaf)]):
            name = row.published.format(layer=layer)
            state[name] = torch.tensor(np.ascontiguousarray(values.T if row.transposed else values))

    jax.tree.map(publish, qwen3.parameter_table(config), fixed(config)[0], is_leaf=qwen3.is_parameter)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if config.tie_embeddings else set())
    return model


@pytest.mark.parametrize("config", [GROUPED, UNTIED], ids=["grouped_tied", "untied"])
def test_greedy_equals_transformers_token_for_token(config):
    torch = pytest.importorskip("torch")
    model = published_model(config)
    prompts, valid = sampler.pad_prompts(PROMPTS, 12, PAD)
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


def test_greedy_stops_at_the_first_eos_as_transformers_does():
    torch = pytest.importorskip("torch")
    prompts, valid = sampler.pad_prompts(PROMPTS, 12, PAD)
    free = call(built(), adapter=None, temperature=0.0).tokens
    eos_ids = (int(free[0, 3]), int(free[2, 6]))
    with torch.no_grad():
        generated = published_model(GROUPED).generate(
            torch.tensor(prompts, dtype=torch.long),
            attention_mask=torch.tensor(valid, dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=list(eos_ids),
            pad_token_id=PAD,
        )
    expected = generated[:, 12:].numpy()[SOURCE_OF_ROW]
    samples = call(built(eos_ids=eos_ids), adapter=None, temperature=0.0)
    np.testing.assert_array_equal(samples.tokens[:, : expected.shape[1]], expected)
    is_eos = np.isin(free, eos_ids)
    np.testing.assert_array_equal(samples.mask, np.cumsum(is_eos, axis=1) - is_eos == 0)


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
    config = dataclasses.replace(GROUPED, dtype=jnp.bfloat16)
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
    samples = call(built(top_k=9, top_p=0.8), temperature=0.7)
    logits = full_logits(samples)
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


def test_early_exit_when_every_row_has_ended_and_eos_may_be_pad():
    free = call(built(), temperature=0.0).tokens
    eos_ids = tuple(int(token) for token in np.unique(free[:, 2]))
    pad_id = eos_ids[0]
    samples = call(built(eos_ids=eos_ids, pad_id=pad_id), temperature=0.0)
    lengths = samples.mask.sum(axis=1)
    assert lengths.max() <= 3
    assert samples.steps == lengths.max() - 1  # the first token comes from the prefill
    last = samples.tokens[np.arange(len(lengths)), lengths - 1]
    assert np.isin(last, eos_ids).all()
    np.testing.assert_array_equal(samples.tokens[~samples.mask], pad_id)
    np.testing.assert_array_equal(samples.logprobs[~samples.mask], 0.0)
    np.testing.assert_array_equal(samples.policy_logprobs[~samples.mask], 0.0)
    kept = np.where(samples.mask, samples.tokens, -1)
    np.testing.assert_array_equal(kept, np.where(samples.mask, free, -1))
    assert call(built(), temperature=0.0).steps == NEW_TOKENS - 1


def test_inactive_rows_are_born_finished_and_change_no_other():
    active = np.array([True, False, True, True, False, True, True, True])
    samples, everyone = call(built(), active=active), call(built())
    assert not samples.mask[~active].any()
    np.testing.assert_array_equal(samples.tokens[~active], PAD)
    np.testing.assert_array_equal(samples.logprobs[~active], 0.0)
    np.testing.assert_array_equal(samples.tokens[active], everyone.tokens[active])
    assert call(built(), active=np.zeros(8, bool)).steps == 0


def test_one_compilation_serves_every_temperature_prompt_and_key():
    sample = built(max_new_tokens=4)
    for seed, temperature in enumerate([1.0, 0.7, 0.0]):
        prompts = np.full((4, 12), 3 + seed, np.int32)
        call(sample, temperature=temperature, prompts=prompts, keys=row_keys(seed))
    assert sample._cache_size() == 1


def test_a_row_depends_neither_on_its_neighbours_nor_on_its_place():
    reference = call(built())
    order = np.array([6, 2, 7, 0, 5, 1, 4, 3])
    moved = call(built(), source_of_row=SOURCE_OF_ROW[order], keys=row_keys()[order])
    for name in ("tokens", "logprobs", "policy_logprobs"):
        np.testing.assert_array_equal(getattr(moved, name), getattr(reference, name)[order])

    sources = np.array([2, 0, 3, 1])  # the sources in another order, too
    prompts, valid = sampler.pad_prompts([PROMPTS[i] for i in sources], 12, PAD)
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
    prompts, valid = sampler.pad_prompts(others, 12, PAD)
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


def test_padding_to_a_larger_bucket_changes_nothing():
    prompts, valid = sampler.pad_prompts(PROMPTS, 17, PAD)
    wider = call(built(), prompts=prompts, prompt_valid=valid)
    reference = call(built())
    np.testing.assert_array_equal(wider.tokens, reference.tokens)
    np.testing.assert_allclose(wider.policy_logprobs, reference.policy_logprobs, atol=1e-4)


def lowered(**settings):
    base, adapter = fixed()
    prompts, valid = sampler.pad_prompts(PROMPTS, 12, PAD)
    return built(**settings).lower(
        base,
        adapter,
        jnp.asarray(prompts),
        jnp.asarray(valid),
        source_policy=jnp.asarray(POLICIES),
        source_of_row=jnp.asarray(SOURCE_OF_ROW),
        active=jnp.ones(8, bool),
        keys=row_keys(),
        temperature=jnp.float32(1.0),
    )


def test_a_group_shares_its_prompts_prefill():
    text = lowered().as_text()
    assert "tensor<4x12x16xf32>" in text  # [Q, B, D]
    assert "tensor<8x12x16xf32>" not in text  # [N, B, D]


def test_caches_are_written_in_place():
    text = lowered().compile().as_text()
    loop = next(part for part in text.split("\n\n") if part.count("dynamic-update-slice") >= 4)
    slots = 12 + NEW_TOKENS
    assert f"f32[8,{slots},2,6]" in loop
    assert not [line for line in loop.splitlines() if " copy(" in line and f"[8,{slots},2,6]" in line]


@pytest.mark.parametrize(("setting", "value"), [("top_p", 0.0), ("top_p", 1.5), ("top_k", -1), ("max_new_tokens", 0)])
def test_settings_out_of_range_are_named(setting, value):
    with pytest.raises(ValueError, match=rf"rollout\.{setting} must .* got {value}"):
        built(**{setting: value})


def test_prompts_go_to_the_smallest_bucket_that_holds_them():
    assert [sampler.prompt_bucket(length, (64, 16, 32)) for length in (1, 16, 17, 64)] == [16, 16, 32, 64]
    with pytest.raises(ValueError, match=r"data\.prompt_buckets.*65 tokens.*\(16, 64\).*max_prompt_tokens"):
        sampler.prompt_bucket(65, (16, 64))


def test_prompts_are_padded_on_the_left():
    tokens, valid = sampler.pad_prompts([[4, 5], [6, 7, 8]], 4, 9)
    np.testing.assert_array_equal(tokens, [[9, 9, 4, 5], [9, 6, 7, 8]])
    np.testing.assert_array_equal(valid, [[False, False, True, True], [False, True, True, True]])
    assert tokens.dtype == np.int32
    for prompt in ([], [1, 2, 3, 4, 5]):
        with pytest.raises(ValueError, match=rf"data\.prompt_buckets: prompt 1 .* got {len(prompt)};"):
            sampler.pad_prompts([[1], prompt], 4, 9)
