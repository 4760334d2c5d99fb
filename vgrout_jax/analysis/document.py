"""A document of headings, paragraphs, tables, figures and code, as one HTML page and as Markdown.

Both forms are made of the same blocks, so they cannot say different things. The page has its pictures inside and
asks nothing of the network.
"""

import base64
import dataclasses
import html
import re
from collections.abc import Callable, Sequence
from typing import TypeAlias


@dataclasses.dataclass(frozen=True)
class Heading:
    """A section's title; level 1 is the document's."""

    text: str
    level: int = 2


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """Running text; `strong` for what must not be missed."""

    text: str
    strong: bool = False


@dataclasses.dataclass(frozen=True)
class Items:
    """A list of texts."""

    texts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells below a header; the first column is text, the others stand to the right."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture in both formats, stored beside the Markdown as NAME.png and NAME.svg."""

    name: str
    png: bytes
    svg: bytes
    caption: str


@dataclasses.dataclass(frozen=True)
class Code:
    """Text of unknown content, shown as it is."""

    text: str
    caption: str = ""


Block: TypeAlias = Heading | Paragraph | Items | Table | Figure | Code

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #111; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #bbb; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 14px; display: block; overflow-x: auto; }
caption, figcaption, .caption { text-align: left; font-size: 14px; color: #444; padding: 0.3rem 0; }
th, td { border-bottom: 1px solid #ccc; padding: 0.25rem 0.7rem; text-align: right; vertical-align: top; }
th:first-child, td:first-child, td.text { text-align: left; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
pre { background: #f4f4f4; border: 1px solid #ddd; padding: 0.6rem; overflow-x: auto; white-space: pre-wrap;
      font-size: 13px; }
p.strong { font-weight: bold; }
"""
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def to_html(blocks: Sequence[Block]) -> str:
    """The whole page; well-formed XML as well as HTML, with every picture inside."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "Report")
    body = "\n".join(_HTML[type(block)](block) for block in blocks)
    head = f'<meta charset="utf-8"/><title>{_text(title)}</title><style>{_STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n'


def to_markdown(blocks: Sequence[Block]) -> str:
    """The same in Markdown, with links to the figures' files beside it."""
    return "\n\n".join(_MARKDOWN[type(block)](block) for block in blocks) + "\n"


def to_text(blocks: Sequence[Block]) -> str:
    """Headings, paragraphs, lists and aligned tables for a terminal; figures and code are left out."""
    parts = [_TEXT[type(block)](block) for block in blocks if type(block) in _TEXT]
    return "\n\n".join(parts) + "\n"


def printable(text: str) -> str:
    """Characters that no page may hold, such as NUL and lone surrogates, as U+FFFD; of line ends, newlines."""
    return _UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def _text(text: str) -> str:
    return html.escape(printable(text))


def _html_table(table: Table) -> str:
    caption = f"<caption>{_text(table.caption)}</caption>" if table.caption else ""
    head = "".join(f"<th>{_text(cell)}</th>" for cell in table.header)
    rows = "\n".join("<tr>" + "".join(map(_html_cell, row)) + "</tr>" for row in table.rows)
    return f"<table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>"


def _html_cell(cell: str) -> str:
    words = len(cell.split()) > 4 and not cell[:1].isdigit()
    return f'<td class="text">{_text(cell)}</td>' if words else f"<td>{_text(cell)}</td>"


def _html_figure(figure: Figure) -> str:
    data = base64.b64encode(figure.svg).decode()
    image = f'<img src="data:image/svg+xml;base64,{data}" alt="{_text(figure.caption)}"/>'
    return f"<figure>{image}<figcaption>{_text(figure.caption)}</figcaption></figure>"


def _html_code(code: Code) -> str:
    caption = f'<p class="caption">{_text(code.caption)}</p>\n' if code.caption else ""
    return f"{caption}<pre><code>{_text(code.text)}</code></pre>"


def _html_paragraph(paragraph: Paragraph) -> str:
    return f"<p{' class=' + chr(34) + 'strong' + chr(34) if paragraph.strong else ''}>{_text(paragraph.text)}</p>"


_HTML: dict[type, Callable] = {
    Heading: lambda block: f"<h{block.level}>{_text(block.text)}</h{block.level}>",
    Paragraph: _html_paragraph,
    Items: lambda block: "<ul>" + "".join(f"<li>{_text(text)}</li>" for text in block.texts) + "</ul>",
    Table: _html_table,
    Figure: _html_figure,
    Code: _html_code,
}


def _escaped(text: str) -> str:
    """Text in which Markdown sees no markup, on one line."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(printable(text).split()))


def _markdown_table(table: Table) -> str:
    rule = ["---", *["---:"] * (len(table.header) - 1)]
    rows = [table.header, rule, *table.rows]
    lines = ["| " + " | ".join(cell if row is rule else _escaped(cell) for cell in row) + " |" for row in rows]
    return "\n".join([f"{_escaped(table.caption)}\n"] * bool(table.caption) + lines)


def _markdown_figure(figure: Figure) -> str:
    caption = _escaped(figure.caption)
    return f"![{caption}]({figure.name}.png)\n\n{caption} ([vector form]({figure.name}.svg))"


def _markdown_code(code: Code) -> str:
    text = printable(code.text)
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    caption = f"{_escaped(code.caption)}\n\n" if code.caption else ""
    return f"{caption}{fence}text\n{text}\n{fence}"


_MARKDOWN: dict[type, Callable] = {
    Heading: lambda block: f"{'#' * block.level} {_escaped(block.text)}",
    Paragraph: lambda block: f"**{_escaped(block.text)}**" if block.strong else _escaped(block.text),
    Items: lambda block: "\n".join(f"* {_escaped(text)}" for text in block.texts),
    Table: _markdown_table,
    Figure: _markdown_figure,
    Code: _markdown_code,
}


def _text_table(table: Table) -> str:
    rows = [table.header, *table.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.header))]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([table.caption] * bool(table.caption) + lines)


_TEXT: dict[type, Callable] = {
    Heading: lambda block: block.text,
    Paragraph: lambda block: block.text,
    Items: lambda block: "\n".join(f"* {text}" for text in block.texts),
    Table: _text_table,
}
