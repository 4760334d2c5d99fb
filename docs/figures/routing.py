"""Draws what routing does, for README: from rollouts to the block that is deployed.

    python docs/figures/routing.py

Writes routing.png and routing.svg beside itself. The card has a ground of its own, so that it reads on white and on
dark pages; colour never stands alone, since each zone has its place, its shape and its word too.
"""

import math
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon, Wedge

from vgrout_jax.analysis.plotting import RC, render

INK, FAINT, LINE, GROUND, PAPER = "#1f2430", "#5d6473", "#c9ccd3", "#fbfaf6", "#ffffff"
CLEAN, MID, HACK = "#0072B2", "#8a6d00", "#C2410C"
TINTS = {CLEAN: "#dcebf6", MID: "#f7ecc4", HACK: "#fbe0d2"}
WIDTH, HEIGHT = 12.4, 5.2  # inches, which are the units of the drawing too

# word, colour, marker, height of its row, angle of its gradient to the direction in degrees
ROLLOUTS = (
    ("does the work", CLEAN, "circle", 3.0, 142),
    ("hard to say", MID, "square", 2.1, 84),
    ("games the check", HACK, "triangle", 1.2, 38),
)
STAGES = (
    (0.42, "Rollouts", "answers to one prompt, graded\nby a checker with a flaw"),
    (2.72, "Gradients", "how each would push the\nadapter, in its rank space"),
    (5.0, "The gate", "the angle to one direction v:\nhack minus clean, of a few\nhand-written pairs"),
    (7.68, "Training", "W is frozen; the zone says which\nlow-rank block a rollout trains"),
    (10.34, "Deployment", "the quarantine is removed,\nand with it what it learnt"),
)
NOTE = (
    "Verdicts reach the rewards alone. The gate is given gradients, direction, bands and thresholds: "
    "no verdict and no label."
)
CENTRE, RADIUS = (5.3, 2.1), 1.32
EDGES = (62, 104)  # of the zones hack, mid and clean, in degrees from the direction


def main() -> None:
    """Draws and writes the figure."""
    here = Path(__file__).parent
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        figure.patch.set_alpha(0)
        figure.get_layout_engine().set(w_pad=0, h_pad=0, wspace=0, hspace=0)
        axis = figure.subplots()
        axis.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect="equal")
        axis.axis("off")
        draw(axis)
    png, svg = render(figure)
    (here / "routing.png").write_bytes(png)
    (here / "routing.svg").write_bytes(svg)


def draw(axis: Axes) -> None:
    """All of it, from left to right."""
    box(axis, 0.06, 0.06, WIDTH - 0.12, HEIGHT - 0.12, face=GROUND, edge=LINE, rounding=0.16)
    for number, (x, title, caption) in enumerate(STAGES, 1):
        axis.add_patch(Circle((x + 0.14, 4.78), 0.155, facecolor=INK, edgecolor="none"))
        write(axis, x + 0.14, 4.772, str(number), color=PAPER, size=9, weight="bold", ha="center")
        write(axis, x + 0.4, 4.772, title, size=12.5, weight="bold")
        write(axis, x, 4.45, caption, size=9, color=FAINT, va="top", spacing=1.35)
    for rollout in ROLLOUTS:
        draw_rollout(axis, *rollout)
    draw_gate(axis)
    draw_training(axis)
    draw_deployment(axis)
    write(axis, WIDTH / 2, 0.27, NOTE, size=9, color=FAINT, ha="center")


def draw_rollout(axis: Axes, word: str, colour: str, marker: str, y: float, angle: float) -> None:
    """A completion as a card, and its gradient."""
    box(axis, 0.42, y - 0.34, 1.72, 0.68, face=PAPER, edge=LINE, rounding=0.07)
    axis.add_patch(
        FancyBboxPatch((0.45, y - 0.24), 0.015, 0.48, "round,pad=0.02", facecolor=colour, edgecolor="none")
    )
    for row, (indent, length) in enumerate(((0.0, 0.62), (0.14, 0.86), (0.14, 0.5))):
        at = y + 0.2 - 0.13 * row
        axis.plot(
            [0.62 + indent, 0.62 + indent + length], [at, at], color=LINE, linewidth=2.6, solid_capstyle="round"
        )
    write(axis, 0.62, y - 0.215, word, size=9, color=colour, weight="bold")
    draw_marker(axis, 1.95, y + 0.16, marker, colour)
    arrow(axis, (2.22, y), (2.72, y), color=LINE, width=1.4)
    start, (dx, dy) = (3.42, y), towards(angle, 0.36)
    arrow(axis, (start[0] - dx, start[1] - dy), (start[0] + dx, start[1] + dy), color=colour, width=2.4, head=13)
    draw_marker(axis, 2.9, y, marker, colour)
    arrow(axis, (3.86, y), (4.5, y), color=LINE, width=1.4)


