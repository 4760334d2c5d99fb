"""Texts side by side on a terminal, printed line by line while they still grow."""

import unicodedata
from collections.abc import Callable, Sequence

SEPARATOR = " | "
_LEAST_WIDTH = 20
_TAB = 4
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def column_width(total: int, count: int) -> int:
    """Width of one of `count` columns on a terminal of `total` places."""
    return max(_LEAST_WIDTH, (total - len(SEPARATOR) * (count - 1)) // count)


def printable(text: str) -> str:
    """The text with tabs as spaces and every other control character replaced, line breaks excepted.

    What a model writes could otherwise move the cursor or worse.
    """
    plain = text.replace("\r\n", "\n").expandtabs(_TAB)
    return "".join(
        c if c == "\n" or unicodedata.category(c)[0] != "C" else "\N{REPLACEMENT CHARACTER}" for c in plain
    )


def places(character: str) -> int:
    """How many places of a terminal a character takes: 0, 1 or 2."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def wrap(text: str, width: int) -> list[str]:
    """The lines of a text, cut where they are longer than `width` places; nothing but line breaks is lost."""
    lines = []
    for paragraph in printable(text).split("\n"):
        line, used = "", 0
        for character in paragraph:
            if used + places(character) > width:
                lines.append(line)
                line, used = "", 0
            line, used = line + character, used + places(character)
        lines.append(line)
    return lines


def fill(line: str, width: int) -> str:
    """A line with spaces up to `width` places."""
    return line + " " * (width - sum(map(places, line)))


class Columns:
    """Prints growing texts side by side, a row as soon as none of its cells can change any more."""

    def __init__(self, count: int, width: int, write: Callable[[str], object]):
        """Columns for `count` texts, each `width` places wide, to `write`, which is given whole rows."""
        self._count = count
        self._width = width
        self._write = write
        self._printed = 0

    def update(self, texts: Sequence[str], ended: Sequence[bool]) -> None:
        """Prints the rows that are final.

        Args:
            texts: each as far as it goes; an earlier text must be the beginning of a later one.
            ended: whether a text is complete; until then its last line may still grow.
        """
        lines = [
            wrap(text.rstrip("\n") if done else text, self._width) for text, done in zip(texts, ended, strict=True)
        ]
        final = [len(rows) if done else len(rows) - 1 for rows, done in zip(lines, ended, strict=True)]
        known = [count for count, done in zip(final, ended, strict=True) if not done]
        for row in range(self._printed, min(known) if known else max(final)):
            self.row([rows[row] if row < len(rows) else "" for rows in lines])
            self._printed += 1

    def row(self, cells: Sequence[str]) -> None:
        """Prints one row of cells that fit."""
        self._write(SEPARATOR.join(fill(cell, self._width) for cell in cells).rstrip() + "\n")

    def block(self, texts: Sequence[str]) -> None:
        """Prints complete texts as rows of their own, such as titles and verdicts."""
        Columns(self._count, self._width, self._write).update(texts, [True] * self._count)

    def rule(self) -> None:
        """Prints a line across all columns."""
        self._write("-+-".join("-" * self._width for _ in range(self._count)) + "\n")
