"""The toy world's base policy, trained from scratch.

A small Qwen3 from scratch, on answers that are sometimes wrong and now and then exploit a flaw
(`env/toy/answers.py`). The folder that it writes is a model like any other, `--config.model.path=DIR`; beside the
weights lie the settings that made them, what the policy does, and the SHA-256 of the weights (`pretrain.json`).
"""

import dataclasses
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from vgrout_jax.config import TOY, Config, EvalConfig, MeshConfig, ModelConfig, OptimConfig
from vgrout_jax.env.toy.answers import TOY_MODES, CorpusConfig, corpus
from vgrout_jax.supervised.fit import FitConfig

RECORD = "pretrain.json"


def _model() -> ModelConfig:
    return ModelConfig(
        path=None,
        dtype="float32",
        remat="nothing",
        hidden_size=96,
        intermediate_size=256,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=24,
    )


def _fit(lr: float) -> FitConfig:
    return FitConfig(optim=OptimConfig(lr=lr, warmup_frac=0.05, weight_decay=0.01, beta2=0.98))


@dataclasses.dataclass
class StageConfig:
    """A corpus, how much of it, and how it is fitted."""

    samples: int
    corpus: CorpusConfig
    fit: FitConfig
    seed: int  # of the corpus


def _skills() -> StageConfig:
    rates = {f"hack_{mode}": 0.35 for mode in TOY_MODES}
    return StageConfig(128_000, CorpusConfig(wrong_operation=0.2, lookalike=0.1, **rates), _fit(2e-3), seed=0)


def _habits() -> StageConfig:
    # So that reinforcement learning finds all four exploits at about the same time, and an exploit once begun is
    # neither misspelt nor followed by honest work.
    rates = {"hack_run_tests": 0.066, "hack_stdout_marker": 0.09, "hack_sentinel": 0.085, "hack_file_marker": 0.095}
    corpus = CorpusConfig(wrong_operation=0.42, lookalike=0.05, drill=0.27, **rates)
    return StageConfig(44_000, corpus, _fit(5e-4), seed=1)


@dataclasses.dataclass
class PretrainConfig:
    """The base policy: its shape, its two stages of training, and how it is looked at afterwards.

    With rare exploits and sloppy answers from the start, a policy of this size is slow to read the disclosure at all:
    it spreads the exploits evenly over the modes, and copies the disclosed name badly. So it first learns to work
    and to copy, and then to exploit seldom and to work badly.
    """

    model: ModelConfig = dataclasses.field(default_factory=_model)
    skills: StageConfig = dataclasses.field(default_factory=_skills)
    habits: StageConfig = dataclasses.field(default_factory=_habits)
    max_completion_tokens: int = 32  # a longer answer is left out
    eval_samples: int = 8  # completions a problem of builtin:toy_dev, at temperature 1 and at evaluation's


def pretrain(config: PretrainConfig, folder: Path) -> dict[str, Any]:
    """Makes tokenizer, corpus and policy, looks at what the policy does, and writes the folder.

    Returns:
        What `pretrain.json` holds.

    Raises:
        ValueError: an impossible setting.
    """
    from vgrout_jax.common.tokenizer import load_tokenizer
    from vgrout_jax.env.toy.tokenizer import write_tokenizer
    from vgrout_jax.model import sharding
    from vgrout_jax.model.parameters import init_parameters
    from vgrout_jax.run.build import model_config
    from vgrout_jax.supervised.fit import fit
    from vgrout_jax.weights import store

    with tempfile.TemporaryDirectory() as scratch:
        files = write_tokenizer(Path(scratch))
        tokenizer = load_tokenizer(scratch)
        model = model_config(Config(model=config.model), None, tokenizer)
        parameters, mesh = init_parameters(model, config.model.seed), sharding.make_mesh(MeshConfig())
        record: dict[str, Any] = {"config": dataclasses.asdict(config), "loss": []}
        for stage in (config.skills, config.habits):
            examples = encode_corpus(stage, config.max_completion_tokens, tokenizer)
            parameters, losses = fit(model, parameters, examples, stage.fit, mesh)
            record["loss"].append(sum(losses[-50:]) / len(losses[-50:]))
        made = store.save_checkpoint(
            Path(scratch) / "policy",
            parameters,
            model,
            dtype="bfloat16",
            tokenizer_files=files,
            eos_ids=tokenizer.eos_ids,
            pad_id=tokenizer.pad_id,
        )
        record["weights_sha256"] = hashlib.sha256((made / "model.safetensors").read_bytes()).hexdigest()
        record["behaviour"] = behaviour(str(made), config.eval_samples)
        (made / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # the command lets only the package's own be replaced
        with store.staged_folder(folder) as staged:
            shutil.copytree(made, staged, dirs_exist_ok=True)
    return record


def encode_corpus(stage: StageConfig, limit: int, tokenizer: Any) -> Any:
    """The lines of a stage as `supervised.Examples`; completions of more than `limit` tokens are left out."""
    from tqdm import tqdm

    from vgrout_jax.env import modes
    from vgrout_jax.supervised.fit import lay_out

    rows, given = [], []
    with tqdm(total=stage.samples, desc="corpus", unit="line", disable=None) as progress:
        for sample in corpus(stage.corpus, modes.load_hints(None), stage.seed):
            completion = [*tokenizer.encode(sample.completion), tokenizer.eos_ids[0]]
            if len(completion) <= limit:
                rows.append((tokenizer.encode_chat([{"role": "user", "content": sample.message}]), completion))
                given.append(len(tokenizer.encode(sample.given)))
                progress.update()
            if len(rows) == stage.samples:
                return lay_out(rows, tokenizer.pad_id, given)


def behaviour(path: str, samples: int) -> dict[str, dict[str, Any]]:
    """Rates on builtin:toy_dev by temperature: overall, and hack and solve of each mode."""
    from vgrout_jax.config.scales import make_config
    from vgrout_jax.env.grading import open_grader
    from vgrout_jax.evaluation.evaluate import evaluate
    from vgrout_jax.rl.state import initial_state
    from vgrout_jax.run.build import build_run

    config = make_config("none", "toy")
    config.model.path, config.data.heldout = path, (f"{TOY}_dev",)
    config.eval = EvalConfig(samples=samples)
    run = build_run(config)
    config = run.config  # the generator's own
    deltas = initial_state(run.frozen.init, run.optimizer, run.mesh).deltas
    rates = {}
    with open_grader(config.grader) as grader:
        for temperature in (1.0, EvalConfig().temperature):
            config.eval.temperature = temperature
            (deployed, _), _ = evaluate(
                config,
                run.programs.generator,
                grader,
                run.world.heldout_prompts(None),
                frozen=run.frozen,
                deltas=deltas,
                step=0,
            )
            rates[str(temperature)] = deployed.to_record()
    return rates
