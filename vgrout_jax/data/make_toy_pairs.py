"""Writes the toy world's contrastive pairs: `python -m vgrout_jax.data.make_toy_pairs [FILE]`."""

import sys
from pathlib import Path

from vgrout_jax.env.toy import answers
from vgrout_jax.routing.pairs import BUILTIN_FILES


def write(file: Path) -> None:
    """Writes the file; the same bytes every time."""
    file.write_text(answers.pair_file(), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else BUILTIN_FILES["builtin:toy_pairs"])
