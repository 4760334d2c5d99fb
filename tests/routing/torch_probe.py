"""The c-probe by PyTorch autograd in float64, on transformers' Qwen3 with the adapter written out anew.

One sequence at a time and without padding. The adapter is the textbook form B (c * (A x)) - B0 A0 x.
"""

import numpy as np
import torch
import transformers

from vgrout_jax.model import lora2r, parameters


class _Norm(torch.nn.Module):
    """RMSNorm that stays in float64; transformers' own goes through float32."""

    def __init__(self, weight, epsilon):
        super().__init__()
        self.weight, self.epsilon = weight, epsilon

    def forward(self, x):
        return self.weight * x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon)


class _Adapted(torch.nn.Module):
    """A linear map with its adapter; `scale` is c, [2r] or [T, 2r] for a c of its own at every position."""

    def __init__(self, linear, factors, blocks):
        super().__init__()
        self.linear, self.blocks, self.scale = linear, blocks, None
        self.a0, self.b0, delta_a, delta_b = (torch.tensor(np.asarray(leaf, np.float64)) for leaf in factors)
        self.a, self.b = (self.a0 + delta_a).requires_grad_(), (self.b0 + delta_b).requires_grad_()

    def forward(self, x):
        y, half = self.linear(x), self.a.shape[0] // 2
        for block in (slice(0, half), slice(half, None))[: self.blocks]:
            trained = (self.scale[..., block] * (x @ self.a[block].T)) @ self.b[:, block].T
            y = y + trained - (x @ self.a0[block].T) @ self.b0[:, block].T
        return y


class Oracle:
    """The model with both blocks on (`blocks=2`) or ablated (1). `maps`: the adapted maps, layer by layer."""

    def __init__(self, config, frozen, deltas, *, blocks):
        self.model = _reference(config, frozen.base)
        self.maps = []
        for index, layer in enumerate(self.model.model.layers):
            for name in lora2r.MODULES:
                owner = layer.self_attn if hasattr(layer.self_attn, name) else layer.mlp
                leaves = (frozen.init.a[name], frozen.init.b[name], deltas.a[name], deltas.b[name])
                adapted = _Adapted(getattr(owner, name), [leaf[index] for leaf in leaves], blocks)
                setattr(owner, name, adapted)
                self.maps.append(adapted)
        self.set_scale(np.ones((len(self.maps), self.maps[0].a.shape[0])))

    def set_scale(self, scale):
        """c of every map, [M, 2r], or [M, T, 2r]."""
        for adapted, values in zip(self.maps, scale, strict=True):
            adapted.scale = torch.tensor(np.asarray(values, np.float64), requires_grad=True)

    def logprobs(self, prompt, completion):
        """log pi of the completion's tokens."""
        ids = torch.tensor([[*prompt, *completion]])
        logits = self.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits, -1).gather(-1, ids[0, len(prompt) :, None])[:, 0]

    def gradient(self, loss):
        """dL/dc of every map, in the shape of c."""
        return np.stack([part.numpy() for part in torch.autograd.grad(loss, [m.scale for m in self.maps])])


def _reference(config, base):
    reference = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tie_embeddings,
            attn_implementation="sdpa",  # the eager kind rounds its softmax to float32
        )
    )
    reference = reference.eval().double().requires_grad_(False)
    missing, unexpected = reference.load_state_dict(_published(config, base), strict=False)
    assert not unexpected and missing in ([], ["lm_head.weight"])
    for module in list(reference.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "Qwen3RMSNorm":
                setattr(module, name, _Norm(child.weight, config.norm_epsilon))
    return reference


def _published(config, base):
    """Our parameters under the names and in the layout of a published checkpoint."""
    table, tensors = parameters.parameter_table(config), {}
    rows = {**table, **table["layers"]}
    leaves = {**base, **base["layers"]}
    for name, row in rows.items():
        if name != "layers":
            leaf = np.asarray(leaves[name], np.float64)
            stacked = "{layer}" in row.published
            for layer, value in enumerate(leaf if stacked else leaf[None]):
                value = value.T if row.transposed else value
                tensors[row.published.format(layer=layer)] = torch.tensor(value)
    return tensors
