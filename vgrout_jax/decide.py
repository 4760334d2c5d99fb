"""The decision run: every preregistered arm over seeds, one run after the other, then the report on all of them.

    python -m vgrout_jax.decide
    python -m vgrout_jax.decide --scale toy --seeds 3 --out runs/decision -- --config.log.gradients=true

What stands after -- is given to every run. All arms of a seed come before the next seed, so that a queue that is
stopped early has whole seeds. Called again with the same --out it goes on: finished runs are skipped, an unfinished
one continues. A run that fails does not stop the others; it is named at the end, and the exit status is then 1.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from vgrout_jax.common.command_line import Parser, UsageError, end_with_one_line
from vgrout_jax.config import SCALES
from vgrout_jax.config.arms import variants
from vgrout_jax.run.queue import Job, Queue, claim

ROOT = Path(__file__).resolve().parents[1]
RUN = [sys.executable, "-m", "vgrout_jax.main"]
REPORT = [sys.executable, "-m", "vgrout_jax.report"]
SEEDS = ("seed", "adapter.seed", "eval.seed", "placebo.seed")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the queue and reports on it; exit status 1 where a run or the report failed."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    split = given.index("--") if "--" in given else len(given)
    options = parse(given[:split])
    out = Path(options.out or f"runs/decision-{options.scale}")
    environment = dict(os.environ)
    # The arms share most of their programs; what one has compiled the others load.
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(out.resolve() / "compilation-cache"))
    environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    with claim(out):
        queue = Queue(out, RUN, environment)
        failed = queue.run(jobs(options, given[split + 1 :]))
        if failed:
            print(f"failed: {' '.join(failed)}; what they said stands in {out / 'logs'}", file=sys.stderr)
        reported = report(out)
    if failed or not reported:
        sys.exit(1)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The queue's own flags.

    Raises:
        UsageError: a flag that is not one of them, or a value that it cannot have.
    """
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m vgrout_jax.decide", description=__doc__, formatter_class=form)
    parser.add_argument("--scale", default="toy", choices=SCALES, help="of configs/*.py (toy)")
    parser.add_argument("--seeds", type=whole(1), default=8, metavar="COUNT", help="seeds an arm (8)")
    first = "the first of them (100: none that was used while settings were chosen)"
    parser.add_argument("--first", type=whole(0), default=100, metavar="SEED", help=first)
    where = "workdirs in DIR/runs, terminal output in DIR/logs, the report in DIR/report (runs/decision-SCALE)"
    parser.add_argument("--out", metavar="DIR", help=where)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise UsageError(
            f"unknown argument {unknown[0]}; flags of the runs stand after --, and --help shows the others"
        )
    return options


def whole(least: int):
    """Reads a whole number that is at least so much."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number >= {least}, got {text}")
        return int(text)

    return read


def jobs(options: argparse.Namespace, flags: Sequence[str]) -> list[Job]:
    """Every arm of the first seed, then every arm of the next."""
    found = []
    for seed in range(options.first, options.first + options.seeds):
        for variant in variants():
            if variant.entry.preregistered:
                own = [f"--config={ROOT}/configs/{variant.arm}.py:{options.scale}"]
                own += [f"--config.{name}={seed}" for name in SEEDS]
                own += [f"--config.{name}={value}" for name, value in variant.flags.items()]
                found.append(Job(f"{variant.name.replace(' ', '-')}-{seed}", [*own, *flags]))
    return found


def report(out: Path) -> bool:
    """Writes the report on what has been run; whether that went well."""
    return subprocess.run([*REPORT, str(out / "runs"), f"--out={out / 'report'}"]).returncode == 0


if __name__ == "__main__":
    end_with_one_line(main)