def draw_gate(axis: Axes) -> None:
    """The half circle of angles, its zones, the direction and the three gradients."""
    x, y = CENTRE
    zones = ((0, EDGES[0], HACK, "hack"), (EDGES[0], EDGES[1], MID, "mid"), (EDGES[1], 180, CLEAN, "clean"))
    for first, last, colour, word in zones:
        axis.add_patch(
            Wedge(CENTRE, RADIUS, first - 90, last - 90, facecolor=TINTS[colour], edgecolor=PAPER, linewidth=1.5)
        )
        dx, dy = towards((first + last) / 2 + {HACK: -12, MID: 10, CLEAN: 20}[colour], 0.82 * RADIUS)
        write(axis, x + dx, y + dy, word, size=10.5, color=colour, weight="bold", ha="center")
    arrow(axis, CENTRE, (x, y - 1.5), color=INK, width=2.6, head=16)
    write(axis, x - 0.13, y - 1.34, "v", size=13, style="italic", weight="bold", ha="right")
    for _, colour, _, _, angle in ROLLOUTS:
        dx, dy = towards(angle, 0.82)
        arrow(axis, CENTRE, (x + dx, y + dy), color=colour, width=2.4, head=13)
    axis.add_patch(Circle(CENTRE, 0.05, facecolor=INK, edgecolor="none", zorder=5))


def draw_training(axis: Axes) -> None:
    """The linear map with both blocks, and which zone trains which."""
    draw_map(axis, 9.1)
    draw_block(axis, 8.3, 2.9, CLEAN, "deployed")
    draw_block(axis, 8.3, 1.3, HACK, "quarantine")
    arrow(axis, (6.5, 3.0), (7.56, 3.0), color=CLEAN, width=2.2, head=13)
    arrow(axis, (6.78, 2.2), (7.56, 2.74), color=MID, width=2.2, head=13, bend=-0.12)
    arrow(axis, (6.78, 2.0), (7.56, 1.46), color=MID, width=2.2, head=13, bend=0.12)
    arrow(axis, (6.5, 1.2), (7.56, 1.2), color=HACK, width=2.2, head=13)


def draw_deployment(axis: Axes) -> None:
    """The same map, its quarantine gone."""
    arrow(axis, (9.62, 2.1), (10.2, 2.1), color=LINE, width=1.4)
    draw_map(axis, 11.76)
    draw_block(axis, 10.96, 2.9, CLEAN, "deployed")
    draw_block(axis, 10.96, 1.3, HACK, "removed", ghost=True)


def draw_map(axis: Axes, x: float) -> None:
    """W, frozen."""
    box(axis, x - 0.14, 0.74, 0.42, 2.72, face="#e6e7eb", edge=LINE, rounding=0.05)
    write(axis, x + 0.07, 2.1, "W", size=13, weight="bold", color=FAINT, ha="center")


def draw_block(axis: Axes, x: float, y: float, colour: str, word: str, *, ghost: bool = False) -> None:
    """A low-rank block: down to its rank and up again, plugged into the map."""
    left = ((x - 0.62, y + 0.38), (x - 0.62, y - 0.38), (x - 0.02, y - 0.15), (x - 0.02, y + 0.15))
    right = ((x + 0.62, y + 0.38), (x + 0.62, y - 0.38), (x + 0.02, y - 0.15), (x + 0.02, y + 0.15))
    look = {"facecolor": TINTS[colour], "edgecolor": colour, "linewidth": 1.6, "joinstyle": "round"}
    if ghost:
        look |= {"facecolor": "none", "edgecolor": "#9aa0ac", "linestyle": (0, (3, 2.4)), "linewidth": 1.3}
    for corners in (left, right):
        axis.add_patch(Polygon(corners, closed=True, **look))
    write(axis, x, y - 0.56, word, size=9.5, weight="bold", color="#7b818d" if ghost else colour, ha="center")


def draw_marker(axis: Axes, x: float, y: float, kind: str, colour: str) -> None:
    """A small shape that tells rollouts apart without colour."""
    forms = {"circle": "o", "square": "s", "triangle": "^"}
    axis.plot([x], [y], forms[kind], color=colour, markersize=6.5, markeredgecolor=PAPER, markeredgewidth=0.6)


def towards(angle: float, length: float) -> tuple[float, float]:
    """A vector at so many degrees from the direction, which points down; angles open to the right."""
    radians = math.radians(angle - 90)
    return length * math.cos(radians), length * math.sin(radians)


def arrow(
    axis: Axes, start: tuple, end: tuple, *, color: str, width: float, head: float = 9, bend: float = 0.0
) -> None:
    """An arrow of `width` points, its head so large, bent by a share of its length."""
    axis.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle=f"-|>,head_length={head / 22:.2f},head_width={head / 48:.2f}",
            mutation_scale=14,
            color=color,
            linewidth=width,
            shrinkA=0,
            shrinkB=0,
            connectionstyle=f"arc3,rad={bend}",
            zorder=4,
        )
    )


def box(
    axis: Axes, x: float, y: float, width: float, height: float, *, face: str, edge: str, rounding: float
) -> None:
    """A rectangle with round corners; x and y are its lower left one."""
    style = f"round,pad=0,rounding_size={rounding}"
    axis.add_patch(FancyBboxPatch((x, y), width, height, style, facecolor=face, edgecolor=edge, linewidth=1))


def write(axis: Axes, x: float, y: float, text: str, *, spacing: float = 1.2, **look: object) -> None:
    """Text whose left end is at x and whose middle is at y, unless `look` says otherwise."""
    axis.text(x, y, text, **({"color": INK, "va": "center", "linespacing": spacing, "zorder": 6} | look))


if __name__ == "__main__":
    main()
