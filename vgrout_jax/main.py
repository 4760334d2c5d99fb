"""The command of a run: `python -m vgrout_jax.main --config=configs/routeV.py:smoke --workdir=runs/a`."""

import logging
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from vgrout_jax.config import SCALES, Config

CONFIG = config_flags.DEFINE_config_file("config", None, "configs/ARM.py or configs/ARM.py:SCALE")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; default: runs/ARM-SCALE-TIME")


class UsageError(Exception):
    """What the user can mend; printed as one line."""


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """absl's flag parsing, with every mistake as one `UsageError` line.

    Raises:
        UsageError: an unknown flag, field, arm or scale, a value of the wrong type, or no --config.
    """
    _check_config_file(arguments)
    try:
        rest = flags.FLAGS(list(arguments))
    except KeyError as error:
        raise UsageError(f"--config: {error.args[0]}; the fields stand in vgrout_jax/config.py") from error
    except (flags.Error, ValueError, TypeError, OSError) as error:
        raise UsageError(_one_line(error)) from error
    if len(rest) > 1:
        raise UsageError(f"unexpected argument {rest[1]!r}; fields are set as --config.section.field=value")
    if CONFIG.value is None:
        raise UsageError("--config must name an arm's file, such as --config=configs/routeV.py:smoke")
    return rest


def _check_config_file(arguments: Sequence[str]) -> None:
    """Names a missing file or an unknown scale before ml_collections wraps it in a page of text."""
    for argument in arguments:
        name, _, value = argument.lstrip("-").partition("=")
        if name == "config" and value:
            path, _, scale = value.partition(":")
            if not Path(path).is_file():
                raise UsageError(f"--config must name an existing file, got {path}; the arms stand in configs/")
            if scale and scale not in SCALES:
                raise UsageError(f"--config: the scale must be one of {', '.join(SCALES)}, got {scale!r}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def resolve(config: Config, workdir: str | None) -> tuple[Config, Path]:
    """The configuration after overrides, checked, and the workdir.

    Raises:
        UsageError: a contradictory or impossible setting.
    """
    try:
        config.resolve()
        config.validate()
    except ValueError as error:
        raise UsageError(str(error)) from error
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return config, Path(workdir or f"runs/{config.arm}-{config.scale}-{stamp}")


def main(_: Sequence[str]) -> None:
    """Checks the configuration, then trains. Exit status 1 and one line for whatever the user can mend."""
    try:
        config, workdir = resolve(CONFIG.value, WORKDIR.value)
        _log_to_stderr()
        from vgrout_jax.rl.guard import Divergence  # jax is imported once the configuration has been checked
        from vgrout_jax.train import train

        try:
            train(config, workdir)
        except (ValueError, FileNotFoundError, Divergence) as error:
            raise UsageError(_one_line(error)) from error
    except UsageError as error:
        sys.exit(f"error: {error}")


def _log_to_stderr() -> None:
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("vgrout_jax").setLevel(logging.INFO)


def run() -> None:
    """Entry point of the command line."""
    try:
        app.run(main, flags_parser=parse_flags)
    except UsageError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    run()
