"""Where the time of a profiled step goes, as a picture and a table: by phase of the step and part of the model.

    ./launch/run.sh --config=configs/routeV.py:toy --config.profile.steps=2 --workdir=runs/a
    python -m benchmarks.profile_picture runs/a --out=profile.png

    python -m benchmarks.update --shape=cpu --arms=none --profile=trace       or step.py: of a benchmark instead
    python -m benchmarks.profile_picture trace --out=profile.png

Reads what `--config.profile.steps` leaves under WORKDIR/profile. Each operation that a device ran is known there by
its program and its name; the programs themselves, which the profile holds too, tell which part of the model it
belongs to (JAX's named scopes and transformations). Seconds are of the device's own threads or streams, loops without
what runs inside of them; "device idle" is the rest of the step, in which the host worked or waited. Kernels that an
NVIDIA GPU runs from a recorded graph are known by their own names alone, and are told apart by their kind.
"""

import argparse
import collections
import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import tables

# Programs of a step by their names, and what the picture calls them.
PHASES = {"jit_step": "update", "jit_advance": "decode", "jit_prefill": "prefill", "jit_extract": "direction"}
_CONTROL = ("while", "conditional", "call", "async", "tuple")
_SHADES = {"update": "0.25", "decode": "0.5", "prefill": "0.7", "all else": "0.85", "device idle": "1.0"}


# Kinds of an NVIDIA GPU's kernels by parts of their names, the first that fits.
KERNELS = {
    "bprop": "attention, backward",
    "fprop": "attention, forward",
    "fmha": "attention, backward",
    "tf32": "matrix products in TF32",
    "s1688": "matrix products in TF32",
    "nvjet": "matrix products",
    "gemm": "matrix products",
    "splitK": "matrix products",
    "emcpy": "copies",
    "emset": "copies",
    "dynamic_update_slice": "copies",
    "concatenate": "copies",
}
_GRAPH = "command_buffer"  # how XLA calls a graph of kernels


class Operation(NamedTuple):
    """One operation that a device ran: its program, its name there, its seconds, and the kernel of a graph."""

    program: str
    name: str
    seconds: float
    kernel: str = ""


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message in protocol buffers' wire format: numbers, and integers or bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
        elif kind == 2:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = data[at : at + size], at + size
        else:
            raise ValueError(f"a profile holds a field of kind {kind}, which protocol buffers do not have")
        yield tag >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _all(data: bytes, *path: int) -> Iterator[Any]:
    """Every field that is reached by one number after the other."""
    for number, value in fields(data):
        if number == path[0]:
            if len(path) == 1:
                yield value
            else:
                yield from _all(value, *path[1:])


def scopes(space: bytes) -> dict[tuple[str, str], str]:
    """(program, operation) -> its path of scopes, such as jit(step)/.../attention/dot_general.

    Args:
        space: an XSpace message; the programs are HloProto messages among the statistics of its plane
            /host:metadata.
    """
    found = {}
    for plane in _all(space, 1):
        if next(_all(plane, 2), b"") != b"/host:metadata":
            continue
        for module in _all(plane, 4, 2, 5, 6, 1):  # event metadata, its value, statistic, bytes, HloModuleProto
            program = next(_all(module, 1), b"").decode()
            for instruction in _all(module, 3, 2):
                name = next(_all(instruction, 1), b"").decode()
                found[program, name] = next(_all(instruction, 7, 2), b"").decode()
    return found


def operations(events: list[dict[str, Any]]) -> list[Operation]:
    """What the devices ran, each with the seconds of its own: without those of operations inside of it."""
    threads = collections.defaultdict(list)
    for event in events:
        if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
            threads[event["pid"], event["tid"]].append(event)
    found = []
    for line in threads.values():
        line.sort(key=lambda event: (event["ts"], -event["dur"]))
        open_ends: list[tuple[float, int]] = []  # (end, index in `seconds`) of what encloses the present one
        seconds = [event["dur"] for event in line]
        for index, event in enumerate(line):
            while open_ends and open_ends[-1][0] <= event["ts"]:
                open_ends.pop()
            if open_ends:
                seconds[open_ends[-1][1]] -= event["dur"]
            open_ends.append((event["ts"] + event["dur"], index))
        for event, own in zip(line, seconds, strict=True):
            name, program = event["args"]["hlo_op"], event["args"].get("hlo_module", "")
            if not name.startswith(_CONTROL):  # a loop only waits for what it runs, maybe on another thread
                kernel = event["name"] if name.startswith(_GRAPH) else ""
                found.append(Operation(program, name, max(own, 0.0) / 1e6, kernel))
    return found


def step_seconds(events: list[dict[str, Any]]) -> tuple[float, float]:
    """Wall seconds of the step, and how many of them no device ran anything in."""
    whole = [event for event in events if event.get("ph") == "X" and event["name"].endswith(" train_step")]
    busy = [(e["ts"], e["ts"] + e["dur"]) for e in events if e.get("ph") == "X" and "hlo_op" in e.get("args", {})]
    first = min([event["ts"] for event in whole] or [begin for begin, _ in busy])
    last = max([event["ts"] + event["dur"] for event in whole] or [end for _, end in busy])
    covered, reached = 0.0, first
    for begin, end in sorted(busy):
        begin, end = max(begin, reached), min(end, last)
        if end > begin:
            covered, reached = covered + end - begin, end
    return (last - first) / 1e6, (last - first - covered) / 1e6


