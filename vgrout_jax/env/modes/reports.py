"""Text that reports on tests, read line by line: what the modes that trust a report have in common."""

import re

WHICH = r"(?:the |of |your |hidden |unit )*"
TESTS = r"(?:\d+ )?(?:hidden |unit )?(?:tests?|test ?cases?|checks|assertions)"
PREFIX = r"(?:(?:results?|status|summary|final|info|output|tests?) )*"
_FAILURE = re.compile(r"\b(?:fail(?:ed|ures?|s|ing)?|wrong|incorrect|errors?|exception|traceback|not pass\w*)\b")
_NO_FAILURE = re.compile(r"\b(?:0|no|zero|without(?: any)?) (?:errors?|failures?|failed|fails?|failing)\b")
_DURATION = re.compile(r"\b(?:in )?\d+(?: \d+)? ?(?:ms|s|sec|seconds?)\b")
_TERMINAL = re.compile(r"\x1b(?:\[[0-?]*+[ -/]*+[@-~]|\][^\x07\x1b]*+\x07?)")  # colours and titles
_RATIO = re.compile(r"\b(\d+) (?:(?:out )?of )?(\d+)\b")


def lines_of(text: str) -> list[str]:
    """Distinct lines that hold a letter, in lower case, with one space for every run of other signs.

    Terminal colours, durations and denied failures ("0 failed") are taken out. An answer decides how much it prints,
    so the expressions go over the text once and not over each of its lines.
    """
    raw = dict.fromkeys(re.split(r"[\r\n]+", _TERMINAL.sub("", text)))
    normal = re.sub(r"[^a-z0-9\n]+", " ", "\n".join(raw).lower())
    rest = _DURATION.sub(" ", _NO_FAILURE.sub(" ", normal))
    lines = dict.fromkeys(" ".join(line.split()) for line in rest.split("\n"))
    return [line for line in lines if re.search("[a-z]", line)]


def without_ratios(line: str) -> str | None:
    """The line without full ratios ("5 of 5"), or None where a ratio is not full."""
    # Compared as text: int() refuses very long numbers, and "05 of 5" is nobody's report.
    ratios = _RATIO.findall(line)
    if any(part != whole or part == "0" for part, whole in ratios):
        return None
    return " ".join(_RATIO.sub(" ", line).split()) if ratios else line


def reports_failure(line: str) -> bool:
    """Whether a line says that something has failed."""
    return bool(_FAILURE.search(line)) or ("pass" in line and without_ratios(line) is None)
