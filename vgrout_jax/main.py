"""The command of a run: `python -m vgrout_jax.main --config=configs/routeV.py:smoke --workdir=runs/a`."""

import logging
import sys
from collections.abc import Sequence

from absl import app
from absl import logging as absl_logging

from vgrout_jax.common import xla
from vgrout_jax.common.command_line import UsageError, one_line
from vgrout_jax.config.flags import CONFIG, WORKDIR, is_given, parse_flags, resolve


def main(_: Sequence[str]) -> None:
    """Checks the configuration, then trains. Exit status 1 and one line for whatever the user can mend.

    A run that SIGTERM has interrupted ends with status 143, after Ctrl-C with 130, and one line as well.
    `--verbosity=1` shows where that line came from.
    """
    try:
        config, workdir = resolve(CONFIG.value, WORKDIR.value)
        _quiet_libraries()
        xla.collect_rarely()
        from vgrout_jax.env.grading import GradingFailed
        from vgrout_jax.rl.divergence import Divergence  # jax is imported once the configuration has been checked
        from vgrout_jax.run.preemption import Preempted
        from vgrout_jax.train import train

        try:
            train(config, workdir)
        except Preempted as request:
            print(request, file=sys.stderr)
            sys.exit(request.status)
        except (ValueError, FileNotFoundError, Divergence, GradingFailed) as error:
            absl_logging.debug("stopped by", exc_info=True)
            raise UsageError(one_line(error)) from error
    except UsageError as error:
        sys.exit(f"error: {error}")


def _quiet_libraries() -> None:
    """Other packages' warnings and this one's information go to standard error; `--verbosity` shows more."""
    if not is_given("verbosity"):
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
