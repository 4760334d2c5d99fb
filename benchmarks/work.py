"""The least work of a step: operations and bytes that no implementation can do without, as plain formulas.

Only products with weights count towards the floors: 2 operations a weight and token for a forward pass and as many
for a backward pass to the activations; the frozen weights need no gradient of their own. A group's rollouts share
their prompt, so each pass needs it once a group, but for the probe's backward pass, which every rollout needs for
itself. The head's weights count for completion tokens alone. Attention, and what a rematerialised layer does twice,
come on top; the adapter counts where `adapter=True` asks for it, which is how model FLOP utilisation is defined here.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import roofline
import shapes

from vgrout_jax.model import qwen3

# Passes over every token besides the KL reference's forward: (forward and backward with the adapter's gradient,
# forward and backward of the probe, share of the rows whose sampling policy has to be run once more).
PASSES = {"none": (1, 0, 0.0), "absorb": (1, 0, 0.5)}
ROUTED = (1, 1, 0.5)


@dataclasses.dataclass(frozen=True)
class Work:
    """Operations and bytes.

    Attributes:
        flops: operations of the matrix products.
        bytes: moved between memory and the units that compute.
    """

    flops: float
    bytes: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def figures(self, roof: roofline.Roof, seconds: float | None = None) -> dict[str, float]:
        """Both floors in seconds, and how many times each of them `seconds` is."""
        floors = {"flop_floor_s": self.flops / roof.flops, "byte_floor_s": self.bytes / roof.bandwidth}
        if seconds is not None:
            floors |= {
                "over_flop_floor": seconds / floors["flop_floor_s"],
                "over_byte_floor": seconds / floors["byte_floor_s"],
            }
        return floors


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Tokens of a batch.

    Attributes:
        read: of all rollouts, each with its prompt.
        shared: with a group's prompt once.
        scored: of completions, which alone the head has to read.
    """

    read: int
    shared: int
    scored: int


def every_position(shape: shapes.Shape) -> Tokens:
    """All positions of the padded batch."""
    new = shape.rows * shape.new_tokens
    return Tokens(shape.rows * shape.prompt_tokens + new, shape.prompts * shape.prompt_tokens + new, new)


def valid_tokens(shape: shapes.Shape, valid: np.ndarray, completion_mask: np.ndarray) -> Tokens:
    """Those that are no padding, of [N, S] and [N, T] masks."""
    new = int(np.sum(completion_mask))
    return Tokens(int(np.sum(valid)), int(np.sum(valid[:: shape.group, : -shape.new_tokens])) + new, new)


def layer_weights(model: qwen3.Qwen3Config) -> int:
    """Weights of all layers' maps."""
    return model.num_layers * sum(math.prod(pair) for pair in model.module_shapes().values())


def head_weights(model: qwen3.Qwen3Config) -> int:
    """Weights of the head, which may be the embedding."""
    return model.vocab_size * model.hidden_size


def adapter_weights(model: qwen3.Qwen3Config, rank: int) -> int:
    """Trained weights of the adapter, both blocks."""
    return 2 * rank * model.num_layers * sum(sum(pair) for pair in model.module_shapes().values())


def update_passes(arm: str, *, kl: bool, again: float | None = None) -> tuple[float, float, float, float]:
    """(trained, probed, forward with the adapter, forward of the base) passes over every token.

    Args:
        arm: of `config.ARMS`.
        kl: whether the base's log-probabilities are needed.
        again: share of the tokens in rows whose sampling policy runs once more; None: half of the rows, which is
            what the program must be ready for where half of them are sampled with the quarantine ablated.
    """
    trained, probed, more = PASSES.get(arm, ROUTED)
    return trained, probed, more if again is None else again, float(kl)


def update_flops(
    shape: shapes.Shape,
    arm: str,
    *,
    kl: bool,
    tokens: Tokens | None = None,
    again: float | None = None,
    adapter: bool = False,
) -> float:
    """Operations of the update's passes; `tokens` None: over every position of the batch."""
    tokens = every_position(shape) if tokens is None else tokens
    trained, probed, forward, base = update_passes(arm, kl=kl, again=again)
    model = shape.model
    passes = 2 * (trained + probed) + forward + base
    shared = tokens.shared if shape.shared else tokens.read
    layers = shared * (passes - probed) + tokens.read * probed
    total = 2.0 * (layers * layer_weights(model) + tokens.scored * passes * head_weights(model))
    if adapter:  # the probe needs no gradient of the factors
        products = shared * (3 * trained + probed + forward) + tokens.read * probed
        total += 2.0 * products * adapter_weights(model, shape.rank)
    return total


def update_work(
    shape: shapes.Shape, arm: str, *, kl: bool, tokens: Tokens | None = None, again: float | None = None
) -> Work:
    """The floor of an update: each pass over a micro-batch reads every weight once."""
    trained, probed, forward, base = update_passes(arm, kl=kl, again=again)
    sweeps = (2 * (trained + probed) + forward + base) * shape.rows / shape.micro_batch
    return Work(update_flops(shape, arm, kl=kl, tokens=tokens, again=again), sweeps * weight_bytes(shape.model))


def weight_bytes(model: qwen3.Qwen3Config) -> int:
    """Bytes of the weights that a token is multiplied with."""
    return (layer_weights(model) + head_weights(model)) * jnp.dtype(model.dtype).itemsize


def cache_bytes(model: qwen3.Qwen3Config) -> int:
    """Bytes of the keys and values of one token in all layers."""
    return 2 * model.num_layers * model.num_kv_heads * model.head_dim * jnp.dtype(model.dtype).itemsize


def prefill_work(model: qwen3.Qwen3Config, prompt_lengths: np.ndarray) -> Work:
    """The floor of reading every source's prompt once; no logits are needed of it."""
    read = int(np.sum(prompt_lengths))
    stored = layer_weights(model) * jnp.dtype(model.dtype).itemsize
    return Work(2.0 * read * layer_weights(model), stored + read * cache_bytes(model))


def decode_work(
    model: qwen3.Qwen3Config, rank: int, prompt_lengths: np.ndarray, of_row: np.ndarray, lengths: np.ndarray
) -> Work:
    """The floor of drawing completions: a token reads the weights, its prompt's cache and its own completion's.

    All rows of a pass share the weights, and those of one source its prompt.

    Args:
        model, rank: what is sampled from; the adapter's trained weights are read as well.
        prompt_lengths: [Q] of every source.
        of_row: [N] the source that each rollout continues.
        lengths: [N] tokens of every completion; the longest one is the number of passes.
    """
    lengths = np.asarray(lengths, np.float64)
    tokens, passes = lengths.sum(), lengths.max(initial=0.0)
    of_source = np.zeros(len(prompt_lengths))  # passes in which one of its rows goes on
    np.maximum.at(of_source, of_row, lengths)
    read = np.sum(of_source * prompt_lengths) + np.sum(lengths * (lengths - 1) / 2)
    stored = weight_bytes(model) + adapter_weights(model, rank) * jnp.dtype(model.dtype).itemsize
    flops = 2.0 * tokens * (layer_weights(model) + head_weights(model))
    return Work(flops, passes * stored + read * cache_bytes(model))
