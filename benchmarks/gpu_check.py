"""Everything that only an accelerator can tell, in one command: correctness first, then every benchmark.

    ./launch/gpu_check.sh --out=DIR                                  Qwen3-4B's shapes, under eight minutes
    ./launch/gpu_check.sh --shape=tiny --platform=cpu --out=DIR      the same things in small, on the CPU

Each part is a process of its own, so that one that fails neither ends the others nor leaves memory behind; its output
goes to DIR/NAME.log, its figures to DIR/NAME.json. Parts that the time does not allow are skipped and named. At the
end one table holds the project's targets against what was measured, and DIR/check.json has all of it. The exit status
is 1 where a part failed, which every part does that is wrong, but not where a target is missed.

Needs Python 3.11 or later with jax for the device, flax, optax, jaxtyping and numpy; no network, no data, no weights.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import shapes, tables

HERE = Path(__file__).resolve().parent
_PLATFORMS = {"cuda": "cuda,cpu", "rocm": "rocm,cpu", "tpu": "tpu,cpu", "cpu": "cpu"}
FULL = "qwen3-4b"
_LEAST_SECONDS = 10.0  # of the budget that must be left to begin a part


@dataclasses.dataclass(frozen=True)
class Part:
    """A command of benchmarks/.

    Attributes:
        name: of its log and figures.
        script: its module.
        arguments: beside --json.
        full: arguments at Qwen3-4B's shapes alone.
        shaped: whether it takes --shape.
    """

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    full: tuple[str, ...] = ()
    shaped: bool = True


# What the targets ask for comes first. Compilation is cold where these programs are compiled first, in `memory`.
PARTS = (
    Part("roofline", "roofline", ("--dtype=bfloat16",), shaped=False),
    Part("correctness", "correctness"),
    Part("memory", "memory"),
    Part("again", "memory"),
    Part("sampler", "sampler", ("--repeats=2",), full=("--rows=64,256", "--context=900")),
    Part("step", "step", ("--arms=routeV,none", "--repeats=1", "--warm=short")),
    Part("update", "update", ("--repeats=2",), full=("--prompts=2",)),
)


@dataclasses.dataclass(frozen=True)
class Target:
    """A figure of a part, and what it should be.

    Attributes:
        what: in the table.
        part: whose JSON holds it.
        read: takes it from there.
        most: what it may be at most, or at least where `at_least`.
        absolute: whether it speaks of the accelerator and of Qwen3-4B alone.
    """

    what: str
    part: str
    read: Callable[[dict[str, Any]], float]
    most: float
    at_least: bool = False
    absolute: bool = True


def _clock(figures: dict[str, Any]) -> str:
    return "cpu_s" if figures["roofline"]["clock"] == "cpu" else "wall_s"


def _decode_rate(batch: int) -> Callable[[dict[str, Any]], float]:
    def read(figures: dict[str, Any]) -> float:
        return next(row["tok/s"] for row in figures["batches"] if row["rows"] == batch)

    return read


def _utilisation(arm: str, counted: str) -> Callable[[dict[str, Any]], float]:
    return lambda figures: figures["arms"][arm]["update"][counted]


TARGETS = (
    Target(
        "update, routeV over none",
        "step",
        lambda f: f["routeV_over_none"]["update_" + _clock(f)],
        1.75,
        absolute=False,
    ),
    Target("step, routeV over none", "step", lambda f: f["routeV_over_none"]["step_" + _clock(f)], 1.35),
    Target("decode at batch 64, tokens/s", "sampler", _decode_rate(64), 13_000.0, at_least=True),
    Target("decode at batch 256, tokens/s", "sampler", _decode_rate(256), 20_000.0, at_least=True),
    Target(
        "update of none, model FLOP utilisation", "step", _utilisation("none", "mfu_unshared"), 0.5, at_least=True
    ),
    Target("update of routeV, likewise", "step", _utilisation("routeV", "mfu_unshared"), 0.5, at_least=True),
    Target("update of none, prompts counted once a pass", "step", _utilisation("none", "mfu"), 0.5, at_least=True),
    Target("update of routeV, prompts counted once", "step", _utilisation("routeV", "mfu"), 0.5, at_least=True),
    Target("step of routeV, seconds", "step", lambda f: f["arms"]["routeV"]["step"]["wall_s"], 40.0),
    Target("step's peak memory, GB", "step", lambda f: f["arms"]["routeV"]["peak_gb"], 149.0),
    Target("compilation, cold, seconds", "memory", lambda f: f["compiling_s"], 60.0),
    Target("compilation, from the cache, seconds", "again", lambda f: f["compiling_s"], 10.0),
)


def command(part: Part, options: argparse.Namespace) -> list[str]:
    """The part's command line."""
    own = [f"--shape={options.shape}"] if part.shaped else []
    own += [*part.arguments, *(part.full if options.shape == FULL else ())]
    return [sys.executable, "-m", f"{HERE.name}.{part.script}", *own, f"--json={options.out / part.name}.json"]


def environment(options: argparse.Namespace) -> dict[str, str]:
    """The parts' environment: the platform, one compilation cache, the package on the path, lines in order."""
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "JAX_PLATFORMS": _PLATFORMS[options.platform],
        "JAX_COMPILATION_CACHE_DIR": str(options.out / "compilation-cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",  # so that an error is the last line of a part's log, after what it printed
    }


