"""Builds everything that a run needs, once, from its configuration."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vgrout_jax.arms.base import Arm, Readings, Source
from vgrout_jax.arms.compose import make_arm
from vgrout_jax.common import background_compile, xla
from vgrout_jax.common.tokenizer import ChatTokenizer, load_tokenizer
from vgrout_jax.config import Config
from vgrout_jax.config.validation import settled
from vgrout_jax.env.modes import GT_ONLY, TRAINING_NAMES
from vgrout_jax.env.world import World, load_world, read_files
from vgrout_jax.model import lora2r, parameters, qwen3, sharding
from vgrout_jax.model.policy import Frozen
from vgrout_jax.rl import divergence
from vgrout_jax.rl.optim import make_optimizer
from vgrout_jax.rl.step import build_step
from vgrout_jax.routing import extraction
from vgrout_jax.routing.gate import CLEAN
from vgrout_jax.routing.pairs import encode_pairs, load_pairs, pairs_sha256
from vgrout_jax.sampling.generator import Generator, build_generator
from vgrout_jax.weights import hub

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Programs:
    """The run's compiled programs.

    Attributes:
        step: the optimiser step, `step.Step`.
        extract: what the arm's source learns from the pairs, None where it learns nothing.
        reference_logprob: of the divergence guard, None where it is off.
        generator: the sampler.
    """

    step: background_compile.Ahead
    extract: extraction.Extractor | None
    reference_logprob: object | None
    generator: Generator


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, ready to start.

    Attributes:
        config, world, model, mesh: what it runs on.
        frozen: base parameters and A0, B0.
        optimizer: of `optim.make_optimizer`.
        arm: who flags a rollout, and what becomes of the flagged.
        programs: compiled on first use.
        provenance: hashes of the pairs and of the tokenizer.
    """

    config: Config
    world: World
    model: qwen3.Qwen3Config
    mesh: jax.sharding.Mesh
    frozen: Frozen
    optimizer: optax.GradientTransformation
    arm: Arm
    programs: Programs
    provenance: dict[str, str]


def build_run(config: Config) -> Run:
    """Loads the world, the pairs, the model and the adapter, in the order of what fails fastest.

    Raises:
        ValueError, FileNotFoundError: one line that names the field, file or tensor.
    """
    config = settled(config)
    files, pairs = read_files(config), load_pairs(config.direction.pairs, config.direction.tags)
    model_path = None if config.model.path is None else str(hub.model_folder(config.model.path))
    tokenizer = load_tokenizer(model_path)
    world = load_world(config, tokenizer, files)
    mesh = sharding.make_mesh(config.mesh)
    model = model_config(config, model_path, tokenizer)
    base = load_base(config, model_path, model, mesh)
    init = lora2r.init_factors(model.module_shapes(), model.num_layers, config.adapter.rank, seed=config.adapter.seed)
    frozen = Frozen(base, jax.device_put(init, sharding.factor_shardings(mesh, init)))
    optimizer = make_optimizer(config.optim, config.train.steps)
    run_pairs = encode_pairs(pairs, tokenizer, max_prompt=config.data.max_prompt_tokens)
    sides = extraction.as_sides(run_pairs.tokens, run_pairs.valid, run_pairs.completion_mask)
    arm = make_arm(config)
    programs = _programs(config, world, model, mesh, arm=arm, sides=sides, optimizer=optimizer)
    provenance = {"pairs_sha256": pairs_sha256(pairs), "tokenizer_sha256": tokenizer.sha256}
    return Run(config, world, model, mesh, frozen, optimizer, arm, programs, provenance)


def memory_shapes(run: Run, deltas: lora2r.Factors) -> Any:
    """The shapes of what the arm's source learns, without reading a pair; None where it learns nothing."""
    if run.programs.extract is None:
        return None
    return jax.eval_shape(run.programs.extract, deltas, run.frozen)[0]


