"""The teacher pool: stored completions that join a group's own rollouts (docs/method.md section 12).

A row is one JSON object in a line of a JSONL file:

| field | meaning |
|---|---|
| `problem_id` | string or integer |
| `completion` | text of the answer |
| `completion_ids` | optional: its token ids, kept only where the tokenizer's hash is recorded |
| `tokenizer_sha256` | optional: that hash, in hexadecimal; else the sidecar's, `tokenizer_sha256.txt` |
| `reward` | finite number, used as it is |
| `hacked` | whether the mode's channel fired |
| `gt_pass` | whether the answer is correct |
| `env_mode` or `mode` | optional: the mode whose prompt was answered; without it run_tests |

The sidecar lies in a file's folder and speaks for all rows there that record no hash themselves. A row needs
a text or, together with a hash, token ids. Other fields are ignored, the stored prompt among them: a
completion is trained under its group's own prompt.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np

from vgrout_jax.env.modes import GT_ONLY, MODES
from vgrout_jax.env.problems import SMOKE, builtin_file, read_jsonl

DEFAULT_MODE = "run_tests"  # of a row that records none
SIDECAR = "tokenizer_sha256.txt"
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class TeacherRow:
    """One stored completion with its verdict.

    Attributes:
        problem_id: as in `Problem.id`.
        mode: the mode whose group it may join.
        completion: text, or "" where only token ids are stored.
        token_ids: of the completion, or None without a recorded hash.
        reward: as stored.
        hacked: the mode's channel fired.
        correct: the hidden tests passed.
        has_mode: whether the row records its mode.
        tokenizer_sha256: of the tokenizer that made `token_ids`, or None.
    """

    problem_id: str
    mode: str
    completion: str
    token_ids: tuple[int, ...] | None
    reward: float
    hacked: bool
    correct: bool
    has_mode: bool = True
    tokenizer_sha256: str | None = None

    @property
    def exploited(self) -> bool:
        """Paid without being right: hacked and not correct."""
        return self.hacked and not self.correct

    def ids_for(self, tokenizer_sha256: str, eos_ids: Sequence[int]) -> tuple[int, ...] | None:
        """The stored token ids up to and including the first EOS, if this tokenizer made them.

        Args:
            tokenizer_sha256: hash of the policy's tokenizer.
            eos_ids: every id that ends a completion.

        Returns:
            The ids, or None: the text is to be encoded anew.

        Raises:
            ValueError: the ids are of another tokenizer and there is no text.
        """
        if self.token_ids is None or self.tokenizer_sha256 != tokenizer_sha256:
            if not self.completion:
                raise ValueError(
                    f"teacher.pool: the row of problem {self.problem_id} must have a text for this tokenizer "
                    f"({tokenizer_sha256}), got only ids of {self.tokenizer_sha256}; add field 'completion'"
                )
            return None
        ends = [place for place, token in enumerate(self.token_ids) if token in eos_ids]
        return self.token_ids[: ends[0] + 1] if ends else self.token_ids


@dataclass(frozen=True)
class TeacherPool:
    """Stored completions, looked up by problem and mode.

    Attributes:
        rows: all of them, in the order of the files.
    """

    rows: tuple[TeacherRow, ...]
    _groups: dict[tuple[str, str], list[TeacherRow]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for row in self.rows:
            self._groups.setdefault((row.problem_id, row.mode), []).append(row)

    def __len__(self) -> int:
        return len(self.rows)

    def required_modes(self) -> dict[str, str]:
        """Problem to mode, for every problem with a row that records none; for `modes.partition(fixed=)`."""
        return {row.problem_id: row.mode for row in self.rows if not row.has_mode}

    def align(self, problem_modes: Mapping[str, str]) -> "TeacherPool":
        """The rows that can join a group of these training problems.

        A row joins the groups of its own problem and mode. A gt_only row joins the groups of its problem that
        are shown with the plain sentence, whatever the problem's mode. All others are left out.

        Args:
            problem_modes: training problem to mode, as `modes.partition` gives it.

        Returns:
            A pool of at least one row; the difference of the lengths is the number of rows left out.

        Raises:
            ValueError: no problem is shared, or no row's mode is its problem's.
        """
        shared = [row for row in self.rows if row.problem_id in problem_modes]
        if not shared:
            answered = _some({row.problem_id for row in self.rows})
            raise ValueError(
                f"teacher.pool must share problems with data.train, got none: the pool answers {answered}, "
                f"data.train has {_some(set(problem_modes))}; name a pool and problems that belong together"
            )
        rows = tuple(row for row in shared if row.mode in (problem_modes[row.problem_id], GT_ONLY))
        if not rows:
            modes = sorted({row.mode for row in shared})
            raise ValueError(
                f"teacher.pool must have rows in their problems' modes, got {len(shared)} rows of "
                f"{', '.join(modes)} and none that fits; change env.modes or data.seed"
            )
        return TeacherPool(rows)

    def draw(self, problem_id: str, mode: str, count: int, rng: np.random.Generator) -> list[TeacherRow]:
        """Different rows of one problem and mode, drawn at random.

        Args:
            problem_id: of the group.
            mode: in which the group is shown.
            count: rows wanted.
            rng: the only source of chance; the pool keeps no state, so a resumed run draws the same.

        Returns:
            `count` rows, or fewer (down to []) where the pool has no more: own rollouts fill the rest.
        """
        if count < 0:
            raise ValueError(f"teacher.per_prompt must be >= 0, got {count}")
        rows = self._groups.get((problem_id, mode), [])
        return [rows[int(place)] for place in rng.permutation(len(rows))[:count]]


def load_pool(sources: Sequence[str]) -> TeacherPool:
    """Read a pool.

    Args:
        sources: each a JSONL file (gzipped if it ends in .gz), a folder of files *.jsonl and *.jsonl.gz (read
            in the order of their names), or `builtin:smoke`.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: no source, a source without rows, or a malformed row, with file, line and field.
    """
    if isinstance(sources, str) or not sources:
        raise ValueError(f"teacher.pool must be a non-empty list of files or folders, got {sources!r}")
    rows: list[TeacherRow] = []
    for source in sources:
        before = len(rows)
        for file, tokenizer_sha256 in _files(source):
            rows.extend(parse_row(row, where, tokenizer_sha256) for where, row in read_jsonl(file))
        if len(rows) == before:
            raise ValueError(f"teacher.pool: {source} must hold at least one row, got none")
    return TeacherPool(tuple(rows))


def parse_row(row: dict[str, Any], where: str, folder_sha256: str | None) -> TeacherRow:
    """Check one row and make a `TeacherRow` of it.

    Args:
        row: the JSON object.
        where: file and line, for messages.
        folder_sha256: tokenizer hash of the sidecar, or None.
    """
    tokenizer_sha256 = row.get("tokenizer_sha256", folder_sha256)
    if tokenizer_sha256 is not None:
        _check(where, "tokenizer_sha256", tokenizer_sha256, "64 lower-case hexadecimal digits", _is_hash)
    mode = row.get("env_mode", row.get("mode"))
    if mode is not None:
        _check(where, "env_mode", mode, f"one of {', '.join(MODES)}", MODES.__contains__)
    token_ids = row.get("completion_ids")
    if token_ids is not None:
        _check(where, "completion_ids", token_ids, "a non-empty list of integers >= 0", _is_token_ids)
    kept_ids = tuple(token_ids) if token_ids is not None and tokenizer_sha256 is not None else None
    completion = row.get("completion")
    if completion is not None or kept_ids is None:
        _check(where, "completion", completion, "a non-empty string", _is_text)
    for name, rule in (("reward", "a finite number"), ("hacked", "a bool"), ("gt_pass", "a bool")):
        _check(where, name, row.get(name), rule, _is_reward if name == "reward" else _is_bool)
    _check(where, "problem_id", row.get("problem_id"), "a string or an integer", _is_identifier)
    return TeacherRow(
        problem_id=str(row["problem_id"]),
        mode=mode or DEFAULT_MODE,
        completion=completion or "",
        token_ids=kept_ids,
        reward=float(row["reward"]),
        hacked=row["hacked"],
        correct=row["gt_pass"],
        has_mode=mode is not None,
        tokenizer_sha256=tokenizer_sha256,
    )


def _files(source: str) -> Iterator[tuple[Path | Traversable, str | None]]:
    """The files of a source, each with the tokenizer hash of its folder's sidecar."""
    if source == SMOKE:
        yield builtin_file("smoke_teacher.jsonl"), None
        return
    if source.startswith("builtin:"):
        raise ValueError(f"teacher.pool: {source!r} is unknown; the only built-in pool is {SMOKE}")
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"teacher.pool: {source}: no such file or folder; name an existing one or {SMOKE}")
    folder = path if path.is_dir() else path.parent
    tokenizer_sha256 = None
    if (folder / SIDECAR).is_file():
        tokenizer_sha256 = (folder / SIDECAR).read_text(encoding="utf-8").strip()
        _check(str(folder / SIDECAR), "hash", tokenizer_sha256, "64 lower-case hexadecimal digits", _is_hash)
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith((".jsonl", ".jsonl.gz")))
    yield from ((file, tokenizer_sha256) for file in files)


def _check(where: str, name: str, value: Any, rule: str, accepts: Any) -> None:
    if not accepts(value):
        text = "none" if value is None else repr(value)[:80]
        raise ValueError(f"{where}: field {name!r} must be {rule}, got {text}")


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def _is_token_ids(value: Any) -> bool:
    return isinstance(value, list) and value != [] and all(type(token) is int and token >= 0 for token in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _is_reward(value: Any) -> bool:
    # The bound refuses NaN, infinities and integers that no float can hold.
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _is_identifier(value: Any) -> bool:
    return type(value) is int or (type(value) is str and value != "")


def _some(identifiers: set[str]) -> str:
    """Up to five ids, for messages."""
    return ", ".join(sorted(identifiers)[:5]) + (", ..." if len(identifiers) > 5 else "")
