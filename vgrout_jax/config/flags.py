"""A run's configuration as flags: `--config=configs/ARM.py:SCALE --config.section.field=value --workdir=DIR`.

absl's flags and ml_collections' config flags, with every mistake as one line that names the field and the remedy.
"""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from vgrout_jax.common.command_line import UsageError, one_line
from vgrout_jax.config.schema import SCALES, Config
from vgrout_jax.config.validation import settled

# Fields of earlier versions, and what says it now.
RENAMED = {"gate.kind": "an arm's label.source and label.action say it; choose the arm with --config=configs/ARM.py"}


class _OrNone(flags.ArgumentParser):
    """Reads `None` besides what `parser` reads; `validate` refuses it where a field needs a value."""

    def __init__(self, parser: flags.ArgumentParser):
        self.parser = parser

    def parse(self, argument: Any) -> Any:
        return None if argument == "None" else self.parser.parse(argument)

    def flag_type(self) -> str:
        return self.parser.flag_type()


# An Optional field is read by its inner type's parser, which alone would take `None` for a name or an error.
config_flags.register_flag_parser_for_type(int, _OrNone(flags.IntegerParser()))
config_flags.register_flag_parser_for_type(str, _OrNone(flags.ArgumentParser()))
CONFIG = config_flags.DEFINE_config_file("config", None, "configs/ARM.py or configs/ARM.py:SCALE")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; default: runs/ARM-SCALE-TIME")


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """absl's flag parsing, with every mistake as one `UsageError` line.

    Raises:
        UsageError: an unknown flag, field, arm or scale, a value of the wrong type, or no --config.
    """
    _check_config_file(arguments)
    _check_field_names(arguments)
    try:
        rest = flags.FLAGS(list(arguments))
    except (flags.Error, KeyError, ValueError, TypeError, OSError) as error:
        raise UsageError(one_line(error)) from error
    if len(rest) > 1:
        raise UsageError(f"unexpected argument {rest[1]!r}; fields are set as --config.section.field=value")
    if not isinstance(CONFIG.value, Config):
        raise UsageError("--config must name an arm's file, such as --config=configs/routeV.py:smoke")
    return rest


def _check_config_file(arguments: Sequence[str]) -> None:
    """Names a missing file or an unknown scale before ml_collections wraps it in a page of text."""
    for argument, following in zip(arguments, (*arguments[1:], ""), strict=True):
        match = re.fullmatch(r"--?config(=.*)?", argument)
        if match:
            value = match[1][1:] if match[1] else following
            path, colon, scale = value.partition(":")
            if not (Path(path).is_file() and path.endswith(".py")):
                raise UsageError(f"--config must name an existing .py file, got {path!r}; the arms stand in configs/")
            if colon and scale not in SCALES:
                raise UsageError(f"--config: the scale must be one of {', '.join(SCALES)}, got {scale!r}")


def _check_field_names(arguments: Sequence[str]) -> None:
    """Refuses unknown fields, whole sections (ml_collections would reset them), and what the config file names."""
    for argument in arguments[1:]:
        match = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        node: Any = Config
        for part in match[1].split(".") if match else ():
            kinds = {field.name: field.type for field in dataclasses.fields(node)} if _is_section(node) else {}
            if match[1] in RENAMED:
                raise UsageError(f"--config.{match[1]} is no field any more: {RENAMED[match[1]]}")
            if part not in kinds:
                close = difflib.get_close_matches(part, kinds, 1)
                hint = f"did you mean {close[0]}?" if close else "the fields stand in vgrout_jax/config/schema.py"
                raise UsageError(f"--config.{match[1]}: there is no field {part}; {hint}")
            node = kinds[part]
        if match and match[1] in ("arm", "scale"):
            raise UsageError(f"--config.{match[1]} is settled by the config file; use --config=configs/ARM.py:SCALE")
        if match and _is_section(node):
            raise UsageError(f"--config.{match[1]} is a section; set its fields, --config.{match[1]}.field=value")


def _is_section(node: Any) -> bool:
    return dataclasses.is_dataclass(node)


def resolve(config: Config, workdir: str | None) -> tuple[Config, Path]:
    """The configuration after overrides, checked, and the workdir.

    Raises:
        UsageError: a contradictory or impossible setting.
    """
    try:
        config = settled(config)
    except ValueError as error:
        raise UsageError(str(error)) from error
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return config, Path(workdir or f"runs/{config.arm}-{config.scale}-{stamp}")


def is_given(name: str) -> bool:
    """Whether the command line sets a flag of absl's own."""
    return bool(flags.FLAGS[name].present)
