"""Shows what routing did: a run's deployed and as-trained policies answer the same question side by side.

    python -m vgrout_jax.chat --workdir=runs/a --problem=0        a held-out problem, with the grader's verdicts
    python -m vgrout_jax.chat --workdir=runs/a --prompt="..."     any message
    python -m vgrout_jax.chat --workdir=runs/a                    a message a line; /3 is held-out problem 3

Both policies draw with the same random numbers, those of the run's evaluation for a held-out problem. Ctrl-C ends
an answer, the end of the input the conversation. A message stands alone: earlier ones are not remembered.
"""

import argparse
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vgrout_jax.common.command_line import Parser, UsageError, end_with_one_line
from vgrout_jax.run.reader import read_workdir
from vgrout_jax.serving import columns

if TYPE_CHECKING:
    from vgrout_jax.serving.side_by_side import Conversation

TITLES = ("deployed", "as trained")
_HELP = "A message a line; /N is held-out problem N. Ctrl-C ends an answer, Ctrl-D the conversation."


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the flags.

    Raises:
        UsageError: a flag is unknown, missing or of a wrong value, or two of them contradict each other.
    """
    parser = Parser(prog="python -m vgrout_jax.chat", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="of a run that has an adapter")
    parser.add_argument("--problem", type=int, help="number of a held-out problem, from 0")
    parser.add_argument("--prompt", help="a user's message")
    parser.add_argument("--temperature", type=float, help="default: the run's eval.temperature; 0: greedy")
    parser.add_argument("--max_new_tokens", type=int, help="default: the run's rollout.max_new_tokens")
    options = parser.parse_args(arguments)
    if options.problem is not None and options.prompt is not None:
        raise UsageError("--problem and --prompt exclude each other; give one of them")
    if options.problem is not None and options.problem < 0:
        raise UsageError(f"--problem must be >= 0, got {options.problem}")
    if options.prompt is not None and not options.prompt.strip():
        raise UsageError("--prompt must hold a message, got an empty one")
    if options.temperature is not None and not 0 <= options.temperature < float("inf"):
        raise UsageError(f"--temperature must be >= 0 (0: greedy), got {options.temperature}")
    if options.max_new_tokens is not None and options.max_new_tokens < 1:
        raise UsageError(f"--max_new_tokens must be >= 1, got {options.max_new_tokens}")
    return options


def main(arguments: Sequence[str]) -> None:
    """Checks flags and workdir, loads the policies, and answers."""
    options = parse(arguments)
    run = read_workdir(options.workdir)
    if not (options.workdir / "adapter").is_dir():
        raise ValueError(f"--workdir must hold a run with an adapter, but {options.workdir}/adapter is missing")
    from vgrout_jax.env.grading import GradingFailed
    from vgrout_jax.serving.side_by_side import Conversation

    conversation = Conversation(run, temperature=options.temperature, max_new_tokens=options.max_new_tokens)
    try:
        if options.problem is not None:
            show_problem(conversation, options.problem, _write)
        elif options.prompt is not None:
            show_prompt(conversation, options.prompt, _write)
        else:
            converse(conversation, _lines(), _write)
    except GradingFailed as error:
        raise UsageError(str(error)) from error
    finally:
        conversation.close()


def converse(conversation: "Conversation", lines: Iterator[str], write: Callable[[str], object]) -> None:
    """Answers line after line; what is wrong with one is said, and the next one read."""
    for line in lines:
        number = re.fullmatch(r"/(\d+)", line.strip())
        try:
            if number:
                show_problem(conversation, int(number[1]), write)
            elif line.strip().startswith("/"):
                write(f"{_HELP}\n")
            elif line.strip():
                show_prompt(conversation, line.strip(), write)
        except (ValueError, FileNotFoundError) as error:
            write(f"error: {error}\n")


def show_problem(conversation: "Conversation", number: int, write: Callable[[str], object]) -> None:
    """A held-out problem, both answers, and under each the grader's verdict."""
    from vgrout_jax.serving.side_by_side import describe

    prompt = conversation.heldout(number)
    write(f"held-out problem {number}, {prompt.problem.id}, mode {prompt.mode}\n\n")
    write(columns.printable(prompt.text) + "\n\n")
    table, texts = _stream(conversation.ask_problem(prompt), write)
    table.rule()
    table.block([describe(verdict) for verdict in conversation.grade(prompt, texts)])


def show_prompt(conversation: "Conversation", text: str, write: Callable[[str], object]) -> None:
    """Both answers to a message."""
    _stream(conversation.ask(text), write)


def _stream(
    answers: Iterator[tuple[list[str], list[bool]]], write: Callable[[str], object]
) -> tuple[columns.Columns, list[str]]:
    """Prints both answers as they come, up to their end or Ctrl-C; returns the table and the texts."""
    width = columns.column_width(shutil.get_terminal_size((120, 24)).columns, len(TITLES))
    table = columns.Columns(len(TITLES), width, write)
    table.block(TITLES)
    table.rule()
    texts = [""] * len(TITLES)
    try:
        for texts, ended in answers:
            table.update(texts, ended)
    except KeyboardInterrupt:
        table.update(texts, [True] * len(TITLES))
    return table, texts


def _lines() -> Iterator[str]:
    """The lines of standard input, asked for on a terminal."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    print(_HELP)
    while True:
        try:
            yield input("\n> ")
        except EOFError:
            print()
            return


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    end_with_one_line(lambda: main(sys.argv[1:]))
