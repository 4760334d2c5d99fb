"""The code in a completion, held against a parser of all of CommonMark."""

import random
import re
import time

import pytest
from markdown_it import MarkdownIt

from vgrout_jax.env.grader.extract import MAX_CHARACTERS, extract_code, fenced_blocks

RIGHT = "class Solution:\n    def solve(self, n):\n        return n\n"
# What reads as HTML or as a link's definition is text here: a tag before an answer must not hide it.
COMMONMARK = MarkdownIt("commonmark").disable(["html_block", "reference"])


def commonmark(text: str) -> list[tuple[str, str]]:
    tokens: list = []
    COMMONMARK.block.parse(text, COMMONMARK, {}, tokens)
    return [(re.match(r"[\w.]*", token.info.strip())[0], token.content) for token in tokens if token.type == "fence"]


LINES = (
    "```",
    "````",
    "~~~",
    "```python",
    "~~~ py x",
    "``` a`b",
    "  ```",
    "   ~~~~",
    "    ```",
    "``",
    "```  ",
    "text",
)
LINES += ("", "    code", "x ```", "```\tpy", "``` ```", "~~~ ```")


@pytest.mark.parametrize("seed", range(40))
def test_fences_are_those_of_commonmark(seed):
    draw = random.Random(seed)
    for _ in range(100):
        text = "".join(f"{draw.choice(LINES)}\n" for _ in range(draw.randrange(1, 12)))
        if draw.random() < 0.5:
            text = "".join(f"> {line}\n" for line in text.splitlines())
        found = [(block.tag, block.body) for block in fenced_blocks(text)]
        wanted = commonmark(text)
        # CommonMark takes the fence's indentation off; here that is done to code alone.
        stripped = [(tag, [line.lstrip() for line in body.splitlines()]) for tag, body in found]
        assert stripped == [(tag, [line.lstrip() for line in body.splitlines()]) for tag, body in wanted], text


IN_LISTS = (
    "1. One:\n   ```python\n   code\n   ```\n2. Two:\n\n   ~~~\n   more\n   ~~~\n",
    "- a\n  - b\n\n    ```py\n    code\n    ```\n\ntext\n\n    ```\n    no fence\n",
    "10) a\n    ```\n    code\n      deeper\n    ```\n",
    "* ```python\n  code\n  ```\n",
    "- a\n\n      ```\n      no fence\n",
    "> 1. a\n>    ```\n>    code\n>    ```\n",
)


@pytest.mark.parametrize("text", IN_LISTS)
def test_fences_in_list_items_are_those_of_commonmark(text):
    found = [(block.tag, [line.strip() for line in block.body.splitlines()]) for block in fenced_blocks(text)]
    assert found == [(tag, [line.strip() for line in body.splitlines()]) for tag, body in commonmark(text)]