def load_base(config: Config, path: str | None, model: qwen3.Qwen3Config, mesh: jax.sharding.Mesh) -> dict:
    """The base parameters in their shardings: a checkpoint's, or tiny random ones where there is no path."""
    shardings = sharding.parameter_shardings(mesh, model)
    if path is None:
        return jax.device_put(parameters.init_parameters(model, config.model.seed), shardings)
    return hub.load_parameters(path, model, shardings)


def model_config(config: Config, path: str | None, tokenizer: ChatTokenizer) -> qwen3.Qwen3Config:
    """The published model's shape, or that of the tiny model described in the configuration.

    Raises:
        ValueError: the model's vocabulary is smaller than the tokenizer's.
    """
    settings, dtype = config.model, DTYPES[config.model.dtype]
    if path is not None:
        model = hub.load_config(path, dtype=dtype, remat=settings.remat)
    else:
        model = qwen3.Qwen3Config(
            vocab_size=settings.vocab_size or -(-tokenizer.vocab_size // 64) * 64,
            hidden_size=settings.hidden_size,
            intermediate_size=settings.intermediate_size,
            num_layers=settings.num_layers,
            num_heads=settings.num_heads,
            num_kv_heads=settings.num_kv_heads,
            head_dim=settings.head_dim,
            tie_embeddings=settings.tie_embeddings,
            dtype=dtype,
            remat=settings.remat,
        )
    if model.vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"model.vocab_size must be >= the tokenizer's {tokenizer.vocab_size} tokens, got {model.vocab_size}"
        )
    attention = attention_for(jax.devices()[0], dtype, devices=jax.device_count())
    return dataclasses.replace(model, attention=attention)


def attention_for(device: Any, dtype: jax.typing.DTypeLike, *, devices: int) -> str:
    """Which of `attending.ATTENTIONS` suits a device."""
    if xla.is_nvidia(device) and jnp.dtype(dtype).itemsize == 2:
        return "cudnn_packed" if float(device.compute_capability) >= 9.0 else "cudnn"
    return "rows" if device.platform == "cpu" and devices == 1 else "batch"


def _programs(
    config: Config,
    world: World,
    model: qwen3.Qwen3Config,
    mesh: jax.sharding.Mesh,
    *,
    arm: Arm,
    sides: extraction.Sides,
    optimizer: optax.GradientTransformation,
) -> Programs:
    references = _references(config, world) if config.guard.references else None
    return Programs(
        step=background_compile.Ahead(build_step(config, model, optimizer, mesh, arm=arm)),
        extract=_extractor(config, model, sides, mesh, source=arm.source) if arm.source.learns else None,
        reference_logprob=None if references is None else divergence.build_reference(config, model, references),
        generator=build_generator(config, model, world.tokenizer, mesh, one_policy=arm.labels == (CLEAN,)),
    )


def _extractor(
    config: Config, model: qwen3.Qwen3Config, sides: extraction.Sides, mesh: jax.sharding.Mesh, *, source: Source
) -> extraction.Extractor:
    return extraction.build_extractor(
        config,
        model,
        sides,
        mesh,
        learn=lambda gradients, features: source.learn(Readings(gradients, features)),
        reads_probe=source.reads_probe,
        reads_features=source.reads_features,
    )


def _references(config: Config, world: World) -> extraction.Sides:
    """Reference solutions of the first training problems, shown with the plain sentence, for the guard."""
    chosen = world.train[: config.guard.references]
    prompts = [world.prompt(problem, GT_ONLY, TRAINING_NAMES).tokens for problem in chosen]
    fenced = [f"```python\n{problem.solution.strip()}\n```" for problem in chosen]
    completions = [[*world.tokenizer.encode(text), world.tokenizer.eos_ids[0]] for text in fenced]
    return divergence.encode_references(
        prompts,
        completions,
        max_new_tokens=config.rollout.max_new_tokens,
        pad_id=world.tokenizer.pad_id,
    )
