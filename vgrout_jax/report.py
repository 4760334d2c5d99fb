"""Report on runs: one HTML page, and Markdown with figures.

    python -m vgrout_jax.report RUN... --out=DIR

RUN is a workdir, finished or not, or a folder of workdirs. DIR gets index.html, which needs nothing else, and
report.md with figures in PNG and SVG beside it. docs/howto/report.md says how to read them.
"""

from collections.abc import Sequence
from pathlib import Path

from vgrout_jax.common.command_line import Parser, end_with_one_line


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        UsageError, ValueError: what the user can mend.
    """
    options = _parser().parse_args(arguments)
    print(write_report(find_runs(options.runs), Path(options.out)))


def find_runs(names: Sequence[str]) -> list[Path]:
    """The workdirs that are named, or that lie directly in a folder that is named; each once.

    Raises:
        ValueError: there is no run in one of them.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name)
        inside = [path] if (path / "config.json").exists() else sorted(p.parent for p in path.glob("*/config.json"))
        if not inside:
            raise ValueError(f"RUN must be a workdir, or a folder of workdirs, but {name} has no config.json")
        found += inside
    unique = {path.resolve(): path for path in found}
    return list(unique.values())


def write_report(paths: Sequence[Path], out: Path) -> Path:
    """Reads the runs and writes the report into `out`; returns its page.

    Raises:
        ValueError: a run cannot be read, runs cannot stand beside one another, or `out` cannot be written.
    """
    from tqdm import tqdm

    from vgrout_jax.analysis.arms import group_arms  # these import matplotlib, which takes a second
    from vgrout_jax.analysis.observations import observe
    from vgrout_jax.analysis.output import write_document
    from vgrout_jax.analysis.pages import report
    from vgrout_jax.run.reader import read_workdir

    arms = group_arms([read_workdir(path) for path in paths])
    with tqdm(total=len(paths), unit="run", disable=None, leave=False) as bar:
        observed = {arm.name: observe(arm, lambda run: bar.update()) for arm in arms}
    return write_document(report(arms, observed), out, "report")


def _parser() -> Parser:
    parser = Parser(prog="python -m vgrout_jax.report", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="workdir of a run, or a folder of workdirs")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for index.html, report.md and figures")
    return parser


if __name__ == "__main__":
    end_with_one_line(main)
