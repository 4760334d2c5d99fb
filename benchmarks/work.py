"""The least work of a step: operations and bytes that no implementation can do without, as plain formulas.

Products with weights: 2 operations a weight and token for a forward pass and as many for a backward pass to the
activations; the frozen weights need no gradient of their own. A group's rollouts share their prompt, so each pass
needs it once a group, but for the probe's backward pass, which every rollout needs for itself; of a prompt's tokens
no more is needed than keys and values, in the last layer too. The head's weights count for completion tokens alone.
`adapter=True` adds the adapter's own weights, which is how model FLOP utilisation is defined here. What is left to
do besides, attention and both of the adapter's terms, is in `update_products`; a layer or logits that are computed
once more for the way back are in neither.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from benchmarks import roofline, shapes
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
    """Tokens of a batch, or as many pairs of a token and one that it attends to.

    Attributes:
        prompts: of all rollouts' prompts.
        shared: of prompts, a group's once.
        scored: of completions, which alone the head has to read.
    """

    prompts: int
    shared: int
    scored: int

    @property
    def read(self) -> int:
        """Of all rollouts, each with its prompt."""
        return self.prompts + self.scored

    @property
    def alone(self) -> "Tokens":
        """Where every pass reads a prompt once a rollout."""
        return dataclasses.replace(self, shared=self.prompts)


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Tokens of every rollout's prompt and completion, [N] each, those of a group together, and the groups' size."""

    prompts: np.ndarray
    completions: np.ndarray
    group: int

    def tokens(self) -> Tokens:
        """Tokens of the batch."""
        return self._summed(self.prompts, self.completions)

    def pairs(self) -> Tokens:
        """Pairs of causal attention; a completion's tokens are read from the prompt's last one on."""
        return self._summed(
            _own_pairs(self.prompts + 1), self.completions * self.prompts + _own_pairs(self.completions)
        )

    def _summed(self, prompts: np.ndarray, completions: np.ndarray) -> Tokens:
        return Tokens(int(prompts.sum()), int(prompts[:: self.group].sum()), int(completions.sum()))


def _own_pairs(length: np.ndarray) -> np.ndarray:
    """Pairs of a token and one before it."""
    return length * (length - 1) // 2


def every_position(shape: shapes.Shape) -> Lengths:
    """All positions of the padded batch."""
    return Lengths(np.full(shape.rows, shape.prompt_tokens), np.full(shape.rows, shape.new_tokens), shape.group)


def valid_tokens(shape: shapes.Shape, valid: np.ndarray, completion_mask: np.ndarray) -> Lengths:
    """Those that are no padding, of [N, S] and [N, T] masks."""
    parts = np.asarray(valid)[:, : -shape.new_tokens], np.asarray(completion_mask)
    return Lengths(*(part.sum(axis=1, dtype=np.int64) for part in parts), shape.group)


def layer_weights(model: qwen3.Qwen3Config) -> int:
    """Weights of all layers' maps."""
    return model.num_layers * sum(math.prod(pair) for pair in model.module_shapes().values())


def prompt_weights(model: qwen3.Qwen3Config) -> int:
    """Of these, what a prompt's token needs: of the last layer the maps to keys and values alone."""
    return layer_weights(model) - sum(math.prod(pair) for pair in _unneeded(model))


def _unneeded(model: qwen3.Qwen3Config) -> list[tuple[int, int]]:
    """Shapes of the last layer's maps that no prompt's token needs."""
    return [pair for name, pair in model.module_shapes().items() if name not in ("k_proj", "v_proj")]


def head_weights(model: qwen3.Qwen3Config) -> int:
    """Weights of the head, which may be the embedding."""
    return model.vocab_size * model.hidden_size


def adapter_weights(model: qwen3.Qwen3Config, rank: int, *, of_prompts: bool = False) -> int:
    """Trained weights of the adapter, both blocks; or of these what a prompt's token needs."""
    sides = model.num_layers * sum(sum(pair) for pair in model.module_shapes().values())
    return 2 * rank * (sides - (sum(sum(pair) for pair in _unneeded(model)) if of_prompts else 0))


def update_passes(
    shape: shapes.Shape, arm: str, *, kl: bool, again: float | None = None
) -> tuple[float, float, float, float]:
    """(trained, probed, forward with the adapter, forward of the base) passes over every token.

    Args:
        shape: whose sampler's log-probabilities may serve, so that no rows run again.
        arm: of `config.ARMS`.
        kl: whether the base's log-probabilities are needed.
        again: share of the tokens in rows whose sampling policy runs once more; None: half of the rows, which is
            what the program must be ready for where half of them are sampled with the quarantine ablated.
    """
    trained, probed, more = PASSES.get(arm, ROUTED)
    if again is None:
        again = 0.0 if shape.sampler_serves else more
    return trained, probed, again, float(kl)