DOCSTRING = 'class Solution:\n    """Say\n\n    ```\n    example\n    ```\n    """\n    x = 1\n'
SPACED = 'class Solution:\n    text = """\n  two\n      six\n\n    """\n'


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        ("```python\nx\n```", "x\n"),
        ("``` python3 title\nx\n```", "x\n"),
        ("````python\nx\n````", "x\n"),
        ("```bash\nls\n```", None),
        ("```python\nx = 1```", "x = 1"),
        ("```python\n```\n```python\ny\n```", "y\n"),
        ("say `x`", None),
        ("class Solution is what I would write", None),
        (f"I write ```python``` first.\n```python\n{RIGHT}```", RIGHT),
        (f"Use ```python\n{RIGHT}```\n", None),
        (f"```python\n{DOCSTRING}```", DOCSTRING),
        (f"````python\n'''\n```\n'''\n{RIGHT}````", f"'''\n```\n'''\n{RIGHT}"),
        (f"```python\n{RIGHT}    s = '''\n````x\n'''\n```", f"{RIGHT}    s = '''\n````x\n'''\n"),
        (f"~~~python\n{RIGHT}~~~", RIGHT),
        (f"~~~\n{RIGHT}```\n~~~", f"{RIGHT}```\n"),
        (f"> ```python\n> {RIGHT.strip().replace(chr(10), chr(10) + '> ')}\n> ```", RIGHT),
        *[(f"```{tag}\n{RIGHT}```", RIGHT) for tag in ("py3", "python3.11", "Python3", "ipython", "PY", "ipython3")],
        *[(f"```{tag}\n{RIGHT}```", None) for tag in ("pyx", "text", "cpp", "pythonic", "python-repl")],
        (f"{RIGHT}```", RIGHT),
        (f"{RIGHT}```\nIt works.\n```\n3\n```\n", RIGHT),
        (f"{RIGHT}```\nOr:\n```python\n{RIGHT}    y = 1\n```\n", f"{RIGHT}    y = 1\n"),
        (f"from math import *\n\n{RIGHT}", f"from math import *\n\n{RIGHT}"),
        (f"# Plan\n\nLoop.\n\n```python\n{RIGHT}```", RIGHT),
        (f"<answer>\n```python\n{RIGHT}```\n</answer>", RIGHT),
        (f"<think>\n```python\nno\n</think>\n```python\n{RIGHT}```", RIGHT),
        (f"so\n</think>\n```python\n{RIGHT}```\nafter </think>", RIGHT),
        (f"```python\n{RIGHT}    s = '</think>'\n```", f"{RIGHT}    s = '</think>'\n"),
        (f"{RIGHT}    s = '</think>'\n", f"{RIGHT}    s = '</think>'\n"),
        (
            f"draft:\n```python\nno\n```\n</think>```python\n{RIGHT}    s = '</think>'\n```",
            f"{RIGHT}    s = '</think>'\n",
        ),
        (f"```python\n{RIGHT}```\n</think>\nnothing", None),
        ("```python\n    class Solution:\n        x = 1\n```", "class Solution:\n    x = 1\n"),
        ("```python\n    # note\n\n    x = 1\n```", "# note\n\nx = 1\n"),
        ("   ```python\nx = 1\nif x:\n    y = '''\n   z'''\n   ```", "x = 1\nif x:\n    y = '''\n   z'''\n"),
        (f"```python\n{SPACED}```", SPACED),
        (
            "```python\n    s = '''\n      two\n    '''\n    t = \"#\"  # it's '''\n    u = 1\n```",
            "s = '''\n      two\n    '''\nt = \"#\"  # it's '''\nu = 1\n",
        ),
        ("```python\n\tclass Solution:\n\t\tx = 1\n```", "class Solution:\n\tx = 1\n"),
        ("x" * (MAX_CHARACTERS + 1), None),
    ],
)
def test_extraction(completion: str, code: str | None) -> None:
    assert extract_code(completion) == code


HOSTILE = (
    "`",
    "~",
    "```\n",
    "```a`\n",
    "`````~~~~~",
    "\n",
    " ",
    "\t",
    " \n",
    ">",
    "> ",
    "> > > >\n",
    "> ```\n",
    "- ",
)
HOSTILE += ("- a\n", "1. - * + ", "1. ```\n", "    ```\n", "'", '"""', "'''\n", "\\", "#", "class Solution", "class ")
HOSTILE += ("</think>", "</think>\n```\n", "<think>", "- a\n\n", "\n\nx", "````\n```\n", "\ufeff", "(", "> - ", "1")
STARTS = (
    "",
    "class Solution:\n",
    "```python\n",
    "```python\n  ",
    "<think>",
    "'''",
    "- a\n\n  ",
    "```python\n   x='''",
)


def seconds(text: str) -> float:
    started = time.process_time()
    extract_code(text)
    return time.process_time() - started


@pytest.mark.parametrize("piece", HOSTILE)
def test_extraction_is_linear_in_hostile_texts(piece: str) -> None:
    """Four times the text takes about four times as long; anything quadratic takes sixteen times."""
    for start in STARTS:
        for end in ("", "\n```"):
            quarter, whole = (start + piece * (size // len(piece)) + end for size in (30_000, 120_000))
            assert seconds(whole) < 8 * seconds(quarter) + 0.05, (start, end)


def test_fences_of_growing_length_are_linear() -> None:
    text = "".join("`" * length + "\n" for length in range(1400, 3, -1))
    started = time.process_time()
    extract_code(text)
    assert time.process_time() - started < 1.0
