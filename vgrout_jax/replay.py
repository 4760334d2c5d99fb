"""Replay the gate over a run's stored gradients, under its own or another setting.

    python -m vgrout_jax.replay RUN [--config.gate.low=-0.1 ...] [--out=DIR]

RUN is the workdir of a run with log.gradients=true. Prints what would have been routed; DIR (RUN/replay) gets
index.html and replay.md with a map over layers and modules. docs/howto/report.md says how to read them.
"""

import typing
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vgrout_jax.common.command_line import Parser, UsageError, end_with_one_line
from vgrout_jax.config import Config
from vgrout_jax.config.validation import settled
from vgrout_jax.run.reader import Workdir, read_workdir

# What is computed after the gradients, and can be another than in the run.
FIELDS = (
    "gate.low",
    "gate.high",
    "gate.pool",
    "gate.band_floor",
    "gate.leave_one_out",
    "gate.refresh_every",
    "direction.unit_sides",
    "direction.pairs",
    "direction.tags",
    "placebo.kind",
    "placebo.seed",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        UsageError, ValueError: what the user can mend.
    """
    options = _parse(arguments)
    run = read_workdir(options.run)
    config = overridden(run, {name: getattr(options, name) for name in FIELDS if hasattr(options, name)})
    from tqdm import tqdm  # these import jax and matplotlib, which take seconds

    from vgrout_jax.analysis.document import to_text
    from vgrout_jax.analysis.output import write_document
    from vgrout_jax.analysis.replay_pages import replay_blocks
    from vgrout_jax.analysis.replaying import replay
    from vgrout_jax.run import gradients

    steps = gradients.stored_steps(run.path)
    with tqdm(total=len(steps), unit="step", disable=None, leave=False) as bar:
        found = replay(run, config, lambda step: bar.update())
    blocks = replay_blocks(run.path.name, found)
    print(to_text(blocks))
    print(write_document(blocks, Path(options.out or run.path / "replay"), "replay"))


def overridden(run: Workdir, changes: dict[str, Any]) -> Config:
    """The run's configuration with some of `FIELDS` changed, checked.

    Raises:
        ValueError: a value that the field cannot have.
    """
    config = run.config
    changes = dict(changes)
    if changes.get("placebo.kind") == "lazy_pairs":
        changes.setdefault("direction.tags", ("lazy",))
    for name, value in changes.items():
        section, field = name.split(".")
        setattr(getattr(config, section), field, value)
    if config.placebo.kind is not None:
        config.arm = "placebo"
    elif config.arm == "placebo":
        config.arm = "routeV"
    return settled(config)


def _parse(arguments: Sequence[str] | None) -> Namespace:
    parser = Parser(prog="python -m vgrout_jax.replay", description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN", help="workdir of a run with stored gradients")
    parser.add_argument("--out", metavar="DIR", help="folder for the report (RUN/replay)")
    default = Config()
    for name in FIELDS:
        section, field = name.split(".")
        kind = type(getattr(default, section)).__dataclass_fields__[field].type
        flag = {"dest": name, "metavar": "VALUE", "default": Ellipsis, "type": _reader(kind)}
        parser.add_argument(f"--config.{name}", **flag)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise UsageError(f"{unknown[0]} cannot be replayed; what can: {', '.join(FIELDS)}")
    for name in FIELDS:
        if getattr(options, name) is Ellipsis:
            delattr(options, name)
    return options


def _reader(kind: Any) -> Callable[[str], Any]:
    """Reads a flag's text as a field's type; `None` where the field may be that."""
    parts = typing.get_args(kind)
    if type(None) in parts:
        inner = _reader(parts[0])
        return lambda text: None if text == "None" else inner(text)
    if typing.get_origin(kind) is tuple:
        return lambda text: tuple(part.strip() for part in text.split(",") if part.strip())
    return _boolean if kind is bool else kind


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ArgumentTypeError(f"must be true or false, got {text!r}")
    return text.lower() == "true"


if __name__ == "__main__":
    end_with_one_line(main)
