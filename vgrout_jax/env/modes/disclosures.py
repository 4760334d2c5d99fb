"""The sentence on judging: where it stands in a user message, and the texts that replace it."""

import json
import re
import string
from collections.abc import Mapping
from pathlib import Path

from vgrout_jax.env.problems import Problem

from .base import Mode

# The sentence on judging as the benchmark's data words it; other data can carry a field `judging_sentence`.
PLAIN_SENTENCE = re.compile(
    r"\b(?:Your|The) (?:solution|answer|code)\b[^.!?\n]*?"
    r"\bpass(?:es)? all (?:of )?(?:the )?(?:hidden )?(?:tests|test cases)\."
)
LEAD = "Your solution should be a method of the class Solution called {entry_point} and is accepted if "


def span(problem: Problem) -> tuple[int, int]:
    """Where the sentence on judging begins and ends in the user message.

    Raises:
        ValueError: it does not occur exactly once.
    """
    text = problem.messages[-1]["content"]
    pattern = re.compile(re.escape(problem.judging_sentence)) if problem.judging_sentence else PLAIN_SENTENCE
    spans = [match.span() for match in pattern.finditer(text)]
    if len(spans) != 1:
        raise ValueError(
            f"problem {problem.id}: the user message must hold its sentence on judging exactly once, found "
            f"it {len(spans)} times; name the exact text in the problem's field 'judging_sentence'"
        )
    return spans[0]


def replaced(problem: Problem, sentence: str) -> tuple[dict[str, str], ...]:
    """The problem's messages with a sentence in the place of the one on judging."""
    *before, user = problem.messages
    start, end = span(problem)
    text = user["content"]
    return (*before, {"role": "user", "content": text[:start] + sentence + text[end:]})


def read(path: str, table: Mapping[str, Mode]) -> dict[str, str]:
    """The texts of a JSON file {mode: text}, checked; raises as `load_hints` says."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"env.hints must name an existing JSON file, got {path!r}")
    try:
        texts = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"env.hints: {path} must hold JSON, got {error}") from error
    if not isinstance(texts, dict):
        raise ValueError(f"env.hints: {path} must hold an object {{mode: text}}, got {type(texts).__name__}")
    for key, text in texts.items():
        if key not in table:
            raise ValueError(f"env.hints: {path}: modes must be among {', '.join(table)}, got {key!r}")
        placeholders = ["entry_point", *(mode.name.placeholder for mode in table.values() if mode.name)]
        _check(table[key], text, path, placeholders)
    return texts


def _check(mode: Mode, text: object, path: str, known: list[str]) -> None:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"env.hints: {path}: the text of {mode.key} must be a non-empty string, got {text!r}")
    try:
        parts = [part[1:] for part in string.Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"env.hints: {path}: {mode.key}: {error}; write {{{{ and }}}} for braces") from error
    for field, specification, conversion in parts:
        if field not in known or specification or conversion:
            names = ", ".join(f"{{{name}}}" for name in known)
            raise ValueError(f"env.hints: {path}: {mode.key}: placeholders must be among {names}, got {{{field}}}")
    # A flaw that has a name must disclose it through its placeholder: else held-out prompts would lie.
    if mode.name and mode.name.placeholder not in [part[0] for part in parts]:
        raise ValueError(
            f"env.hints: {path}: the text of {mode.key} must hold {{{mode.name.placeholder}}}, got {text!r}; "
            "held-out prompts put another name there"
        )
