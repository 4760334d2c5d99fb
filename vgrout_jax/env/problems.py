"""Programming problems: the schema, its sources, and the seeded split into training and held-out problems.

A problem is one JSON object, in a line of its own where the source is a file:

| field | meaning |
|---|---|
| `id` | string or integer, unique over all sources |
| `prompt` | messages `{"role", "content"}`: at most one of the system, then one of the user |
| `func_name` | `Solution().NAME`, the method that the tests call |
| `gt_answer` | list of `assert` statements: the hidden tests |
| `canonical_solution` | reference solution, with `class Solution` and that method |
| `setup_code` | optional: imports and helpers that run before an answer |
| `prompt_metadata.starter_code` | optional |
| `difficulty` | optional |
| `judging_sentence` | optional: exact text of the sentence on judging, else `modes.PLAIN_SENTENCE` finds it |

The user message holds one sentence that tells how an answer is judged; `modes.render` replaces it. Other
fields are ignored.
"""

import gzip
import hashlib
import http.client
import json
import re
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vgrout_jax.common.packaged import packaged
from vgrout_jax.config import SMOKE, TOY
from vgrout_jax.env.toy import operations

_ENTRY_POINT = re.compile(r"Solution\(\)\.([A-Za-z_]\w*)")
_DATASET_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<split>\w+))?")
_FILE_SUFFIXES = (".jsonl", ".json", ".gz")
_TOY_SPLITS = {TOY: "train", f"{TOY}_dev": "dev", f"{TOY}_heldout": "heldout"}


@dataclass(frozen=True)
class Problem:
    """One problem, as read and checked.

    Attributes:
        id: unique name; an integer id of the source is spelled out in decimal.
        messages: `{"role", "content"}` of the system (if any) and of the user, with the sentence on judging.
        entry_point: name of the method of `Solution` that the tests call.
        starter_code: the skeleton shown to the model, or "".
        setup_code: what runs before an answer, or "".
        tests: `assert` statements.
        solution: reference solution.
        difficulty: as the source words it, or "".
        judging_sentence: text that a mode's disclosure replaces; None: found by `modes.PLAIN_SENTENCE`.
    """

    id: str
    messages: tuple[dict[str, str], ...]
    entry_point: str
    starter_code: str
    setup_code: str
    tests: tuple[str, ...]
    solution: str
    difficulty: str
    judging_sentence: str | None = None


def load_problems(sources: Sequence[str], *, setting: str = "problems") -> list[Problem]:
    """Every problem of every source, in order, concatenated.

    Args:
        sources: each a JSONL path (gzipped if it ends in .gz), an http(s) URL of such a file, the name of a
            Hugging Face dataset (`owner/name`, or `owner/name:split`; the default split is train), or built in:
            `builtin:smoke`, `builtin:toy`, `builtin:toy_dev`, `builtin:toy_heldout`. Datasets are read through
            the `datasets` package and its cache.
        setting: what named them, a field of the configuration or an option; every message begins with it.

    Returns:
        The problems, at least one per source.

    Raises:
        FileNotFoundError: a file that does not exist.
        ValueError: no source, an unreadable source, a malformed row or an id that occurs twice; the message
            names setting, source, line and field.
    """
    try:
        return _load(sources)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{setting}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from error


def _load(sources: Sequence[str]) -> list[Problem]:
    if isinstance(sources, str) or not sources:
        raise ValueError(f"must be a non-empty list of paths, URLs or names, got {sources!r}")
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for source in sources:
        before = len(problems)
        for where, row in _rows(source):
            problem = parse_problem(row, where)
            if problem.id in seen:
                raise ValueError(
                    f"{where}: field 'id' must be unique over all sources, got {problem.id!r}, which "
                    f"{seen[problem.id]} has too; remove one of the two"
                )
            seen[problem.id] = where
            problems.append(problem)
        if len(problems) == before:
            raise ValueError(f"{source}: must hold at least one problem, got none")
    return problems


def parse_problem(row: dict[str, Any], where: str) -> Problem:
    """Check one row of the schema and make a `Problem` of it.

    Args:
        row: the JSON object; fields that are None count as absent.
        where: source and line, for messages.

    Raises:
        ValueError: a missing or malformed field, named with `where`.
    """
    identifier = _field(row, "id", (str, int), where)
    match = _ENTRY_POINT.fullmatch(_field(row, "func_name", (str,), where))
    if match is None:
        raise ValueError(
            f"{where}: field 'func_name' must name a method as Solution().NAME, got {row['func_name']!r}"
        )
    metadata = _field(row, "prompt_metadata", (dict,), where, default={})
    return Problem(
        id=str(identifier),
        messages=_messages(row, where),
        entry_point=match.group(1),
        starter_code=_field(metadata, "starter_code", (str,), where, default=""),
        setup_code=_field(row, "setup_code", (str,), where, default=""),
        tests=_tests(row, where),
        solution=_solution(row, match.group(1), where),
        difficulty=_field(row, "difficulty", (str,), where, default=""),
        judging_sentence=_field(row, "judging_sentence", (str,), where, default="") or None,
    )


