"""The code in a completion."""

import re
import textwrap

MAX_CHARACTERS = 2 << 20  # of a completion; a longer one is not read
_PYTHON_TAGS = ("", "python", "python3", "py", "python2", "cpython")
_OPEN = re.compile(r"`{3,}[ \t]*([\w+.#-]*)[^\n`]*\n")
_CLOSE_AT_LINE = re.compile(r"^[ \t]*`{3,}", re.MULTILINE)
_CLOSE_ANYWHERE = re.compile(r"`{3,}")
_CLASS = re.compile(r"^[ \t]*class[ \t]+Solution\b", re.MULTILINE)
_BARE = re.compile(r"(?:from|import|class|def|@|#|\"\"\")")


def extract_code(completion: str) -> str | None:
    """The code that a completion submits.

    Fenced blocks tagged Python or not at all count; a fence that is never closed runs to the end. Of several,
    the last one that defines `class Solution` is the submission, or else the last one. Text before the end of a
    leading thought (`</think>`) does not count. Without any fence, a completion that starts as code is code.

    Returns:
        The code with line ends as `\\n` and without common indentation, or None where there is none.
    """
    if len(completion) > MAX_CHARACTERS:
        return None
    text = completion.rpartition("</think>")[2].replace("\r\n", "\n").replace("\r", "\n")
    blocks = [body for tag, body in _blocks(text) if tag.lower() in _PYTHON_TAGS and body.strip()]
    if blocks:
        submitted = [body for body in blocks if _CLASS.search(body)]
        return _dedented((submitted or blocks)[-1])
    bare = text.strip().lstrip("\ufeff")
    if "```" not in text and _BARE.match(bare) and _CLASS.search(bare):
        return _dedented(bare + "\n")
    return None


def _blocks(text: str) -> list[tuple[str, str]]:
    """Tag and body of every fenced block."""
    found = []
    at = 0
    while opening := _OPEN.search(text, at):
        start = opening.end()
        closing = _CLOSE_AT_LINE.search(text, start) or _CLOSE_ANYWHERE.search(text, start)
        end = closing.start() if closing else len(text)
        found.append((opening[1], text[start:end]))
        at = closing.end() if closing else len(text)
    return found


def _dedented(code: str) -> str:
    return textwrap.dedent(code.lstrip("\ufeff"))