def part_of(program: str, path: str) -> tuple[str, str]:
    """The phase of the step and the part of the model that an operation belongs to, by its program and scopes."""
    phase = next((name for start, name in PHASES.items() if program.startswith(start)), "other programs")
    if phase == "other programs":
        return phase, ""
    if "->NTR" in path or "NTR,FR->" in path:
        part = "adapter"
    elif "/attention/" in path:
        part = "attention"
    elif "/mlp/" in path:
        part = "feed-forward"
    elif "Qwen3" in path or "Block" in path:
        part = "norms and copies"
    elif "take_along_axis" in path or "logsumexp" in path or path.endswith("dot_general") or "/checkpoint/" in path:
        part = "logits"
    else:
        part = "rest"
    if phase not in ("update", "direction") or part == "rest":
        return phase, part
    if "rematted" in path:
        return phase, f"{part}, recomputed"
    return phase, f"{part}, {'backward' if 'transpose(' in path else 'forward'}"


def kind_of(kernel: str) -> str:
    """What an NVIDIA GPU's kernel does, by its name."""
    return next((kind for part, kind in KERNELS.items() if part in kernel), "other kernels")


def grouped(found: list[Operation], paths: dict[tuple[str, str], str]) -> dict[tuple[str, str], float]:
    """Seconds of each phase and part, most first."""
    total: dict[tuple[str, str], float] = collections.defaultdict(float)
    for operation in found:
        program = operation.program.partition("(")[0]
        part = part_of(program, paths.get((program, operation.name), ""))
        if operation.kernel:
            part = part[0], kind_of(operation.kernel)
        total[part] += operation.seconds
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def draw(groups: dict[tuple[str, str], float], idle: float, wall: float, path: Path, *, most: int = 18) -> None:
    """Draws a bar a part, longest first; shades and their names tell the phases apart without colour."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    least = 0.005 * sum(groups.values())
    rows = [item for item in groups.items() if item[1] >= least][:most]
    rest = sum(groups.values()) - sum(seconds for _, seconds in rows)
    rows += [(("all else", ""), rest), (("device idle", "host at work or waiting"), idle)]
    figure = Figure(figsize=(8.0, 0.3 * len(rows) + 1.6), layout="constrained")
    axes = figure.subplots()
    for place, ((phase, _), seconds) in enumerate(rows):
        axes.barh(place, seconds, color=_SHADES.get(phase, "0.9"), edgecolor="black", linewidth=0.6)
        axes.text(seconds, place, f" {seconds:.3g} s", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [": ".join(filter(None, group)) for group, _ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(seconds for _, seconds in rows))
    axes.set_xlabel(f"seconds of device threads or streams; the step took {wall:.3g} s of wall time")
    axes.spines[["top", "right"]].set_visible(False)
    present = dict.fromkeys(phase for (phase, _), _ in rows)
    handles = [Patch(facecolor=_SHADES.get(phase, "0.9"), edgecolor="black", label=phase) for phase in present]
    axes.legend(handles=handles, loc="center right", frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def find_profile(folder: Path) -> Path:
    """The newest folder of a profile's files under a workdir or any folder that holds one; ends with one line."""
    found = sorted({path.parent for path in folder.rglob("*.xplane.pb")})
    if not found:
        sys.exit(f"error: {folder} holds no profile; --config.profile.steps=2 makes a run leave one of its step 2")
    return found[-1]


def read_profile(folder: Path) -> tuple[list[dict[str, Any]], dict[tuple[str, str], str]]:
    """The events of a profile, and the scopes of all operations of its programs."""
    traces = [path for path in folder.glob("*.trace.json.gz") if not path.name.startswith("perfetto")]
    events = []
    for path in traces:
        events += json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    paths: dict[tuple[str, str], str] = {}
    for path in folder.glob("*.xplane.pb"):
        paths |= scopes(path.read_bytes())
    return events, paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a workdir, or a folder with a profile's files")
    parser.add_argument("--out", type=Path, default=Path("profile.png"), help="the picture; .png, .svg or .pdf")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    events, paths = read_profile(find_profile(options.folder))
    wall, idle = step_seconds(events)
    groups = grouped(operations(events), paths)
    busy = sum(groups.values())
    rows = [[phase, part, seconds, f"{seconds / busy:.1%}"] for (phase, part), seconds in groups.items()]
    tables.show("seconds of device threads or streams in one step", ("phase", "part", "seconds", "share"), rows)
    print(f"the step took {wall:.3g} s, in {idle:.3g} s of which no device ran anything")
    draw(groups, idle, wall, options.out)
    if options.json:
        figures = [{"phase": phase, "part": part, "seconds": seconds} for (phase, part), seconds in groups.items()]
        options.json.write_text(json.dumps({"wall_s": wall, "idle_s": idle, "parts": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