def update_flops(
    shape: shapes.Shape,
    arm: str,
    *,
    kl: bool,
    tokens: Tokens | None = None,
    again: float | None = None,
    adapter: bool = False,
) -> float:
    """Operations of the update's passes with weights; `tokens` None: over every position of the batch."""
    tokens = every_position(shape).tokens() if tokens is None else tokens
    tokens, model = tokens if shape.shared else tokens.alone, shape.model
    trained, probed, forward, base = update_passes(shape, arm, kl=kl, again=again)
    prompts, completions = _runs(tokens, trained + probed + forward + base, trained, probed)
    total = prompts * prompt_weights(model) + completions * (layer_weights(model) + head_weights(model))
    if adapter:  # the probe needs no gradient of the factors
        prompts, completions = _runs(tokens, trained + probed + forward, 2 * trained, probed)
        total += prompts * adapter_weights(model, shape.rank, of_prompts=True)
        total += completions * adapter_weights(model, shape.rank)
    return 2.0 * total


def update_products(
    shape: shapes.Shape, arm: str, *, kl: bool, lengths: Lengths, again: float | None = None
) -> float:
    """Operations of all products that the passes need: with weights, of attention and of both the adapter's terms.

    Attention has two products forward and four on its way back. The adapter's formula has two terms (docs/method.md
    section 2), and so needs its weights twice as often, but for their own gradient.
    """
    trained, probed, forward, base = update_passes(shape, arm, kl=kl, again=again)
    tokens, pairs = (each if shape.shared else each.alone for each in (lengths.tokens(), lengths.pairs()))
    model, passes = shape.model, trained + probed + forward
    adapted = _runs(tokens, 2 * passes, 3 * trained, 2 * probed)
    attended = _runs(pairs, passes + base, 2 * trained, 2 * probed)
    weights = update_flops(shape, arm, kl=kl, tokens=lengths.tokens(), again=again)
    return weights + _beside_weights(model, shape.rank, adapted, attended)


def _beside_weights(
    model: qwen3.Qwen3Config, rank: int, tokens: tuple[float, float], pairs: tuple[float, float]
) -> float:
    """Operations of the adapter's and of attention's products.

    Args:
        model, rank: what runs.
        tokens: of prompts and of completions, as often as the adapter's weights are multiplied with them.
        pairs: of attention likewise, as often as its two products are needed.
    """
    adapter = tokens[0] * adapter_weights(model, rank, of_prompts=True) + tokens[1] * adapter_weights(model, rank)
    attention = (model.num_layers - 1) * pairs[0] + model.num_layers * pairs[1]
    return 2.0 * (adapter + 2 * model.num_heads * model.head_dim * attention)


def _runs(tokens: Tokens, forward: float, back: float, probed_back: float) -> tuple[float, float]:
    """How many tokens of prompts and of completions are run over in all.

    Args:
        tokens: of the batch.
        forward, back: how often every token is.
        probed_back: how often it is on the probe's way back, for which a prompt's tokens are a rollout's own.
    """
    prompts = tokens.shared * (forward + back) + tokens.prompts * probed_back
    return prompts, tokens.scored * (forward + back + probed_back)


def update_work(
    shape: shapes.Shape, arm: str, *, kl: bool, tokens: Tokens | None = None, again: float | None = None
) -> Work:
    """The floor of an update: each pass over a micro-batch reads every weight once."""
    trained, probed, forward, base = update_passes(shape, arm, kl=kl, again=again)
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
    stored = prompt_weights(model) * jnp.dtype(model.dtype).itemsize
    return Work(2.0 * read * prompt_weights(model), stored + read * cache_bytes(model))


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


def generation_products(
    model: qwen3.Qwen3Config, rank: int, prompt_lengths: np.ndarray, of_row: np.ndarray, lengths: np.ndarray
) -> float:
    """Operations of all products of prefill and decoding: with weights, of attention and of both the adapter's terms.

    Arguments as of `decode_work`.
    """
    prompt_lengths, lengths = (np.asarray(each, np.int64) for each in (prompt_lengths, lengths))
    tokens = (2 * prompt_lengths.sum(), 2 * lengths.sum())
    pairs = (_own_pairs(prompt_lengths + 1).sum(), (lengths * prompt_lengths[of_row] + _own_pairs(lengths)).sum())
    weights = prefill_work(model, prompt_lengths) + decode_work(model, rank, prompt_lengths, of_row, lengths)
    return weights.flops + _beside_weights(model, rank, tokens, pairs)
