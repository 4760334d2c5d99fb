"""Grade completions from a file.

    python -m vgrout_jax.grade --problems=FILE --completions=FILE [--mode=MODE] [--out=FILE]

Completions are JSON lines with `problem_id`, `completion` and optionally `mode`. Each gets one line of output, in
order: its line number and its verdict, or what is wrong with the line. Wrong lines are also named on standard
error; the others are graded all the same, and the exit status is then 1. A table per mode follows on standard
error. Containment is that of training: below the minimum the command refuses to run.
"""

import argparse
import json
import logging
import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from vgrout_jax.config import GraderConfig
from vgrout_jax.env.grader import Grader, GradeRequest, Verdict
from vgrout_jax.env.modes import GT_ONLY, HELDOUT_NAMES, MODES, TRAINING_NAMES, Names
from vgrout_jax.env.problems import Problem, load_problems

_NAMES = {"training": TRAINING_NAMES, "heldout": HELDOUT_NAMES}
_COLUMNS = ("answers", "compile", "solve", "channel", "hack", "reward", "failed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 1 if a line could not be read or graded."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        problems = {problem.id: problem for problem in load_problems(options.problems, setting="--problems")}
        lines = _lines(options.completions)
        grader = Grader(_config(options))
    except (OSError, ValueError, RuntimeError) as error:
        print(f"grade: {error}", file=sys.stderr)
        return 1
    with grader, _output(options.out) as out:
        numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
        work = [(number, _submit(grader, problems, line, options)) for number, line in numbered]
        verdicts, errors = _write(work, out, options.completions)
    _summary(verdicts)
    return 1 if errors else 0


def parse_line(line: bytes, problems: dict[str, Problem], *, default_mode: str, names: Names) -> GradeRequest:
    """The request that a line of the completions file makes.

    Args:
        line: a JSON object; bytes that are not UTF-8 become lone surrogates.
        problems: by id.
        default_mode: of lines without a mode.
        names: what the prompts disclosed.

    Raises:
        ValueError: what is wrong with the line.
    """
    try:
        row = json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"must be a JSON object, got {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"must be a JSON object, got {type(row).__name__}")
    identifier = row.get("problem_id")
    if not isinstance(identifier, (str, int)) or isinstance(identifier, bool):
        raise ValueError(f"problem_id must be a string or integer, got {identifier!r}")
    if str(identifier) not in problems:
        raise ValueError(f"problem_id must be one of the {len(problems)} problems, got {identifier!r}")
    if not isinstance(row.get("completion"), str):
        raise ValueError(f"completion must be a string, got {type(row.get('completion')).__name__}")
    mode = default_mode if row.get("mode") is None else row["mode"]
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    return GradeRequest(problems[str(identifier)], mode, row["completion"], names)


def _submit(
    grader: Grader, problems: dict[str, Problem], line: bytes, options: argparse.Namespace
) -> "tuple[str, Future[list[Verdict]]] | ValueError":
    """The mode of a line and its verdict to come, or what is wrong with it."""
    try:
        request = parse_line(line, problems, default_mode=options.mode, names=_NAMES[options.names])
        return request.mode, grader.submit([request])
    except ValueError as error:
        return error


def _write(
    work: Sequence[tuple[int, "tuple[str, Future[list[Verdict]]] | ValueError"]], out: TextIO, source: str
) -> tuple[list[tuple[str, Verdict]], int]:
    """Write a line for each, in order; returns the verdicts with their modes, and the number of errors."""
    verdicts, errors = [], 0
    for number, outcome in tqdm(work, unit="answer", disable=None):
        line: dict[str, Any] = {"line": number}
        if isinstance(outcome, ValueError):
            line["error"] = str(outcome)
        else:
            mode, (verdict,) = outcome[0], outcome[1].result()
            line |= {"mode": mode, **vars(verdict)}
            verdicts.append((mode, verdict))
            if verdict.status == "failed":
                line |= {"reward": None, "error": "the answer could not be graded"}
        if "error" in line:
            errors += 1
            tqdm.write(f"{source}:{number}: {line['error']}", file=sys.stderr)
        out.write(json.dumps(line) + "\n")
    return verdicts, errors


def _summary(verdicts: Sequence[tuple[str, Verdict]]) -> None:
    """A table per mode: shares in percent, over the answers that were graded."""
    by_mode: dict[str, list[Verdict]] = defaultdict(list)
    for mode, verdict in verdicts:
        by_mode[mode].append(verdict)
    rows = [(mode, by_mode[mode]) for mode in MODES if mode in by_mode]
    if len(rows) > 1:
        rows.append(("all", [verdict for _, verdict in verdicts]))
    print(f"{'mode':14}" + "".join(f"{title:>9}" for title in _COLUMNS), file=sys.stderr)
    for name, group in rows:
        graded = [verdict for verdict in group if verdict.status != "failed"]
        shares = [
            [verdict.compiled for verdict in graded],
            [verdict.correct for verdict in graded],
            [verdict.channel is not None for verdict in graded],
            [verdict.exploited for verdict in graded],
        ]
        cells = [f"{len(group)}"] + [f"{100 * _mean(share):.1f}%" for share in shares]
        cells += [f"{_mean([verdict.reward for verdict in graded]):.3f}", f"{len(group) - len(graded)}"]
        print(f"{name:14}" + "".join(f"{cell:>9}" for cell in cells), file=sys.stderr)


def _mean(values: Sequence[float | bool]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _output(path: str | None) -> Any:
    return open(path, "w", encoding="utf-8") if path else open(sys.stdout.fileno(), "w", closefd=False)


def _config(options: argparse.Namespace) -> GraderConfig:
    return GraderConfig(workers=options.workers, allow_unsandboxed=options.allow_unsandboxed)


def _lines(path: str) -> list[bytes]:
    try:
        return Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise ValueError(f"--completions: {path}: {error.strerror}; name an existing JSONL file") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vgrout_jax.grade", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--problems", required=True, action="append", help="JSONL file, URL, dataset or builtin:smoke"
    )
    parser.add_argument("--completions", required=True, help="JSONL file: problem_id, completion, optional mode")
    parser.add_argument("--mode", choices=MODES, default=GT_ONLY, help="of lines without one (gt_only)")
    parser.add_argument("--names", choices=_NAMES, default="training", help="names that the prompts disclosed")
    parser.add_argument("--out", help="file for the verdicts (standard output)")
    parser.add_argument("--workers", type=int, help="answers graded at a time (one a core)")
    parser.add_argument("--allow_unsandboxed", action="store_true", help="grade below the minimum of containment")
    return parser


if __name__ == "__main__":
    sys.exit(main())
