"""The figures of the report; each takes arms and returns a figure, or None where there is nothing to show."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vgrout_jax.analysis import plotting
from vgrout_jax.analysis.arms import Arm, estimate, modes_of, seed_values
from vgrout_jax.analysis.observations import TRUTHS, Observations
from vgrout_jax.evaluation.rates import POLICIES

ZONES = ("clean", "mid", "hack")
SMOOTHING = 5  # steps of the running mean over training rollouts
_POLICY_TITLES = {"deployed": "deployed", "as_trained": "as trained"}
_HATCHES = {"clean": "", "mid": "\\\\", "hack": "////"}
_SHADES = {"clean": "#f2f2f2", "mid": "#b5b5b5", "hack": "#6e6e6e"}


def evaluation_curves(arms: Sequence[Arm]) -> Figure | None:
    """Hack and solve rate at every evaluation, deployed and as trained: mean over seeds, range shaded."""
    if not any(run.evaluations for arm in arms for run in arm.runs.values()):
        return None
    figure, axes = plotting.grid(2, 2, sharex=True, sharey=True)
    for row, rate in enumerate(("hack", "solve")):
        for column, policy in enumerate(POLICIES):
            for arm in arms:
                _line(axes[row, column], arm, arms, _evaluated(arm, rate, policy))
            _share_axis(axes[row, column], f"{rate} rate, {_POLICY_TITLES[policy]}", last=row == 1)
    plotting.legend(figure, axes)
    return figure


def mode_curves(arms: Sequence[Arm]) -> Figure | None:
    """Hack and solve rate of the deployed policy at every evaluation, a column a mode."""
    modes = modes_of(arms)
    if not modes:
        return None
    figure, axes = plotting.grid(2, len(modes), width=2.6, sharex=True, sharey=True)
    for row, rate in enumerate(("hack", "solve")):
        for column, mode in enumerate(modes):
            for arm in arms:
                _line(axes[row, column], arm, arms, _evaluated(arm, rate, "deployed", mode))
            _share_axis(axes[row, column], f"{mode}: {rate}", last=row == 1)
    plotting.legend(figure, axes)
    return figure


def training_curves(arms: Sequence[Arm]) -> Figure | None:
    """Hack rate of the rollouts of training, by sampling policy, and solve rate of all, as running means."""
    panels = {
        "hack, both blocks on": "hack/own_full",
        "hack, quarantine off": "hack/own_deployed",
        "solve, all": "solve/own",
    }
    return _metric_panels(arms, panels, limits=(-0.03, 1.03))


def ratio_curves(arms: Sequence[Arm]) -> Figure | None:
    """Mean ratio of the training to the sampling policy for the rollouts of each zone, as running means."""
    panels = {f"ratio, zone {zone}": f"ratio/{zone}" for zone in ZONES}
    return _metric_panels([arm for arm in arms if arm.routed], panels, limits=None)


def zone_shares(arms: Sequence[Arm]) -> Figure | None:
    """Shares of the zones among scored rollouts, and qmass as a line: a panel an arm with a gate."""
    routed = [arm for arm in arms if arm.routed and _steps(arm, "zone/clean")]
    if not routed:
        return None
    columns = min(3, len(routed))
    figure, axes = plotting.grid(-(-len(routed) // columns), columns, sharey=True)
    for axis, arm in zip(axes.flat, routed, strict=False):
        shares = {zone: dict(_metric(arm, f"zone/{zone}")) for zone in ZONES}
        steps = sorted(set.intersection(*(set(found) for found in shares.values())))
        heights = [[shares[zone][step][0] for step in steps] for zone in ZONES]
        areas = axis.stackplot(steps, heights, labels=[f"zone {zone}" for zone in ZONES], edgecolor="#333333")
        for area, zone in zip(areas, ZONES, strict=True):
            area.set(facecolor=_SHADES[zone], hatch=_HATCHES[zone], linewidth=0.4)
        known = _metric(arm, "qmass")
        axis.plot([step for step, _ in known], [value[0] for _, value in known], "k-", lw=2.2, label="qmass")
        axis.plot([step for step, _ in known], [value[0] for _, value in known], "w-", lw=0.8)
        _share_axis(axis, arm.name, last=True)
    for axis in list(axes.flat)[len(routed) :]:
        axis.set_visible(False)
    plotting.legend(figure, axes)
    return figure


def score_histograms(observed: Mapping[str, Observations]) -> Figure | None:
    """Gate scores of rollouts with positive advantage by true label, a panel an arm."""
    known = {name: found for name, found in observed.items() if any(found.scores.values())}
    if not known:
        return None
    columns = min(3, len(known))
    figure, axes = plotting.grid(-(-len(known) // columns), columns)
    for axis, (name, found) in zip(axes.flat, known.items(), strict=False):
        plotting.histogram(axis, {truth: found.scores[truth] for truth in TRUTHS})
        area = "not defined" if found.auroc is None else f"{found.auroc:.2f}"
        axis.set(title=f"{name}\nAUROC {area}", xlabel="score z", ylabel="rollouts")
    for axis in list(axes.flat)[len(known) :]:
        axis.set_visible(False)
    plotting.legend(figure, axes)
    return figure


def deployment(arms: Sequence[Arm]) -> Figure | None:
    """Final rates with 95% intervals: deployed filled, as trained open, seeds as small ticks."""
    done = [arm for arm in arms if arm.finished]
    if not done:
        return None
    rates = ("hack", "solve", "compile")
    figure, axes = plotting.grid(1, 3, height=0.9 + 0.42 * len(done), sharey=True)
    for axis, rate in zip(axes.flat, rates, strict=True):
        for place, arm in enumerate(reversed(done)):
            for policy, offset, fill in (("deployed", 0.13, True), ("as_trained", -0.13, False)):
                _dot(axis, arm, rate, policy, place + offset, filled=fill, others=[a.name for a in done])
        axis.set(title=f"{rate} rate", xlim=(-0.03, 1.03), yticks=range(len(done)))
        axis.set_yticklabels([arm.name for arm in reversed(done)])
    return figure


def _dot(axis: Any, arm: Arm, rate: str, policy: str, place: float, *, filled: bool, others: Sequence[str]) -> None:
    values = seed_values(arm, rate, policy)
    found = estimate(values)
    if found is None:
        return
    look = plotting.style(arm.name, others)
    axis.plot([found.low, found.high], [place, place], color=look["color"], lw=1.4)
    axis.plot([value.value for value in values.values()], [place] * len(values), "|", color="#555555", ms=7)
    face = look["color"] if filled else "white"
    axis.plot(found.value, place, marker=look["marker"], mfc=face, mec=look["color"], ls="", ms=6.5)


def _metric_panels(
    arms: Sequence[Arm], panels: Mapping[str, str], *, limits: tuple[float, float] | None
) -> Figure | None:
    if not any(_steps(arm, key) for arm in arms for key in panels.values()):
        return None
    figure, axes = plotting.grid(1, len(panels), height=2.8, sharey=limits is not None)
    for axis, (title, key) in zip(axes.flat, panels.items(), strict=True):
        for arm in arms:
            _line(axis, arm, arms, _smoothed(_metric(arm, key)), every=10)
        axis.set(title=title, xlabel="step", ylim=limits)
    plotting.legend(figure, axes)
    return figure


Points = list[tuple[int, tuple[float, float, float]]]  # (step, (mean, least, greatest) over seeds)


def _evaluated(arm: Arm, rate: str, policy: str, mode: str | None = None) -> Points:
    steps = sorted({item.step for run in arm.runs.values() for item in run.evaluations})

    def at(step: int) -> Iterable[float]:
        return [found.value for found in seed_values(arm, rate, policy, mode=mode, step=step).values()]

    return _over_seeds(steps, at)


def _metric(arm: Arm, key: str) -> Points:
    def at(step: int) -> Iterable[float]:
        found = [run.metrics[step].get(key) for run in arm.runs.values() if step in run.metrics]
        return [value for value in found if value is not None]

    return _over_seeds(_steps(arm, key), at)


def _steps(arm: Arm, key: str) -> list[int]:
    return sorted(
        {s for run in arm.runs.values() for s, record in run.metrics.items() if record.get(key) is not None}
    )


def _over_seeds(steps: Iterable[int], at: Callable[[int], Iterable[float]]) -> Points:
    found = [(step, list(at(step))) for step in steps]
    return [(step, (float(np.mean(values)), min(values), max(values))) for step, values in found if values]


def _smoothed(points: Points) -> Points:
    """The running mean over up to `SMOOTHING` points that end at each."""
    values = np.array([value for _, value in points]).reshape(-1, 3)
    means = [values[max(0, end - SMOOTHING + 1) : end + 1].mean(axis=0) for end in range(len(points))]
    return [(step, tuple(map(float, mean))) for (step, _), mean in zip(points, means, strict=True)]


def _line(axis: Any, arm: Arm, arms: Sequence[Arm], points: Points, every: int = 1) -> None:
    if not points:
        return
    look = plotting.style(arm.name, [other.name for other in arms])
    steps = [step for step, _ in points]
    mean, least, greatest = zip(*(value for _, value in points), strict=True)
    axis.plot(steps, mean, label=arm.name, markevery=every, **look)
    if len(arm.runs) > 1:
        axis.fill_between(steps, least, greatest, color=look["color"], alpha=0.12, linewidth=0)


def _share_axis(axis: Any, title: str, *, last: bool) -> None:
    axis.set(title=title, ylim=(-0.03, 1.03))
    if last:
        axis.set_xlabel("updates")
