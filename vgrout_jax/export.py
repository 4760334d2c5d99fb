"""Exports a finished run: `python -m vgrout_jax.export --workdir=runs/a --format=peft --out=out/adapter`.

    --format=peft     a plain LoRA for transformers + PEFT and for vLLM
    --format=merged   a whole model: the adapter added to the weights in float32
    --policy=...      deployed (the default: nothing of the quarantine is in the files) or as_trained
    --rank=K          of the LoRA, by truncated SVD; the error is printed and stands in the model card
    --dtype=...       float32 or bfloat16 of the files; default: the run's model.dtype

The folder appears when it is whole. An adapter needs none of the base model's weights; where the base is not one
that others can name (random or built-in), it is put into the export's folder `base`.
"""

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vgrout_jax.common.command_line import Parser, UsageError, end_with_one_line
from vgrout_jax.run.reader import Workdir, read_workdir

FORMATS = ("peft", "merged")
POLICIES = ("deployed", "as_trained")
DTYPES = ("bfloat16", "float32")


@dataclasses.dataclass(frozen=True)
class Options:
    """The command's flags, checked.

    Attributes:
        workdir: of the run.
        out: folder to make.
        format, policy: of `FORMATS`, of `POLICIES`.
        rank: of the LoRA, None: as it comes.
        dtype: of the files, None: the run's.
    """

    workdir: Path
    out: Path
    format: str
    policy: str = "deployed"
    rank: int | None = None
    dtype: str | None = None


def parse(arguments: Sequence[str]) -> Options:
    """Reads the flags.

    Raises:
        UsageError: a flag is unknown, missing or of a wrong value, the flags contradict each other, or the
            output exists.
    """
    parser = Parser(prog="python -m vgrout_jax.export", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="of a finished run")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; must not exist")
    parser.add_argument("--format", choices=FORMATS, required=True, help="plain LoRA, or a whole model")
    parser.add_argument("--policy", choices=POLICIES, default="deployed", help="without or with the quarantine")
    parser.add_argument("--rank", type=int, help="compress the LoRA to this rank")
    parser.add_argument("--dtype", choices=DTYPES, help="of the files; default: the run's model.dtype")
    options = Options(**vars(parser.parse_args(arguments)))
    if options.rank is not None and options.format != "peft":
        raise UsageError("--rank compresses a LoRA, so it needs --format=peft, got --format=merged")
    if options.rank is not None and options.rank < 1:
        raise UsageError(f"--rank must be >= 1, got {options.rank}")
    if options.out.exists() or options.out.is_symlink():
        raise UsageError(f"--out must not exist, got {options.out}; choose another folder or delete it")
    return options


def finished_run(path: Path) -> Workdir:
    """The run of a workdir.

    Raises:
        ValueError: there is none, or it has not finished.
    """
    run = read_workdir(path)
    if not run.finished:
        raise ValueError(f"--workdir must hold a finished run, but {path} has no summary.json; let the run finish")
    return run


def check_rank(options: Options, run: Workdir) -> None:
    """Refuses a rank above that of the uncompressed LoRA.

    Raises:
        UsageError: naming the greatest rank.
    """
    most = run.config.adapter.rank * (2 if options.policy == "deployed" else 4)
    if options.rank is not None and options.rank > most:
        raise UsageError(f"--rank must be <= {most}, the rank of the LoRA uncompressed, got {options.rank}")


def main(arguments: Sequence[str]) -> None:
    """Checks flags and workdir, then exports; jax is imported between the two."""
    options = parse(arguments)
    run = finished_run(options.workdir)
    check_rank(options, run)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # sums and products of weights: an accelerator would not help
    from vgrout_jax.serving import exports

    settings = {"policy": options.policy, "dtype": options.dtype}
    if options.format == "peft":
        lines = exports.export_peft(run, options.out, rank=options.rank, **settings)
    else:
        lines = exports.export_merged(run, options.out, **settings)
    print("\n".join(lines))


if __name__ == "__main__":
    end_with_one_line(lambda: main(sys.argv[1:]))
