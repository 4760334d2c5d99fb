"""What the small commands share: flags whose mistakes are one line, and an orderly end."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn


class UsageError(Exception):
    """What the user can mend; printed as one line."""


def one_line(error: Exception) -> str:
    """The message without line breaks; of a traceback that a library puts into it, the last line."""
    text = str(error).strip()
    if "Traceback (most recent call last)" in text:
        text = text.splitlines()[-1]
    return " ".join(text.split()) or type(error).__name__


class Parser(argparse.ArgumentParser):
    """argparse whose errors are a `UsageError` and whose flags must be spelled out."""

    def __init__(self, **settings: str):
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would print below a page of usage."""
        raise UsageError(message)


def end_with_one_line(command: Callable[[], None]) -> NoReturn:
    """Runs a command and exits: 0 if it ends well, 1 and one line for what the user can mend, 130 and 143 if stopped.

    Temporary files are cleaned up in every case but SIGKILL, since a signal ends the command by an exception.
    """

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    # Libraries' advice and notices would stand between a command's own lines.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        command()
    except (UsageError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {one_line(error)}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough; what is still buffered has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(0)
