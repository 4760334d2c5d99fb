"""How every figure looks: styles that colour does not carry alone, and PNG and SVG bytes of a figure."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

matplotlib.use("Agg")

# Colours that the colour-blind can tell apart (Okabe and Ito 2008), each with a line and a marker of its own.
_STYLES = {
    "none": ("#000000", "-", "o"),
    "absorb": ("#888888", "--", "s"),
    "routeV": ("#0072B2", "-", "D"),
    "routeV_literal": ("#56B4E9", "-.", "v"),
    "placebo direction": ("#D55E00", ":", "^"),
    "placebo direction_matched": ("#E69F00", "--", "<"),
    "placebo labels": ("#CC79A7", "-.", "P"),
    "placebo lazy_pairs": ("#009E73", ":", "X"),
}
_OTHERS = [("#444444", line, marker) for marker in "*hp>dH" for line in ("-", "--", ":", "-.")]
_BARS = (("#D55E00", "////"), ("#56B4E9", ""), ("#ffffff", "\\\\\\\\"))
RESOLUTION = 130  # dots per inch of the PNG

# Text stays text in the vector form, which keeps it small; a fixed salt makes the same figure the same bytes.
RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vgrout_jax",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "figure.constrained_layout.use": True,
}


def style(name: str, others: Sequence[str] = ()) -> dict[str, Any]:
    """Colour, line and marker of an arm; of an arm without a fixed one, by its place among `others`."""
    if name in _STYLES:
        colour, line, marker = _STYLES[name]
    else:
        unknown = [other for other in others if other not in _STYLES]
        colour, line, marker = _OTHERS[(unknown.index(name) if name in unknown else 0) % len(_OTHERS)]
    return {"color": colour, "linestyle": line, "marker": marker, "markeredgecolor": "white", "markeredgewidth": 0.5}


def grid(rows: int, columns: int, *, width: float = 3.6, height: float = 2.6, **shared: Any) -> tuple[Figure, Any]:
    """A figure of rows x columns axes, as an array of that shape."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width * columns, height * rows))
        return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def histogram(axis: Any, values: Mapping[str, Any]) -> None:
    """Histograms of several groups over common edges; what lies beyond the middle 99% is in the outermost bars."""
    everything = np.concatenate([np.asarray(found, np.float64) for found in values.values()])
    low, high = np.quantile(everything, [0.005, 0.995]) if everything.size else (0.0, 1.0)
    edges = np.linspace(low, max(high, low + 1e-6), 31)
    for (name, found), (colour, hatch) in zip(values.items(), _BARS, strict=False):
        look = {"facecolor": colour, "hatch": hatch, "edgecolor": "black", "alpha": 0.6}
        axis.hist(np.clip(found, edges[0], edges[-1]), edges, histtype="stepfilled", label=name, **look)


def legend(figure: Figure, axes: Any) -> None:
    """One legend below all axes, each name once."""
    found: dict[str, Any] = {}
    for axis in axes.flat:
        found |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if found:
        columns = max(2, int(figure.get_figwidth() // 2.4))
        figure.legend(found.values(), found, loc="outside lower center", ncols=columns, frameon=False, handlelength=4)


def render(figure: Figure) -> tuple[bytes, bytes]:
    """The figure as PNG and as SVG, without dates or other metadata."""
    found = []
    for kind in ("png", "svg"):
        buffer = io.BytesIO()
        empty = {"Software": None} if kind == "png" else dict.fromkeys(("Date", "Creator", "Format", "Type"))
        with matplotlib.rc_context(RC):
            figure.savefig(buffer, format=kind, dpi=RESOLUTION, metadata=empty)
        found.append(buffer.getvalue())
    return found[0], found[1]
