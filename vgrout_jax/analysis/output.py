"""Writes a document's files."""

from collections.abc import Sequence
from pathlib import Path

from vgrout_jax.analysis.document import Block, Figure, to_html, to_markdown
from vgrout_jax.common import files


def write_document(blocks: Sequence[Block], out: Path, name: str) -> Path:
    """Writes index.html, NAME.md and the figures into a folder; returns the page's path.

    Raises:
        ValueError: the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for block in blocks:
            if isinstance(block, Figure):
                files.write_atomic(out / f"{block.name}.png", block.png)
                files.write_atomic(out / f"{block.name}.svg", block.svg)
        files.write_atomic(out / f"{name}.md", to_markdown(blocks).encode())
        files.write_atomic(out / "index.html", to_html(blocks).encode())
    except OSError as error:
        raise ValueError(f"--out={out} cannot be written ({error.strerror or error}); choose another") from error
    return out / "index.html"