def run(part: Part, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Runs a part for at most `seconds`: its status (done, failed, cut off), what it took, and its last line."""
    log, began = options.out / f"{part.name}.log", time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        try:
            done = subprocess.run(
                command(part, options),
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment(options),
                timeout=seconds,
            )
            status = "done" if done.returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "cut off"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return {"status": status, "seconds": time.monotonic() - began, "last_line": lines[-1] if lines else ""}


def run_parts(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Runs the chosen parts in their order as long as there is time, and tells of each."""
    end = time.monotonic() + 60 * options.minutes
    chosen = [part for part in PARTS if part.name in options.parts]
    found: dict[str, dict[str, Any]] = {}
    for number, part in enumerate(chosen, 1):
        left = end - time.monotonic()
        if not (HERE / f"{part.script}.py").exists():
            found[part.name] = {
                "status": "absent",
                "seconds": 0.0,
                "last_line": f"there is no benchmarks/{part.script}.py",
            }
        elif left < _LEAST_SECONDS:
            found[part.name] = {
                "status": "skipped",
                "seconds": 0.0,
                "last_line": f"--minutes={options.minutes:g} are over",
            }
        else:
            print(f"[{number}/{len(chosen)}] {part.name} ...", flush=True)
            found[part.name] = run(part, options, left)
            if part.name == "roofline":
                _check_platform(options)
        told = found[part.name]
        print(f"[{number}/{len(chosen)}] {part.name}: {told['status']} in {told['seconds']:.0f} s", flush=True)
        if told["status"] != "done":
            print(f"    {told['last_line']}", flush=True)
    return found


def _check_platform(options: argparse.Namespace) -> None:
    """Ends the check where JAX computes elsewhere than was asked for."""
    figures = _figures(options.out, "roofline")
    if figures and options.platform != "cpu" and figures["machine"]["platform"] == "cpu":
        sys.exit(
            "error: --platform: JAX sees no accelerator; --platform=cpu --shape=tiny tries the check without one"
        )


def _figures(out: Path, name: str) -> dict[str, Any] | None:
    path = out / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def held_against(out: Path, *, absolute: bool) -> list[dict[str, Any]]:
    """Every target with what was measured of it: met, missed, or why it says nothing."""
    rows = []
    for target in TARGETS:
        figures, value = _figures(out, target.part), None
        try:
            value = float(target.read(figures)) if figures else None
        except (KeyError, StopIteration):  # the part was cut off before it came to this
            value = None
        if value is None:
            verdict = "not measured"
        elif target.absolute and not absolute:
            verdict = "other machine or shape"
        else:
            verdict = "met" if (value >= target.most if target.at_least else value <= target.most) else "MISSED"
        bound = f"{'>=' if target.at_least else '<='} {target.most:,.6g}"
        rows.append({"target": target.what, "bound": bound, "measured": value, "verdict": verdict})
    return rows


def show_logs(out: Path, found: dict[str, dict[str, Any]]) -> None:
    """Prints what the parts have printed; of one that failed the end."""
    for name, told in found.items():
        log = out / f"{name}.log"
        if log.exists():
            text = log.read_text(encoding="utf-8", errors="replace").strip()
            lines = text.splitlines() if told["status"] == "done" else text.splitlines()[-12:]
            print(f"\n---- {name} ----\n" + "\n".join(lines))


def main() -> None:
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    for part in PARTS:  # figures of an earlier check must not stand for those of this one
        (options.out / f"{part.name}.json").unlink(missing_ok=True)
    began = time.monotonic()
    found = run_parts(options)
    show_logs(options.out, found)
    machine = (_figures(options.out, "roofline") or {}).get("machine", {})
    rows = held_against(options.out, absolute=machine.get("platform") not in (None, "cpu") and options.shape == FULL)
    table = [[row["target"], row["bound"], row["measured"], row["verdict"]] for row in rows]
    tables.show(f"targets, {machine.get('device', 'unknown device')}", ("what", "target", "measured", ""), table)
    table = [[name, told["status"], told["seconds"]] for name, told in found.items()]
    tables.show(f"parts, {time.monotonic() - began:.0f} s in all", ("part", "status", "seconds"), table)
    summary = {"machine": machine, "shape": options.shape, "parts": found, "targets": rows}
    (options.out / "check.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    failed = [name for name, told in found.items() if told["status"] == "failed"]
    missing = [name for name, told in found.items() if told["status"] not in ("done", "failed")]
    if missing:
        print(f"not done: {', '.join(missing)}")
    if failed:
        sys.exit(f"error: {', '.join(failed)} failed; {options.out} holds the logs")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="folder of logs and figures")
    parser.add_argument("--shape", choices=shapes.SHAPES, default=FULL)
    parser.add_argument("--platform", choices=_PLATFORMS, default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no part begins and none goes on")
    names = [part.name for part in PARTS]
    parser.add_argument("--parts", default=",".join(names), help="separated by commas")
    options = parser.parse_args()
    options.out, options.parts = options.out.resolve(), options.parts.split(",")
    for name in options.parts:
        if name not in names:
            parser.error(f"--parts must be of {', '.join(names)}, got {name!r}")
    return options


if __name__ == "__main__":
    main()
