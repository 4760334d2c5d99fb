"""Runs the command in its usual way, but for one point of the program, where it ends itself with SIGKILL.

    python tests/killed_at.py POINT --config=... --workdir=...

POINT is NAME:COUNT: the COUNT-th passage through the place that NAME stands for. This is the tests' own program; the
package knows nothing of it.
"""

import os
import signal
import sys
import threading
import time


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: object, name: str, count: int) -> None:
    """Dies when a function is called for the `count`-th time."""
    wrap(owner, name, count, lambda original, *args, **kwargs: die())


def after(owner: object, name: str, count: int) -> None:
    """Dies when it returns."""
    wrap(owner, name, count, lambda original, *args, **kwargs: (original(*args, **kwargs), die()))


def during(owner: object, name: str, count: int, seconds: float) -> None:
    """Dies so many seconds after it was called, from another thread; at its end at the latest."""

    def act(original, *args, **kwargs):
        threading.Timer(seconds, die).start()
        original(*args, **kwargs)
        die()

    wrap(owner, name, count, act)


def wrap(owner: object, name: str, count: int, act: object) -> None:
    original, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(None)
        return act(original, *args, **kwargs) if len(calls) == count else original(*args, **kwargs)

    setattr(owner, name, wrapped)


def half_a_line(count: int) -> None:
    """Dies with the first half of a line of metrics.jsonl on disk."""
    from vgrout_jax.run.writer import RunWriter

    def act(original, writer, name, record):
        file = writer._lines[name]
        file.write(f'{{"step": {record["step"]}, "loss": 0.0')
        file.flush()
        die()

    wrap(RunWriter, "_append", count, act)


def arm(point: str) -> None:
    """Prepares the end at the named point."""
    name, _, number = point.partition(":")
    count = int(number or 1)
    from vgrout_jax import train
    from vgrout_jax.common import files
    from vgrout_jax.env.grader import Grader
    from vgrout_jax.evaluation import evaluate
    from vgrout_jax.run import continuation, snapshots
    from vgrout_jax.sampling.generator import Generator
    from vgrout_jax.weights import checkpoint

    places = {
        "start": lambda: before(train, "build_run", count),
        "built": lambda: after(train, "build_run", count),
        "cut_back": lambda: after(continuation, "cut_events", count),
        "generation": lambda: during(Generator, "complete", count, 0.005),
        "generated": lambda: after(Generator, "complete", count),
        "grading": lambda: during(Grader, "submit", count, 0.01),
        "graded": lambda: after(train, "collect", count),
        "update": lambda: before(train, "update", count),
        "updated": lambda: after(train, "update", count),
        "direction": lambda: after(train, "refresh_direction", count),
        "evaluation": lambda: after(evaluate, "_complete", count),
        "line": lambda: half_a_line(count),
        "file": lambda: before(files.os, "replace", count),
        "arrays": lambda: during(snapshots, "write_arrays", count, 0.01),
        "manifest": lambda: before(snapshots, "_digests", count),
        "rename": lambda: before(snapshots, "_sync_folder", count),
        "renamed": lambda: before(snapshots, "_sync_folder", 2 * count),
        "pruning": lambda: before(snapshots, "remove_state", count),
        "adapter": lambda: after(checkpoint, "_write_factors", count),
        "summary": lambda: before(train.RunWriter, "write_summary", count),
    }
    places[name]()


if __name__ == "__main__":
    arm(sys.argv.pop(1))
    sys.stdout.reconfigure(line_buffering=True)
    started = time.perf_counter()
    from vgrout_jax import main

    main.run()
