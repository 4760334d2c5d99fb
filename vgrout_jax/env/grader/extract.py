"""The code in a completion: fenced blocks as CommonMark says, read in one pass that is linear in hostile texts.

A parser of all of Markdown takes microseconds for each character of a text that is made for it, which is seconds for
an answer; only fences, and the list items and quotes that they may lie in, matter here.
"""

import re
from typing import NamedTuple

MAX_CHARACTERS = 1 << 19  # of a completion; a longer one is not read
_MAX_BLOCKS = 2048  # what follows them is not read
_MAX_QUOTES = 3  # quotes in quotes
_MAX_ITEMS = 8  # list items in list items
_PYTHON_TAG = re.compile(r"(?:[ic]?python(?:[23](?:\.\d+)*)?|py[23]?)?", re.IGNORECASE)
_TAG = re.compile(r"[\w+.#-]*")
_ITEM = r"(?:[-+*]|\d{1,9}[.)])[ \t]++"
_RUN = r"`{3,}+|~{3,}+"
# What matters outside of a block: a fence or a quote, a list item, a line at the margin after an empty one.
_EVENT = re.compile(
    rf"^(?P<lead>(?P<blank>[ \t]*+)(?P<items>(?:{_ITEM})*+))(?:(?P<fence>{_RUN})(?P<info>[^\n]*+)|(?P<quote>>))"
    rf"|^(?P<item_blank>[ \t]*+)(?P<item>{_ITEM})"
    r"|^[ \t]*+\n(?=\S)",
    re.MULTILINE,
)
_FENCE = re.compile(rf"^ {{0,3}}+(?:{_RUN})(?P<info>[^\n]*+)(?:\n|\Z)", re.MULTILINE)
_CLOSING = re.compile(rf"^(?P<blank>[ \t]*+)(?P<fence>{_RUN})[ \t]*+(?:\n|\Z)", re.MULTILINE)
_QUOTED = re.compile(r"(?: {0,3}+>[^\n]*+(?:\n|\Z))++")
_QUOTE_SIGN = re.compile(r"^ {0,3}+>[ ]?+", re.MULTILINE)
_CLASS = re.compile(r"^[ \t]*+class[ \t]++Solution[ \t]*+[:([\\]", re.MULTILINE)
_CODE = re.compile(r"\s*+(?:(?:from|import|class|def|async)[ \t]|@|#|\"\"\"|''')")
_FIRST_LINE = re.compile(r"^([ \t]*+)[^\s#]", re.MULTILINE)
_THOUGHT, _THOUGHT_END = "<think>", "</think>"
# Comments and string literals, closed or not.
_LITERAL = re.compile(
    r"#[^\n]*+"
    r'|"""(?:[^"\\]++|\\.|"(?!""))*+(?:""")?+'
    r"|'''(?:[^'\\]++|\\.|'(?!''))*+(?:''')?+"
    r'|"(?:[^"\\\n]++|\\.)*+"?+'
    r"|'(?:[^'\\\n]++|\\.)*+'?+",
    re.DOTALL,
)


class Block(NamedTuple):
    """A block of code.

    Attributes:
        tag: first word of the info string.
        body: what lies between the fences, as it stands.
        indent: columns before the opening fence.
        start: where the opening fence's line begins in the text.
        end: where the closing fence's line ends.
        unclosed: the opening fence, where nothing closes it.
    """

    tag: str
    body: str
    indent: int
    start: int
    end: int
    unclosed: str = ""


def extract_code(completion: str) -> str | None:
    """The code that a completion submits.

    Fenced blocks tagged Python or not at all count; one that is never closed runs to the end. Of several, the
    last one that defines `class Solution` is the submission, or else the last one. Text before the end of a
    leading thought (`</think>`, outside of code) does not count. A completion that starts as code, up to its end
    or to a closing fence, is a block as well.

    Returns:
        The code with line ends as `\\n` and without the indentation that all of it has, or None where there is none.
    """
    if len(completion) > MAX_CHARACTERS:
        return None
    text = completion.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff")
    blocks = [block for block in _blocks(_without_thought(text)) if _PYTHON_TAG.fullmatch(block.tag)]
    written = [block for block in blocks if block.body.strip()]
    submitted = [block for block in written if _CLASS.search(block.body)] or written
    return _dedented(_closed(submitted[-1])) if submitted else None