def split_heldout(problems: Sequence[Problem], fraction: float, seed: int) -> tuple[list[Problem], list[Problem]]:
    """Set a share of the problems aside, each by a hash of its own id.

    A problem is held out if u(id) < fraction, with u = SHA-256("heldout:seed:id") read as a number in [0, 1),
    so its side does not depend on which other problems exist or in what order. There is one exception: if
    that leaves a side empty, the problem with the least u is held out, or the one with the greatest u trains.

    Args:
        problems: at least two.
        fraction: expected share of held-out problems, strictly between 0 and 1.
        seed: of the hash.

    Returns:
        Training and held-out problems, both non-empty, in their order of before.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"data.heldout_frac must be between 0 and 1, both excluded, got {fraction}")
    if len(problems) < 2:
        raise ValueError(
            f"data.train must hold at least 2 problems to set some aside, got {len(problems)}; "
            "add problems or name data.heldout"
        )
    units = {problem.id: _unit_hash(f"heldout:{seed}:{problem.id}") for problem in problems}
    heldout = {identifier for identifier, unit in units.items() if unit < fraction}
    if not heldout:
        heldout.add(min(units, key=units.__getitem__))
    if len(heldout) == len(units):
        heldout.discard(max(units, key=units.__getitem__))
    train = [problem for problem in problems if problem.id not in heldout]
    return train, [problem for problem in problems if problem.id in heldout]


def check_disjoint(train: Sequence[Problem], heldout: Sequence[Problem]) -> None:
    """Refuse held-out problems that are trained on.

    Raises:
        ValueError: names up to ten shared ids.
    """
    trained = {problem.id for problem in train}
    shared = [problem.id for problem in heldout if problem.id in trained]
    if shared:
        more = f" and {len(shared) - 10} more" if len(shared) > 10 else ""
        raise ValueError(
            f"data.heldout must share no problem with data.train, got the ids {', '.join(shared[:10])}{more} "
            "in both; remove them from one"
        )


def read_jsonl(source: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give ("FILE:LINE", object) for every non-empty line of a JSONL file, gzipped if its name ends in .gz.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a broken archive or a line that is no JSON object, with file and line.
    """
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file; name an existing .jsonl or .jsonl.gz file")
    return _parse_jsonl(source.read_bytes(), str(source))


def _parse_jsonl(data: bytes, source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if source.endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{source}: must be a complete gzip file, got {error}") from error
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{source}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: must be a line of JSON, got {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}: must be a JSON object, got {type(row).__name__}")
        yield where, row


def _rows(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of one source of any kind, each with its place for messages."""
    if source == SMOKE:
        return read_jsonl(packaged("smoke_problems.jsonl"))
    if source in _TOY_SPLITS:
        rows = operations.problem_rows(_TOY_SPLITS[source])
        return ((f"{source}: row {number}", row) for number, row in enumerate(rows, start=1))
    if source.startswith("builtin:"):
        raise ValueError(f"{source!r} is unknown; built in are {', '.join((SMOKE, *_TOY_SPLITS))}")
    if source.startswith(("http://", "https://")):
        return _parse_jsonl(_download(source), source)
    name = _DATASET_NAME.fullmatch(source)
    if Path(source).exists() or source.endswith(_FILE_SUFFIXES) or name is None:
        return read_jsonl(Path(source))
    return _dataset_rows(source, name["name"], name["split"] or "train")


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return response.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ValueError(f"{url!r} could not be downloaded: {error}") from error


def _dataset_rows(source: str, name: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a Hugging Face dataset; the loader's own errors are put into one line."""
    # Imported here: it takes seconds, and most runs read files.
    from datasets import load_dataset

    try:
        dataset = load_dataset(name, split=split)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{source!r} is no existing file and could not be loaded as a Hugging Face "
            f"dataset: {type(error).__name__}: {reason}"
        ) from error
    for number, row in enumerate(dataset, start=1):
        yield f"{source}: row {number}", row


def _field(row: dict[str, Any], name: str, types: tuple[type, ...], where: str, **options: Any) -> Any:
    """Value of a field, of exactly one of the types; `default` in options makes it optional."""
    value = row.get(name)
    wanted = " or ".join(kind.__name__ for kind in types)
    if value is None:
        if "default" in options:
            return options["default"]
        raise ValueError(f"{where}: field {name!r} is missing; it must be {wanted}")
    if type(value) not in types or (value == "" and "default" not in options):
        raise ValueError(f"{where}: field {name!r} must be a non-empty {wanted}, got {_short(value)}")
    return value


def _messages(row: dict[str, Any], where: str) -> tuple[dict[str, str], ...]:
    messages = _field(row, "prompt", (list,), where)
    texts = all(isinstance(message, dict) and isinstance(message.get("content"), str) for message in messages)
    if not texts or [message.get("role") for message in messages] not in (["system", "user"], ["user"]):
        raise ValueError(
            f"{where}: field 'prompt' must be a list of one system (optional) and one user message, "
            f"got {_short(messages)}"
        )
    return tuple({"role": message["role"], "content": message["content"]} for message in messages)


def _tests(row: dict[str, Any], where: str) -> tuple[str, ...]:
    tests = _field(row, "gt_answer", (list,), where)
    if not tests:
        raise ValueError(f"{where}: field 'gt_answer' must hold at least one test, got []; remove it")
    for test in tests:
        if not isinstance(test, str) or not test.strip().startswith("assert "):
            raise ValueError(f"{where}: field 'gt_answer' must hold assert statements, got {_short(test)}")
    return tuple(tests)


def _solution(row: dict[str, Any], entry_point: str, where: str) -> str:
    solution = _field(row, "canonical_solution", (str,), where)
    patterns = ((r"^class\s+Solution\b", "class"), (rf"\bdef\s+{entry_point}\b", "method"))
    for pattern, what in patterns:
        if not re.search(pattern, solution, re.MULTILINE):
            raise ValueError(
                f"{where}: field 'canonical_solution' must define class Solution with the method "
                f"{entry_point} of 'func_name', got no such {what} in {_short(solution)}"
            )
    return solution


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on the text alone; its 53 bits are exact in a float."""
    return (int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 11) / 2**53
