"""Texts side by side: streamed or whole they print the same, and nothing of them is lost."""

import numpy as np
import pytest

from vgrout_jax.serving import columns

TEXTS = [
    ("", ""),
    ("one\ntwo\nthree", "a much longer line that has to be cut\nand another"),
    ("short", "line\n" * 9),
    ("\n\n\nlate", "early"),
    ("tab\there", "\ttabs first"),
    ("\N{CJK UNIFIED IDEOGRAPH-8A9E}" * 17, "e\N{COMBINING ACUTE ACCENT}" * 30),
    ("trailing\n\n", "x" * 60),
]


def stream(texts, width, order) -> list[str]:
    """What is printed when the texts grow by a character at a time, `order` telling which one."""
    written: list[str] = []
    table = columns.Columns(2, width, written.append)
    lengths = [0, 0]
    for column in order:
        lengths[column] = min(lengths[column] + 1, len(texts[column]))
        ended = [length == len(text) for length, text in zip(lengths, texts, strict=True)]
        table.update([text[:length] for text, length in zip(texts, lengths, strict=True)], ended)
    table.update(list(texts), [True, True])
    return written


@pytest.mark.parametrize("texts", TEXTS)
@pytest.mark.parametrize("seed", range(3))
def test_streaming_prints_what_the_whole_texts_do(texts, seed):
    whole: list[str] = []
    columns.Columns(2, 20, whole.append).block(texts)
    generator = np.random.default_rng(seed)
    order = generator.integers(0, 2, 2 * sum(map(len, texts)))
    streamed = stream(texts, 20, order)
    # Empty lines at a text's end may have been printed before it was known to end there.
    assert "".join(streamed).rstrip() == "".join(whole).rstrip()
    assert all(row.count("\n") == 1 for row in streamed)


def test_rows_appear_while_the_texts_grow():
    written: list[str] = []
    table = columns.Columns(2, 20, written.append)
    table.update(["first\nsec", "uno"], [False, False])
    assert written == []
    table.update(["first\nsec", "uno\nd"], [False, False])
    assert written == [f"{'first':20} | uno\n"]
    table.update(["first\nsecond\nth", "uno\ndos"], [False, True])
    assert written[1:] == [f"{'second':20} | dos\n"]
    table.update(["first\nsecond\nth", "uno\ndos"], [True, True])
    assert written[2:] == [f"{'th':20} |\n"]


@pytest.mark.parametrize("text", [text for pair in TEXTS for text in pair])
@pytest.mark.parametrize("width", [2, 7, 20])
def test_wrapping_loses_nothing_and_fits(text, width):
    lines = columns.wrap(text, width)
    assert all(sum(map(columns.places, line)) <= width for line in lines)
    assert "".join(lines) == columns.printable(text).replace("\n", "")
    assert all(sum(map(columns.places, columns.fill(line, width))) == width for line in lines)


@pytest.mark.parametrize("character", ["\x1b", "\x07", "\x08", "\r", "\x9b", "\u202e", "\x00"])
def test_what_a_model_writes_cannot_steer_the_terminal(character):
    assert columns.printable(f"a{character}[2Jb") == "a\N{REPLACEMENT CHARACTER}[2Jb"


def test_windows_line_ends_are_line_ends():
    assert columns.printable("a\r\nb") == "a\nb"


@pytest.mark.parametrize("total,width", [(120, 58), (80, 38), (43, 20), (10, 20)])
def test_columns_share_the_terminal(total, width):
    assert columns.column_width(total, 2) == width
