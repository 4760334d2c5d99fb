"""A tiny model, adapter and batch that the numerical tests share. Random values from NumPy, nothing golden."""

import jax
import jax.numpy as jnp
import numpy as np

from vgrout_jax.config import ARMS, Config, MeshConfig
from vgrout_jax.model import lora2r, parameters, qwen3, sharding
from vgrout_jax.model.policy import Frozen
from vgrout_jax.rl.state import Batch, TrainState

PROMPTS, GROUP, PROMPT_TOKENS, NEW_TOKENS, RANK, VOCAB = 2, 4, 5, 6, 3, 61
ROWS = PROMPTS * GROUP


def config(arm: str = "routeV", **sections: dict) -> Config:
    """A configuration in the tiny sizes; `config(gate={"low": 0.1})` overrides fields.

    Of the arm it has the name, the source and the action.
    """
    settings = Config(arm=arm)
    for name in ("label.source", "label.action"):
        setattr(settings.label, name.removeprefix("label."), ARMS[arm].fields[name])
    settings.adapter.rank = RANK
    settings.rollout.prompts, settings.rollout.group_size = PROMPTS, GROUP
    settings.rollout.max_new_tokens = NEW_TOKENS
    settings.train.micro_batch, settings.train.steps = ROWS, 10
    settings.model.logprob_chunk = 16
    settings.gate.low, settings.gate.high = -0.5, 0.5
    for section, fields in sections.items():
        for name, value in fields.items():
            setattr(getattr(settings, section), name, value)
    return settings


def model(dtype: object = jnp.float32, layers: int = 2) -> qwen3.Qwen3Config:
    """Two layers, two query heads a key-value head, a head width that is not hidden / heads."""
    return qwen3.Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_layers=layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        dtype=dtype,
    )


def mesh() -> jax.sharding.Mesh:
    return sharding.make_mesh(MeshConfig())


def frozen(shape: qwen3.Qwen3Config, scale: float = 10.0) -> Frozen:
    """Random base weights, `scale` times the usual size so that nothing is nearly linear, and A0, B0."""
    base = parameters.init_parameters(shape, 0)
    base = jax.tree.map(lambda leaf: jnp.asarray(leaf * scale if leaf.ndim == 3 else leaf, leaf.dtype), base)
    init = lora2r.init_factors(shape.module_shapes(), shape.num_layers, RANK, seed=0)
    return Frozen(base, jax.tree.map(jnp.asarray, init))


def moved(init: lora2r.Factors, size: float, seed: int = 1) -> lora2r.Factors:
    """Differences drawn from Normal(0, size^2), both blocks."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(size * generator.standard_normal(leaf.shape), jnp.float32), init)


def state(deltas: lora2r.Factors, optimizer: object) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), deltas, optimizer.init(deltas))


def batch(seed: int = 0, rewards: object = None) -> Batch:
    """Prompts of unequal length, completions of unequal length, both policies among the samplers."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, VOCAB, (ROWS, PROMPT_TOKENS + NEW_TOKENS)).astype(np.int32)
    tokens[:, :PROMPT_TOKENS] = np.repeat(tokens[::GROUP, :PROMPT_TOKENS], GROUP, axis=0)
    left = np.repeat(generator.integers(0, 3, PROMPTS), GROUP)
    lengths = generator.integers(2, NEW_TOKENS + 1, ROWS)
    place = np.arange(PROMPT_TOKENS + NEW_TOKENS)
    valid = (place >= left[:, None]) & (place < PROMPT_TOKENS + lengths[:, None])
    values = [3.5, 0.0, 0.5, 0.0, 0.0, 3.5, 0.5, 3.5] if rewards is None else rewards
    sampled = np.tile([True, True, False, False], PROMPTS)
    arrays = (tokens, valid, valid[:, PROMPT_TOKENS:], np.array(values, np.float32), sampled)
    unread = np.full((ROWS, NEW_TOKENS), np.nan, np.float32)  # but where the sampler's log-probabilities serve
    return Batch(*map(jnp.asarray, (*arrays, unread, np.zeros(ROWS, bool))))


def row(whole: Batch, index: int) -> Batch:
    """One rollout of a batch, as a batch of one."""
    return jax.tree.map(lambda leaf: leaf[index : index + 1], whole)
