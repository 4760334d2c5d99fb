"""A warm start: supervised fine-tuning on stored completions, before reinforcement learning.

    python -m vgrout_jax.sft --config=configs/none.py --out=DIR --config.data.train=FILE --config.teacher.pool=FOLDER

The configuration is a run's own: the model, the problems and the modes that it names, and the pool of completions in
the teacher's format (docs/method.md section 12). Each completion is trained under the prompt that a run would show
for it. All parameters are fitted, in float32, with passes in `model.dtype`. The folder that is written is a model
like any other: `--config.model.path=DIR`.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vgrout_jax.common.command_line import Parser, UsageError, end_with_one_line
from vgrout_jax.config import Config, OptimConfig
from vgrout_jax.config.flags import CONFIG, parse_flags, resolve


def _parser() -> Parser:
    parser = Parser(
        prog="python -m vgrout_jax.sft",
        description=__doc__.splitlines()[0],
        epilog="Every field of the run's configuration is a flag too: --config.section.field=value.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the new model; must not exist")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32, help="completions of an optimiser step")
    parser.add_argument("--micro_batch", type=int, default=4, help="completions of one forward and backward pass")
    parser.add_argument("--lr", type=float, default=1e-5, help="peak learning rate")
    parser.add_argument("--max_completion_tokens", type=int, default=2048, help="a longer one is left out")
    return parser


def examples_of(world: Any, limit: int) -> tuple[Any, int]:
    """The pool's completions under their prompts, as `supervised.Examples`, and how many were too long.

    Raises:
        ValueError: no completion is short enough.
    """
    from vgrout_jax.env.modes import TRAINING_NAMES
    from vgrout_jax.rl.rollout import teacher_tokens
    from vgrout_jax.supervised import fit

    problems = {problem.id: problem for problem in world.train}
    rows, too_long = [], 0
    for row in world.pool.rows:
        completion = teacher_tokens(row, world.tokenizer)
        if len(completion) > limit:
            too_long += 1
            continue
        prompt = world.prompt(problems[row.problem_id], row.mode, TRAINING_NAMES)
        rows.append((prompt.tokens, completion))
    if not rows:
        raise ValueError(f"--max_completion_tokens must be higher, got {limit}: all {too_long} rows are longer")
    return fit.lay_out(rows, world.tokenizer.pad_id), too_long


def fine_tune(config: Config, fit_config: Any, *, out: Path, limit: int) -> dict[str, Any]:
    """Loads, fits and writes the model; returns what is printed.

    Raises:
        ValueError, FileNotFoundError: one line that names the field, file or tensor.
    """
    from vgrout_jax.common.tokenizer import SMOKE_PATH, load_tokenizer
    from vgrout_jax.env.world import load_world, read_files
    from vgrout_jax.model import sharding
    from vgrout_jax.run.build import load_base, model_config
    from vgrout_jax.supervised import fit
    from vgrout_jax.weights import hub, store

    files = read_files(config)
    folder = None if config.model.path is None else str(hub.model_folder(config.model.path))
    tokenizer = load_tokenizer(folder)
    mesh = sharding.make_mesh(config.mesh)
    examples, too_long = examples_of(load_world(config, tokenizer, files), limit)
    fit.check(len(examples.tokens), fit_config)
    model = model_config(config, folder, tokenizer)
    parameters, losses = fit.fit(model, load_base(config, folder, model, mesh), examples, fit_config, mesh)
    store.save_checkpoint(
        out,
        parameters,
        model,
        dtype=config.model.dtype,
        tokenizer_files=store.find_tokenizer_files(folder or SMOKE_PATH),
        eos_ids=tokenizer.eos_ids,
        pad_id=tokenizer.pad_id,
    )
    return {
        "examples": len(examples.tokens),
        "too_long": too_long,
        "steps": len(losses),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "out": str(out),
    }


def run(arguments: Sequence[str]) -> None:
    """Parses, checks and fine-tunes.

    Raises:
        UsageError, ValueError, FileNotFoundError: what the user can mend.
    """
    options, rest = _parser().parse_known_args(list(arguments))
    if options.out.exists():
        raise UsageError(f"--out must name a new folder, got {options.out}; choose another or delete it")
    parse_flags([sys.argv[0], *rest])
    config = CONFIG.value
    if config.teacher.pool and not config.teacher.per_prompt:
        config.teacher.per_prompt = 1  # else the pool would not be read
    config, _ = resolve(config, None)
    if not config.teacher.pool:
        raise UsageError("teacher.pool must name the completions to fine-tune on, got (); set --config.teacher.pool")
    from vgrout_jax.supervised.fit import FitConfig

    optim = OptimConfig(lr=options.lr, warmup_frac=0.05, weight_decay=0.0, beta2=0.98)
    fit_config = FitConfig(options.epochs, options.batch, options.micro_batch, optim, config.seed)
    result = fine_tune(config, fit_config, out=options.out, limit=options.max_completion_tokens)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    end_with_one_line(lambda: run(sys.argv[1:]))
