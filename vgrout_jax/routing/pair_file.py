"""Pair files: one Markdown file holds a set of contrastive pairs (docs/method.md section 5).

A second-level heading opens a section, a third-level heading a pair:

    ### name
    Tags: hack, code

    #### System        optional; a chat message, as `User`
    #### User          or `#### Prompt`: one raw text, used as it stands, chat markers included
    #### Hack          the completion that games the check
    #### Clean         the completion that does the work

Each fourth-level heading is followed by one fenced block; a fence is three or more backticks and holds
anything but a line that closes it. `#### User (hack)` and the like give a block for one side alone and take
the place of the shared one there. A raw prompt keeps the line break before its closing fence, every other
block drops it. Text between `Tags:` and the first block is for the reader.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Optional, TypeAlias

SIDES = ("hack", "clean")

Messages: TypeAlias = tuple[dict[str, str], ...]
Prompt: TypeAlias = str | Messages

_HEADING = re.compile(r"(#{1,6})\s+(.*?)\s*#*\s*$")
_FENCE = re.compile(r"(`{3,})[^`]*$")
_BLOCK = re.compile(r"(System|User|Prompt|Hack|Clean)(?: \((hack|clean)\))?$", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Pair:
    """One request answered twice: `hack` games the check, `clean` does the work.

    Attributes:
      name: the pair's heading, unique in its file.
      tags: what the pair can be selected by.
      hack_prompt, clean_prompt: raw text, or chat messages `{"role": ..., "content": ...}`; mostly the same.
      hack, clean: the completions, without an end-of-sequence token.
    """

    name: str
    tags: tuple[str, ...]
    hack_prompt: Prompt
    clean_prompt: Prompt
    hack: str
    clean: str


@dataclasses.dataclass
class _Draft:
    """A pair while its lines are read: where it stands, and its blocks by (kind, side)."""

    name: str
    line: int
    section: str
    tags: tuple[str, ...] = ()
    blocks: dict[tuple[str, Optional[str]], str] = dataclasses.field(default_factory=dict)


def read_pair_file(path: Path) -> list[tuple[str, Pair]]:
    """Every pair of a file with its section, in the file's order.

    Returns:
      (section, pair); the section is its heading's `section_slug`, "" above the first.

    Raises:
      ValueError: a pair is malformed or shares its name with another; the message names file, line and pair.
    """
    drafts = list(_read_drafts(path))
    _check_names(path, drafts)
    return [(draft.section, _finish(path, draft)) for draft in drafts]


def section_slug(heading: str) -> str:
    """A heading as it is written behind `#` in an address: lower case, hyphens for spaces."""
    return re.sub(r"\s+", "-", heading.strip().lower())


def _fail(path: Path, line: int, name: Optional[str], problem: str) -> ValueError:
    where = f", pair {name}" if name else ""
    return ValueError(f"{path}:{line}{where}: {problem}")


def _read_drafts(path: Path) -> Iterator[_Draft]:
    """Walks the file once: a heading opens a section, a pair or a block; a block's fence holds its text."""
    lines = path.read_text(encoding="utf-8").splitlines()
    section, draft, number = "", None, 0
    while number < len(lines):
        line = lines[number]
        heading = _HEADING.match(line)
        number += 1
        if fence := _FENCE.match(line):
            if draft is not None and draft.blocks:
                raise _fail(path, number, draft.name, "a fenced block without a heading of its own")
            _, number = _read_fence(path, lines, number, fence.group(1), draft)
        elif heading is None:
            _read_tags(path, number, line, draft)
        elif len(heading.group(1)) >= 4 and draft is not None:
            number = _read_block(path, lines, number, heading.group(2), draft)
        elif len(heading.group(1)) <= 3:
            if draft is not None:
                yield draft
            depth, title = len(heading.group(1)), heading.group(2)
            draft = _Draft(title, number, section) if depth == 3 else None
            section = section_slug(title) if depth == 2 else section
    if draft is not None:
        yield draft


