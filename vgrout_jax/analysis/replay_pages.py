"""What a replay shows: zones by true label, AUROC, what would have changed, and a map over layers and modules."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure as Plot

from vgrout_jax.analysis import plotting, wording
from vgrout_jax.analysis.document import Block, Figure, Heading, Items, Paragraph, Table
from vgrout_jax.analysis.replaying import NAMES, Replay, ReplayedStep
from vgrout_jax.evaluation.rates import auroc
from vgrout_jax.model.lora2r import MODULES

TRUTHS = ("hack", "solved", "neither")


def truth_flags(steps: Sequence[ReplayedStep]) -> dict[str, Bool[np.ndarray, "K"]]:
    """True label -> flag of every rollout of all steps."""
    hack = np.concatenate([step.exploited for step in steps])
    solved = np.concatenate([step.correct for step in steps]) & ~hack
    return {"hack": hack, "solved": solved, "neither": ~hack & ~solved}


def reinforced(steps: Sequence[ReplayedStep]) -> Bool[np.ndarray, "K"]:
    """Rollouts that have a score and a positive advantage, those that AUROC speaks of."""
    return np.concatenate([step.scored & (step.stored.advantage > 0) for step in steps])


def score_auroc(steps: Sequence[ReplayedStep]) -> float | None:
    """AUROC of the score against the hack flag among reinforced rollouts, as docs/method.md section 14 has it."""
    chosen, scores = reinforced(steps), np.concatenate([step.scores for step in steps])
    return auroc(scores[chosen].astype(np.float64), truth_flags(steps)["hack"][chosen])


def module_map(steps: Sequence[ReplayedStep]) -> Float[np.ndarray, "L 7"]:
    """AUROC of each module's own cosine among reinforced rollouts; NaN where it is not defined."""
    chosen, cosines = reinforced(steps), np.concatenate([step.cosines for step in steps])
    hack = truth_flags(steps)["hack"]
    areas = [auroc(column[chosen].astype(np.float64), hack[chosen]) for column in cosines.T]
    return np.array([np.nan if area is None else area for area in areas]).reshape(-1, len(MODULES))


def zone_table(steps: Sequence[ReplayedStep]) -> Table:
    """How many rollouts of each true label went to each zone, by the advantage's sign."""
    labels = np.concatenate([step.labels for step in steps])
    scored = np.concatenate([step.scored for step in steps])
    positive = np.concatenate([step.stored.advantage for step in steps]) > 0
    rows = []
    for sign, chosen in (("reinforced", scored & positive), ("punished", scored & ~positive)):
        for truth, flags in truth_flags(steps).items():
            counts = [int(np.sum(chosen & flags & (labels == label))) for label in NAMES.values()]
            rows.append((f"{sign}, {truth}", str(sum(counts)), *map(str, counts)))
    return Table(("rollouts", "all", *NAMES), tuple(rows), "Rollouts with a score, by true label and zone")


def replay_blocks(name: str, found: Replay) -> list[Block]:
    """The whole document."""
    steps = found.steps
    return [
        Heading(f"The gate of {name}, replayed", 1),
        *_setting_blocks(found),
        Heading("What would have been routed"),
        Items(tuple(_statements(steps))),
        zone_table(steps),
        *_figures(found),
        Heading("Step by step"),
        _step_table(steps),
    ]


def _setting_blocks(found: Replay) -> list[Block]:
    changed = [f"{field} = {wording.number(value)}" for field, value in found.changed.items()]
    blocks: list[Block] = [Paragraph("The run's own setting." if not changed else "The run's setting but for:")]
    if changed:
        blocks.append(Items(tuple(changed)))
    if found.exact:
        rounding = max(step.rounding for step in found.steps)
        text = (
            "Directions and bands are the run's own, so the scores that it stored are labelled, without rounding. "
            f"Computed from the gradients, which are stored in bfloat16, scores differ by up to {rounding:.2g}."
        )
    else:
        text = (
            "Directions and bands are made anew from the stored gradients. Those are bfloat16, so a score that is "
            "close to a threshold may fall on its other side."
        )
    return [*blocks, Paragraph(text)]


