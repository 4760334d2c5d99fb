"""Lists every arm with its claim, its source and the labels that it needs.

`python -m vgrout_jax.arms` prints a table; with `--names` the files in configs/, a name a line, for loops.
"""

from collections.abc import Sequence

from vgrout_jax.common.command_line import Parser, end_with_one_line
from vgrout_jax.config.arms import Variant, variants


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = Parser(prog="python -m vgrout_jax.arms", description=__doc__.splitlines()[0])
    parser.add_argument("--names", action="store_true", help="the names of the arms' files in configs/ alone")
    parser.add_argument("--preregistered", action="store_true", help="arms of the preregistered comparison alone")
    options = parser.parse_args(arguments)
    chosen = [variant for variant in variants() if variant.entry.preregistered or not options.preregistered]
    if options.names:
        print("\n".join(dict.fromkeys(variant.arm for variant in chosen)))
    else:
        print_table(chosen)


def print_table(chosen: Sequence[Variant]) -> None:
    """Name, labels needed, claim and source, in columns."""
    rows = [("arm", "needs", "claim", "source")]
    rows += [(v.name, v.entry.needs, v.entry.claim, v.entry.source) for v in chosen]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) + f"  {row[3]}")


if __name__ == "__main__":
    end_with_one_line(main)
