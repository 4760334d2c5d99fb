"""Tiny random Qwen3 models of transformers, saved as published models are, for tests that compare with PyTorch."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

FIELDS: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "tie_word_embeddings": True,
}


def random_reference(seed: int = 0, **changes: Any) -> Qwen3ForCausalLM:
    """A float32 model whose norms are not ones, so that a norm left out or misplaced shows in the logits."""
    config = Qwen3Config(**{**FIELDS, **changes}, attn_implementation="eager")
    model = Qwen3ForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if noise.ndim == 1 else noise * noise.shape[-1] ** -0.5)
    return model


def save_reference(folder: Path, model: Qwen3ForCausalLM, **options: Any) -> Path:
    """Writes config.json and safetensors the way models are published."""
    model.save_pretrained(folder, **options)
    return folder


def change_config(folder: Path, **changes) -> None:
    """Sets fields of config.json; a value of `...` removes one."""
    file = folder / "config.json"
    fields = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in fields.items() if value is not ...}))


def change_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replaces or removes tensors; `__` in a name stands for a dot."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, value in changes.items():
        tensors[name.replace("__", ".")] = value
    save_file({name: value for name, value in tensors.items() if value is not None}, file)