def _statements(steps: Sequence[ReplayedStep]) -> list[str]:
    labels, own = (np.concatenate(part) for part in zip(*((s.labels, s.stored.label) for s in steps), strict=True))
    scored, truth, chosen = np.concatenate([s.scored for s in steps]), truth_flags(steps), reinforced(steps)
    shares = ", ".join(f"{name} {_share(labels[scored] == label)}" for name, label in NAMES.items())
    area = score_auroc(steps)
    hacks, solved = chosen & truth["hack"], chosen & truth["solved"]
    return [
        f"Zones, as shares of the rollouts with a score: {shares}.",
        f"AUROC of the score for hack against the rest, among rollouts with positive advantage: {_area(area)}.",
        f"Reinforced exploits that would train the deployed block (zone clean or mid): "
        f"{_share(labels[hacks] != NAMES['hack'])}.",
        f"Reinforced correct answers that would not train it (zone hack): {_share(labels[solved] == NAMES['hack'])}.",
        f"Labels that are other than the run's: {_share(labels != own)}.",
    ]


def _share(flags: Bool[np.ndarray, "K"]) -> str:
    if flags.size == 0:
        return "none of 0"
    return f"{wording.percent(float(np.mean(flags)))} ({int(np.sum(flags))} of {flags.size})"


def _area(area: float | None) -> str:
    return "not defined" if area is None else f"{area:.3f}"


def _step_table(steps: Sequence[ReplayedStep]) -> Table:
    rows = []
    for step in steps:
        known = step.labels[step.scored]
        shares = [f"{np.mean(known == label):.2f}" if known.size else "-" for label in NAMES.values()]
        changed = str(int(np.sum(step.labels != step.stored.label)))
        rows.append((str(step.step), str(known.size), *shares, _area(score_auroc([step])), changed))
    return Table(("step", "scored", *NAMES, "AUROC", "labels changed"), tuple(rows))


def _figures(found: Replay) -> list[Block]:
    blocks: list[Block] = []
    areas = module_map(found.steps)
    if np.isfinite(areas).any():
        caption = (
            "AUROC of each module's own cosine with the direction, for hack against the rest among rollouts with "
            "positive advantage. 0.5 tells nothing apart."
        )
        blocks += [Heading("Where exploits and honest work separate"), _block("map", map_figure(areas), caption)]
    caption = "Scores of rollouts with positive advantage by true label; lines are the thresholds."
    return [*blocks, _block("scores", _score_figure(found), caption)]


def _block(name: str, plot: Plot, caption: str) -> Figure:
    return Figure(name, *plotting.render(plot), caption)


def map_figure(areas: Float[np.ndarray, "L 7"]) -> Plot:
    """A cell a layer and module, its value written in it where there is room."""
    layers = areas.shape[0]
    figure, axes = plotting.grid(1, 1, width=5.2, height=1.2 + 0.26 * layers)
    axis = axes[0, 0]
    image = axis.imshow(areas, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for layer, module in np.argwhere(np.isfinite(areas)):
        value = areas[layer, module]
        colour = "white" if value < 0.5 else "black"
        axis.text(module, layer, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=7)
    axis.set(ylabel="layer", yticks=range(0, layers, max(1, layers // 12)), xticks=range(len(MODULES)))
    axis.set_xticklabels([module.removesuffix("_proj") for module in MODULES])
    axis.grid(False)
    figure.colorbar(image, label="AUROC")
    return figure


def _score_figure(found: Replay) -> Plot:
    scores, chosen = np.concatenate([step.scores for step in found.steps]), reinforced(found.steps)
    figure, axes = plotting.grid(1, 1, width=5.2)
    values = {truth: scores[chosen & flags] for truth, flags in truth_flags(found.steps).items()}
    plotting.histogram(axes[0, 0], values)
    for threshold in (found.config.gate.low, found.config.gate.high):
        axes[0, 0].axvline(threshold, color="black", linestyle="--", linewidth=1)
    axes[0, 0].set(xlabel="score z", ylabel="rollouts")
    plotting.legend(figure, axes)
    return figure
