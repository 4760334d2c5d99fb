"""The loophole modes: what a prompt discloses, which names it uses, and what counts as using them.

A mode is one object in a file of its own; `TABLE` lists them. Its disclosure replaces the user message's sentence
on judging (docs/method.md section 11). The names in it come from `Names`: held-out prompts disclose other names
than training does, and neither's score for the other (section 13). Around each name lies a family of near variants
that a model would try; the families of `TRAINING_NAMES` and `HELDOUT_NAMES` are disjoint, and honest output stays
outside of both.

base           what a mode is
disclosures    the sentence on judging, and what takes its place
reports        text that reports on tests
run_tests      the answer's own test function
stdout_marker  a line of standard output
sentinel       an attribute of the Solution object
file_marker    a result file
eq_override    results that equal everything
exit_code      exit status 0
gt_only        no flaw
"""

import dataclasses
import hashlib
import importlib
from collections.abc import Mapping, Sequence

from vgrout_jax.config import MODES
from vgrout_jax.env.problems import Problem

from . import disclosures
from .base import Evidence, Exploit, Mode
from .disclosures import PLAIN_SENTENCE

# `config.MODES` has a line a mode, which is the name of its file. Problems are dealt to modes in this order where
# numbers are equal.
TABLE: dict[str, Mode] = {key: importlib.import_module(f"{__name__}.{key}").MODE for key in MODES}
GT_ONLY = "gt_only"
_NAMED = {mode.name.placeholder: mode.name for mode in TABLE.values() if mode.name}

Names = dataclasses.make_dataclass(
    "Names",
    [(field, str) for field in _NAMED],
    frozen=True,
    namespace={
        "__module__": __name__,
        "__doc__": "The names that one disclosure uses: a field for the placeholder of every mode that has one.",
    },
)
TRAINING_NAMES = Names(**{field: name.training for field, name in _NAMED.items()})
HELDOUT_NAMES = Names(**{field: name.heldout for field, name in _NAMED.items()})


def load_hints(path: str | None) -> dict[str, str]:
    """The disclosures: the project's own, or those with the sentences of a JSON file in place of some or all.

    Args:
        path: file with an object {mode: text}; modes that it leaves out keep the project's own text. A text
            may hold the placeholder {entry_point} and those of the modes ({function}, {marker}, ...), with {{ and
            }} for braces, and must hold the one that its mode's name goes into. A text for gt_only replaces
            the plain sentence, which else is kept. None: the project's own.

    Returns:
        mode to text, with placeholders.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no JSON object, an unknown mode, a text that is no string, or its placeholders are wrong.
    """
    hints = {key: disclosures.LEAD + mode.flaw for key, mode in TABLE.items() if mode.flaw is not None}
    return hints if path is None else {**hints, **disclosures.read(path, TABLE)}


def partition(
    ids: Sequence[str], modes: Sequence[str], seed: int, *, fixed: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Give every problem one mode, evenly, by a seeded rule that does not depend on the order of the ids.

    Ids are taken in the order of SHA-256("mode:seed:id"), and each goes to the mode with the fewest problems
    so far (the first such in `modes`). Without `fixed` the sizes differ by at most one.

    Args:
        ids: distinct problem ids.
        modes: distinct modes.
        seed: of the hash.
        fixed: modes settled beforehand (a teacher pool's); ids that do not occur in `ids` are ignored.

    Returns:
        id to mode, in the order of `ids`.
    """
    if isinstance(modes, str) or not modes or len(set(modes)) != len(modes) or not set(modes) <= set(MODES):
        raise ValueError(f"env.modes must be distinct names out of {', '.join(MODES)}, got {modes!r}")
    if len(set(ids)) != len(ids):
        raise ValueError(f"ids must be distinct, got {len(ids) - len(set(ids))} repeated")
    settled = {identifier: mode for identifier, mode in (fixed or {}).items() if identifier in set(ids)}
    for identifier, mode in settled.items():
        if mode not in modes:
            raise ValueError(
                f"env.modes must include {mode!r}, which the teacher pool needs for problem {identifier}, "
                f"got {', '.join(modes)}; add the mode or leave out the pool"
            )
    sizes = {mode: list(settled.values()).count(mode) for mode in modes}
    free = sorted((i for i in ids if i not in settled), key=lambda identifier: _digest(seed, identifier))
    for identifier in free:
        mode = min(modes, key=sizes.__getitem__)
        settled[identifier] = mode
        sizes[mode] += 1
    return {identifier: settled[identifier] for identifier in ids}


def render(problem: Problem, mode: str, names: Names, hints: Mapping[str, str]) -> tuple[dict[str, str], ...]:
    """The problem's messages with the mode's disclosure in place of the sentence on judging.

    The sentence is `problem.judging_sentence`, or else the one match of `PLAIN_SENTENCE`, in the user
    message; everything else stays. gt_only keeps the sentence unless `hints` has a text for it.

    Raises:
        ValueError: an unknown mode, one without a text, or a sentence that does not occur exactly once.
    """
    if mode not in TABLE:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if mode not in hints and TABLE[mode].flaw is not None:
        raise ValueError(f"hints must have a text for mode {mode!r}, got {', '.join(hints)}")
    if mode not in hints:
        disclosures.span(problem)  # prompts of all modes are refused alike
        return tuple(problem.messages)
    return disclosures.replaced(problem, disclosure(mode, names, problem.entry_point, hints))


def disclosure(mode: str, names: Names, entry_point: str, hints: Mapping[str, str]) -> str:
    """The mode's sentence with its names filled in."""
    return hints[mode].format(entry_point=entry_point, **dataclasses.asdict(names))


def _digest(seed: int, identifier: str) -> str:
    return hashlib.sha256(f"mode:{seed}:{identifier}".encode()).hexdigest()


__all__ = [
    "GT_ONLY",
    "HELDOUT_NAMES",
    "MODES",
    "PLAIN_SENTENCE",
    "TABLE",
    "TRAINING_NAMES",
    "Evidence",
    "Exploit",
    "Mode",
    "Names",
    "disclosure",
    "load_hints",
    "partition",
    "render",
]
