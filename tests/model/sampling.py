"""A tiny model with sizeable random weights, four prompts and a way to sample from it, for the sampler's tests."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from vgrout_jax.model import lora2r, padding, parameters, qwen3
from vgrout_jax.sampling import cache_attention, fused_linear, heads, sampler
from vgrout_jax.sampling.kernels import flash_decoding

GROUPED = qwen3.Qwen3Config(
    vocab_size=68,
    hidden_size=16,
    intermediate_size=40,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
)
UNTIED = dataclasses.replace(GROUPED, num_kv_heads=4, head_dim=4, tie_embeddings=False, rope_theta=10_000.0)
SHALLOW = dataclasses.replace(GROUPED, num_layers=1)  # compiles faster, where depth adds nothing to a test
PROMPTS = ([5, 9, 2, 44, 17], [3], [8, 8, 1, 60, 61, 62, 7, 20, 31], [12, 40])
SOURCE_OF_ROW = np.array([0, 1, 2, 3, 0, 1, 2, 3], np.int32)
POLICIES = np.array([True, False, False, True])
NEW_TOKENS = 10
PAD = 0


def weights(config: qwen3.Qwen3Config, seed: int = 0) -> dict:
    """Parameters large enough that the model's opinions differ from token to token."""
    generator = np.random.default_rng(seed)

    def fill(row: parameters.Parameter) -> jax.Array:
        is_norm, scale = "norm" in row.published, 0.6 if "layers" in row.published else 0.3
        values = generator.normal(size=row.shape) * scale + (1.0 if is_norm else 0.0)
        return jnp.asarray(values, config.dtype)

    return jax.tree.map(fill, parameters.parameter_table(config), is_leaf=parameters.is_parameter)


def trained_adapter(config: qwen3.Qwen3Config) -> lora2r.Adapter:
    init = lora2r.init_factors(config.module_shapes(), config.num_layers, 2, seed=1)
    generator = np.random.default_rng(7)
    moved = jax.tree.map(lambda leaf: (0.2 * generator.normal(size=leaf.shape)).astype(np.float32), init)
    return jax.tree.map(jnp.asarray, lora2r.Adapter(init=init, deltas=moved))


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
    prompts, valid = padding.pad_prompts(PROMPTS, 12, PAD)
    arguments = {
        "base": base,
        "adapter": adapter,
        "prompts": prompts,
        "prompt_valid": valid,
        "source_policy": POLICIES,
        "source_of_row": SOURCE_OF_ROW,
        "active": np.ones(len(SOURCE_OF_ROW), bool),
        "keys": row_keys(),
        "temperature": 1.0,
    } | changes
    return sample(**arguments)


def interpret_kernels(monkeypatch) -> None:
    """The decode loop's kernels run on any device, whatever the sizes, and the loop takes them."""
    kernels = ((flash_decoding, "attend_filled"), (heads, "take_in_by_kernel"), (fused_linear, "add_adapters"))
    for module, name in kernels:
        monkeypatch.setattr(module, name, functools.partial(getattr(module, name), interpret=True))
    monkeypatch.setattr(cache_attention, "kernel_serves", lambda *_: True)
    monkeypatch.setattr(fused_linear, "serves", lambda *_: True)


def whole_sequences(samples: sampler.Samples) -> tuple[jax.Array, jax.Array]:
    prompts, valid = padding.pad_prompts(PROMPTS, 12, PAD)
    tokens = np.concatenate([prompts[SOURCE_OF_ROW], samples.tokens], axis=1)
    return jnp.asarray(tokens), jnp.asarray(np.concatenate([valid[SOURCE_OF_ROW], samples.mask], axis=1))


def published_model(config: qwen3.Qwen3Config):
    """A transformers model with our random weights, filled in by published names."""
    import torch
    import transformers

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

    def publish(row: parameters.Parameter, leaf: jax.Array) -> None:
        stacked = "{layer}" in row.published
        for layer, values in enumerate(np.asarray(leaf) if stacked else [np.asarray(leaf)]):
            name = row.published.format(layer=layer)
            state[name] = torch.tensor(np.ascontiguousarray(values.T if row.transposed else values))

    jax.tree.map(publish, parameters.parameter_table(config), fixed(config)[0], is_leaf=parameters.is_parameter)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if config.tie_embeddings else set())
    return model