def fenced_blocks(text: str, at: int = 0, *, quotes: int = 0) -> list[Block]:
    """The fenced blocks of a text from a position on, those in list items and quotes included."""
    found: list[Block] = []
    items: list[int] = []  # columns where the contents of the open list items begin
    while len(found) < _MAX_BLOCKS and (event := _EVENT.search(text, at)):
        at = event.end()
        kind = event.lastgroup
        if kind == "item":
            _enter(items, *event.group("item_blank", "item"))
        elif kind is None:
            items.clear()
        elif kind == "quote":
            quoted = _QUOTED.match(text, event.start()) if quotes < _MAX_QUOTES else None
            if quoted:
                inner = fenced_blocks(_QUOTE_SIGN.sub("", quoted[0]), quotes=quotes + 1)
                found += [block._replace(start=quoted.start(), end=quoted.end()) for block in inner]
                at = quoted.end()
        else:
            _enter(items, event["blank"], event["items"])
            column, margin = _columns(event["lead"]), items[-1] if items else 0
            if column <= margin + 3 and not (event["fence"][0] == "`" and "`" in event["info"]):
                found.append(_block(text, event, column, margin))
                at = found[-1].end
    return found


def _enter(items: list[int], blank: str, markers: str) -> None:
    """Leave the list items that a line does not reach, and open one for its markers."""
    column = _columns(blank) if blank else 0
    while items and items[-1] > column:
        items.pop()
    if markers and len(items) < _MAX_ITEMS and column <= (items[-1] if items else 0) + 3:
        items.append(_columns(blank + markers))


def _columns(text: str) -> int:
    return len(text.expandtabs(4) if "\t" in text else text)


def _block(text: str, opening: re.Match[str], column: int, margin: int) -> Block:
    """The block that an opening fence begins; `margin` is the column of the contents that it lies in."""
    run, start = opening["fence"], min(opening.end() + 1, len(text))
    tag = _TAG.match(opening["info"].strip())[0]
    for closing in _CLOSING.finditer(text, start):
        same = closing["fence"][0] == run[0] and len(closing["fence"]) >= len(run)
        if same and _columns(closing["blank"]) <= margin + 3:
            return Block(tag, text[start : closing.start()], column, opening.start(), closing.end())
    return Block(tag, text[start:], column, opening.start(), len(text), unclosed=run)


def _closed(block: Block) -> Block:
    """The block, closed at the end of its last line if it ends so: many a model writes its closing fence there."""
    if not block.unclosed:
        return block
    text = block.body.rstrip()
    code = text.rstrip(block.unclosed[0])
    return block._replace(body=code) if len(text) - len(code) >= len(block.unclosed) else block


def _blocks(text: str) -> list[Block]:
    """Fenced blocks, and before them what a completion that starts as code holds up to a closing fence."""
    bare = _bare(text)
    return [bare, *fenced_blocks(text, bare.end)] if bare else fenced_blocks(text)


def _bare(text: str) -> Block | None:
    if not _CODE.match(text):
        return None
    fence = _FENCE.search(text)
    end = fence.start() if fence else len(text)
    # A fence with a tag opens a block, and what stands before it is prose.
    if (fence and fence["info"].strip()) or not _CLASS.search(text, 0, end):
        return None
    return Block("", text[:end], 0, 0, fence.end() if fence else end)


def _without_thought(text: str) -> str:
    """The text after a leading thought, which may begin in the prompt and may hold drafts of code."""
    if text.lstrip().startswith(_THOUGHT):
        return text.partition(_THOUGHT_END)[2] or text
    if _THOUGHT_END not in text:
        return text
    at = 0
    for block in [*_blocks(text), Block("", "", 0, len(text), len(text))]:
        end = text.find(_THOUGHT_END, at, block.start)
        if end >= 0:
            return text[end + len(_THOUGHT_END) :]
        at = block.end
    return text


def _dedented(block: Block) -> str:
    """A block's code without the indentation of its first line, which string literals keep.

    What the fence is indented by is not part of the text, and goes everywhere.
    """
    code = block.body.lstrip("\ufeff")
    first = _FIRST_LINE.search(code)
    margin = first[1] if first else ""
    if not margin:
        return code
    outer = min(block.indent, len(margin) - len(margin.lstrip(" ")))
    code = re.sub(f"^ {{0,{outer}}}", "", code, flags=re.MULTILINE)
    before, after = "\n" + margin[outer:], "\n"
    pieces, at = [], 0
    code = "\n" + code
    for literal in _LITERAL.finditer(code):
        pieces += [code[at : literal.start()].replace(before, after), literal[0]]
        at = literal.end()
    return "".join([*pieces, code[at:].replace(before, after)])[1:]
