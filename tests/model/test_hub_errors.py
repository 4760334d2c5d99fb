"""Every defect of a published checkpoint is one clear line that names the field, tensor or file."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.model import tiny
from vgrout_jax.weights import hub


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return tiny.save_reference(tmp_path_factory.mktemp("published"), tiny.random_reference())


@pytest.fixture
def folder(published, tmp_path) -> Path:
    """A checkpoint of one's own to damage."""
    return Path(shutil.copytree(published, tmp_path / "model"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"architectures": ["Qwen3MoeForCausalLM"]}, r"architectures.*Qwen3MoeForCausalLM.*mixture of experts"),
        ({"architectures": ["LlamaForCausalLM"]}, r"architectures.*LlamaForCausalLM"),
        ({"architectures": ...}, r"no field architectures"),
        ({"use_sliding_window": True}, r"use_sliding_window must be false, got true"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, r"layer_types.*sliding_attention"),
        ({"attention_bias": True}, r"attention_bias must be false"),
        ({"hidden_act": "gelu"}, r'hidden_act must be "silu", got "gelu"'),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, r"rope_parameters.rope_type.*yarn"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, r"rope_scaling.type.*linear"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, r"rope_scaling.rope_type.*dynamic"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, r"partial_rotary_factor"),
        ({"rope_parameters": ...}, r"no field rope_theta"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"quantization_config"),
        ({"hidden_size": ...}, r"no field hidden_size"),
        ({"num_key_value_heads": ...}, r"no field num_key_value_heads"),
        ({"tie_word_embeddings": ...}, r"no field tie_word_embeddings"),
        ({"tie_word_embeddings": "yes"}, r"tie_word_embeddings must be true or false, got 'yes'"),
        ({"vocab_size": "96"}, r"vocab_size must be a positive whole number, got '96'"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers must be a positive whole number, got 0"),
        ({"rms_norm_eps": float("nan")}, r"rms_norm_eps must be a positive number, got nan"),
        ({"num_key_value_heads": 3}, r"num_attention_heads must be a multiple.*4 and 3"),
        ({"head_dim": 11}, r"head_dim must be even, got 11"),
    ],
)
def test_unsupported_config_names_the_field(folder, changes, message):
    hub.load_config(folder)
    tiny.change_config(folder, **changes)
    with pytest.raises(ValueError, match=message) as error:
        hub.load_config(folder)
    assert "\n" not in str(error.value) and str(error.value).startswith("model.path")


def test_missing_or_broken_config_json(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        hub.load_config(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config.json is missing"):
        hub.load_config(folder)


QUERY = "model__layers__1__self_attn__q_proj__weight"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({QUERY: None}, r"tensor model.layers.1.self_attn.q_proj.weight is missing"),
        (
            {"model__layers__2__mlp__up_proj__weight": torch.ones(56, 32)},
            r"tensor model.layers.2.mlp.up_proj.weight has no place",
        ),
        ({QUERY: torch.ones(32, 48)}, r"q_proj.weight must have shape \(48, 32\), got \(32, 48\)"),
        ({"model__norm__weight": torch.ones(31)}, r"model.norm.weight must have shape \(32,\)"),
        ({"model__norm__weight": torch.tensor(1.0)}, r"model.norm.weight must have shape \(32,\)"),
        ({QUERY: torch.ones(48, 32, dtype=torch.int8)}, r"q_proj.weight must be of type .*I8"),
        ({"lm_head__weight": torch.ones(96, 32)}, r"lm_head.weight differs from model.embed_tokens.weight"),
        ({"lm_head__weight": torch.ones(95, 32)}, r"lm_head.weight must have shape \(96, 32\)"),
    ],
)
def test_wrong_tensors_are_named(folder, changes, message):
    config = hub.load_config(folder)
    hub.load_parameters(folder, config)
    tiny.change_tensors(folder, **changes)
    with pytest.raises(ValueError, match=message) as error:
        hub.load_parameters(folder, config)
    assert "\n" not in str(error.value) and str(error.value).startswith("model.path")


def test_untied_checkpoint_without_head(folder):
    tiny.change_config(folder, tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"tensor lm_head.weight is missing"):
        hub.load_parameters(folder, hub.load_config(folder))


def test_truncated_file_names_file_and_tensor(folder):
    config, file = hub.load_config(folder), folder / "model.safetensors"
    content = file.read_bytes()
    header_size = int.from_bytes(content[:8], "little")
    ends = {
        name: 8 + header_size + entry["data_offsets"][1]
        for name, entry in json.loads(content[8 : 8 + header_size]).items()
        if name != "__metadata__"
    }
    for name in ("model.layers.0.mlp.up_proj.weight", "model.norm.weight"):
        file.write_bytes(content[: ends[name] - 1])
        with pytest.raises(ValueError, match=rf"model\.safetensors is truncated or corrupt at tensor {name} "):
            hub.load_parameters(folder, config)
    for size in (0, 5, 100):
        file.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"model\.safetensors is truncated or corrupt at its header"):
            hub.load_parameters(folder, config)
    file.write_bytes(content[:8] + b"x" * header_size + content[8 + header_size :])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or corrupt at its header"):
        hub.load_parameters(folder, config)


def test_missing_shard_is_named(tmp_path):
    folder = tiny.save_reference(tmp_path, tiny.random_reference(), max_shard_size="10KB")
    config, lost = hub.load_config(folder), sorted(folder.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ValueError, match=rf"{lost.name} is missing"):
        hub.load_parameters(folder, config)


def test_tensor_stored_twice_is_named(tmp_path):
    folder = tiny.save_reference(tmp_path, tiny.random_reference(), max_shard_size="10KB")
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    name, value = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: value}, second)
    with pytest.raises(ValueError, match=rf"tensor {name} is in .*{first.name} and in .*{second.name}"):
        hub.load_parameters(folder, hub.load_config(folder))


def test_folder_without_safetensors(folder):
    config = hub.load_config(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"neither model.safetensors nor .*index.json"):
        hub.load_parameters(folder, config)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"index.json has no field weight_map"):
        hub.load_parameters(folder, config)
