"""How the benchmarks show figures: a table for the reader, JSON for programs."""

import datetime
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table: the first column to the left, the others to the right; None is a dash."""
    texts = [list(columns), *[[cell(value) for value in row] for row in rows]]
    widths = [max(len(row[index]) for row in texts) for index in range(len(columns))]
    print(f"\n{title}")
    for row in texts:
        padded = [
            row[0].ljust(widths[0]),
            *[text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)],
        ]
        print("  ".join(padded).rstrip(), flush=True)


def cell(value: Any) -> str:
    """A figure in at most four significant digits."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import jax  # a process that only reads figures must not take hold of the device

    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": os.getloadavg()[0],
        "jax": jax.__version__,
        "python": platform.python_version(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def write(path: str | None, value: Mapping[str, Any]) -> None:
    """Writes the figures with the machine that they are of, whole or not at all; nothing where `path` is None."""
    if path is None:
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    part.write_text(json.dumps({"machine": machine(), **value}, indent=1) + "\n", encoding="utf-8")
    part.replace(target)
