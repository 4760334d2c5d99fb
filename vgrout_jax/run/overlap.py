"""Checks of a run's data taken together: what no single file can tell."""

import hashlib
import re
from collections.abc import Iterable, Sequence

from vgrout_jax.env.modes import PLAIN_SENTENCE
from vgrout_jax.env.problems import Problem
from vgrout_jax.env.world import World
from vgrout_jax.routing.pair_file import SIDES, Pair

_NAMED = 5  # items that a message names
_TELLING = 40  # signs that a text must have to tell one problem from another


def check_world(world: World, pairs: Sequence[Pair]) -> None:
    """Refuses sets that share problems, and a teacher's row that this tokenizer cannot use.

    Raises:
        ValueError: names the problems, the pair or the row.
    """
    check_apart(world.train, world.heldout)
    check_pairs(pairs, (*world.train, *world.heldout))
    for row in world.pool.rows if world.pool else ():
        row.ids_for(world.tokenizer.sha256, world.tokenizer.eos_ids)


def check_apart(train: Sequence[Problem], heldout: Sequence[Problem]) -> None:
    """Held-out problems that are trained on under another id.

    Raises:
        ValueError: names up to five of them, each with its twin.
    """
    trained = {_fingerprint(problem): problem.id for problem in train}
    shared = [(problem.id, trained[key]) for problem in heldout if (key := _fingerprint(problem)) in trained]
    if shared:
        raise ValueError(
            f"data.heldout must share no problem with data.train, got {_some(f'{a} = {b}' for a, b in shared)} "
            "(the same text and tests under two ids); remove one of the two, or name data.heldout"
        )


def check_pairs(pairs: Sequence[Pair], problems: Sequence[Problem]) -> None:
    """Pairs are about other things than the problems (docs/method.md section 5).

    A pair shares a problem where its name is the problem's id, its prompt holds the problem's text, or a side holds
    the reference solution.

    Raises:
        ValueError: names up to five pairs, each with its problem.
    """
    identifiers = {problem.id for problem in problems}
    statements = {parts: p.id for p in problems if len("".join(parts := _statement(p))) >= _TELLING}
    solutions = {(text,): p.id for p in problems if len(text := _words(p.solution)) >= _TELLING}
    shared = []
    for pair in pairs:
        found = pair.name if pair.name in identifiers else None
        asked = {_words(_prompt_text(getattr(pair, f"{side}_prompt"))) for side in SIDES}
        answered = {_words(getattr(pair, side)) for side in SIDES}
        found = found or _held(asked, statements) or _held(answered, solutions)
        if found is not None:
            shared.append(f"{pair.name} = problem {found}")
    if shared:
        raise ValueError(
            f"direction.pairs must share no problem with data.train or data.heldout, got {_some(shared)}; write "
            "pairs about other things, or leave these out with direction.tags"
        )


def world_sha256(world: World) -> str:
    """Hash of all that a run reads of its world: problems, modes, disclosures and the teacher's rows."""
    digest = hashlib.sha256()
    parts = (*world.train, "heldout", *world.heldout, sorted(world.mode_of.items()), sorted(world.hints.items()))
    for part in (*parts, *(world.pool.rows if world.pool else ())):
        digest.update(repr(part).encode("utf-8", "backslashreplace") + b"\n")
    return digest.hexdigest()


def _fingerprint(problem: Problem) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return _statement(problem), tuple(sorted(map(_words, problem.tests)))


def _statement(problem: Problem) -> tuple[str, ...]:
    """What stands before and after the sentence on judging in the user message."""
    text, sentence = problem.messages[-1]["content"], problem.judging_sentence
    parts = text.split(sentence) if sentence else PLAIN_SENTENCE.split(text)
    return tuple(words for part in parts if (words := _words(part)))


def _words(text: str) -> str:
    """In lower case, with single spaces, so that layout makes no difference."""
    return re.sub(r"\s+", " ", text).strip().lower()


def _prompt_text(prompt: str | Sequence[dict[str, str]]) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _held(texts: Iterable[str], known: dict[tuple[str, ...], str]) -> str | None:
    """The problem all of whose parts one of these texts holds."""
    found = (id for text in texts for parts, id in known.items() if all(part in text for part in parts))
    return next(found, None)


def _some(items: Iterable[str]) -> str:
    listed = list(items)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more