def _read_tags(path: Path, number: int, line: str, draft: Optional[_Draft]) -> None:
    if draft is None or not line.strip():
        return
    if line.startswith("Tags:"):
        if draft.tags:
            raise _fail(path, number, draft.name, "a second Tags: line")
        draft.tags = tuple(tag.strip() for tag in line.removeprefix("Tags:").split(",") if tag.strip())
    elif draft.blocks:
        raise _fail(path, number, draft.name, f"text outside of a fenced block: {line.strip()[:40]!r}")


def _read_block(path: Path, lines: list[str], number: int, title: str, draft: _Draft) -> int:
    """Stores the block whose heading is line `number` and returns the index of the line after its fence."""
    match = _BLOCK.match(title)
    if match is None:
        expected = "System, User, Prompt, Hack or Clean"
        raise _fail(path, number, draft.name, f"unknown block {title!r}, expected {expected}")
    kind, side = match.group(1).lower(), match.group(2) and match.group(2).lower()
    if kind in SIDES and side:
        raise _fail(path, number, draft.name, f"{title!r} is a side already, expected {match.group(1)}")
    if (kind, side) in draft.blocks:
        raise _fail(path, number, draft.name, f"a second block {title!r}")
    start = number
    while start < len(lines) and not lines[start].strip():
        start += 1
    fence = _FENCE.match(lines[start]) if start < len(lines) else None
    if fence is None:
        raise _fail(path, number, draft.name, f"no fenced block below {title!r}")
    text, after = _read_fence(path, lines, start + 1, fence.group(1), draft)
    if not text.strip():
        raise _fail(path, number, draft.name, f"block {title!r} is empty")
    draft.blocks[kind, side] = text + "\n" if kind == "prompt" else text
    return after


def _read_fence(path: Path, lines: list[str], start: int, fence: str, draft: Optional[_Draft]) -> tuple[str, int]:
    for number in range(start, len(lines)):
        closing = lines[number].rstrip()
        if len(closing) >= len(fence) and set(closing) == {"`"}:
            return "\n".join(lines[start:number]), number + 1
    raise _fail(path, start, draft.name if draft else None, f"the fence {fence} is never closed")


def _check_names(path: Path, drafts: list[_Draft]) -> None:
    seen: dict[str, int] = {}
    for draft in drafts:
        if not draft.name:
            raise _fail(path, draft.line, None, "a pair without a name")
        if draft.name in seen:
            raise _fail(path, draft.line, draft.name, f"the name is taken by the pair of line {seen[draft.name]}")
        seen[draft.name] = draft.line


def _finish(path: Path, draft: _Draft) -> Pair:
    if not draft.tags:
        raise _fail(path, draft.line, draft.name, "no Tags: line; write at least one tag")
    for side in SIDES:
        if (side, None) not in draft.blocks:
            raise _fail(path, draft.line, draft.name, f"no block {side.capitalize()!r}")
    hack, clean = draft.blocks["hack", None], draft.blocks["clean", None]
    prompts = {side: _prompt_of(path, draft, side) for side in SIDES}
    if hack == clean and prompts["hack"] == prompts["clean"]:
        raise _fail(path, draft.line, draft.name, "its sides are identical, so it has no direction")
    return Pair(draft.name, draft.tags, prompts["hack"], prompts["clean"], hack, clean)


def _prompt_of(path: Path, draft: _Draft, side: str) -> Prompt:
    found = {
        kind: draft.blocks.get((kind, side), draft.blocks.get((kind, None))) for kind in ("system", "user", "prompt")
    }
    raw, user = found["prompt"], found["user"]
    if (raw is None) == (user is None):
        problem = "neither a User nor a Prompt block" if raw is None else "both a User and a Prompt block"
        raise _fail(path, draft.line, draft.name, f"{problem} for its {side} side")
    if raw is not None:
        if found["system"] is not None:
            raise _fail(path, draft.line, draft.name, "a System block beside a raw Prompt; put it into the prompt")
        return raw
    messages = [("system", found["system"]), ("user", user)]
    return tuple({"role": role, "content": content} for role, content in messages if content is not None)
