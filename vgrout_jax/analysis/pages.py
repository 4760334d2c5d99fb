"""Puts the report together: from arms and what was observed of them to blocks of a document."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure as Plot

from vgrout_jax.analysis import figures, plotting, wording
from vgrout_jax.analysis.arms import Arm, compare, differing_settings, estimate, seed_label, seed_values
from vgrout_jax.analysis.claims import BASE, CLAIMS, COLLAPSE_MARGIN, LEAST_SEEDS
from vgrout_jax.analysis.document import Block, Code, Figure, Heading, Items, Paragraph, Table
from vgrout_jax.analysis.observations import TRUTHS, Observations
from vgrout_jax.analysis.replicates import Comparison, holm
from vgrout_jax.analysis.verdicts import collapsed, deviations, judge
from vgrout_jax.evaluation.rates import RATES

REFERENCES = ("none", "routeV")  # and every placebo

INTERVALS = (
    "Rates are means over seeds. Their 95% interval is Student's over seeds, cut to [0, 100], and never narrower "
    "than the mean of the seeds' own intervals over problems. With one seed there is no interval across seeds, and "
    "the one shown is that over problems. A hack rate of zero beside a fallen solve or compile rate is collapse "
    "and not success."
)


def report(arms: Sequence[Arm], observed: Mapping[str, Observations]) -> list[Block]:
    """The whole document.

    Args:
        arms: of `arms.group_arms`.
        observed: name of an arm -> what its completions show.
    """
    runs = sum(len(arm.runs) for arm in arms)
    return [
        Heading(f"{len(arms)} arm{'s' * (len(arms) != 1)}, {runs} run{'s' * (runs != 1)}", 1),
        *verdict_blocks(arms),
        *run_blocks(arms),
        *rate_blocks(arms),
        *comparison_blocks(arms),
        *figure_blocks(arms, observed),
        *gallery_blocks(observed),
        *settings_blocks(arms),
    ]


def verdict_blocks(arms: Sequence[Arm]) -> list[Block]:
    """What holds and what does not, under the thresholds that were fixed beforehand."""
    outcomes = judge(arms, CLAIMS)
    blocks: list[Block] = [Heading("What holds"), Paragraph(wording.headline(outcomes), strong=True)]
    if found := deviations(arms):
        shown = found[:12] + [f"and {len(found) - 12} more"] * (len(found) > 12)
        text = "These runs are not the experiment that the thresholds were fixed for (docs/preregistration.md); they "
        blocks += [Paragraph(text + "are applied for orientation. What is different:"), Items(tuple(shown))]
    rows = tuple(
        (o.claim.key, wording.quantity(o.claim), wording.required(o.claim), wording.measured(o), o.verdict)
        for o in outcomes
    )
    bars = sum(outcome.claim.primary for outcome in outcomes)
    caption = f"The first {bars} claims are the bars. Differences in percentage points. {wording.BASE_NOTE}"
    blocks.append(Table(("claim", "about", "required", "measured", "verdict"), rows, caption))
    return [*blocks, Items(tuple(wording.sentence(outcome) for outcome in outcomes))]


def run_blocks(arms: Sequence[Arm]) -> list[Block]:
    """Which runs there are, and which of them have no end."""
    rows, unfinished = [], []
    for arm in arms:
        rows.append((arm.name, str(len(arm.runs)), str(len(arm.finished)), ", ".join(map(seed_label, arm.runs))))
        for seed, run in arm.runs.items():
            if not run.finished:
                done = f"{run.steps_done} of {run.settings['train.steps']} steps"
                unfinished.append(f"{arm.name}, seed {seed_label(seed)}: {done}. It is running, or it was stopped.")
    blocks: list[Block] = [Heading("Runs"), Table(("arm", "runs", "finished", "seeds"), tuple(rows))]
    if unfinished:
        text = "Runs without an end count in curves and histograms, and in no final rate and no claim:"
        blocks += [Paragraph(text), Items(tuple(unfinished))]
    return blocks


def rate_blocks(arms: Sequence[Arm]) -> list[Block]:
    """The deploy table and the same as trained."""
    done = [arm for arm in arms if arm.finished]
    if not done:
        return [Heading("Final rates"), Paragraph("No run has finished, so there are none yet.")]
    blocks: list[Block] = [Heading("Final rates"), Paragraph(INTERVALS)]
    for policy, title in (("deployed", "Deployed: quarantine off"), ("as_trained", "As trained: both blocks on")):
        rows = [_rate_row(BASE, done[0], policy, 0)] + [_rate_row(arm.name, arm, policy, None) for arm in done]
        blocks.append(Table(("arm", "seeds", *RATES), tuple(rows), title))
    fallen = [(arm.name, collapsed(arm)) for arm in done]
    notes = [
        f"{name} collapsed: it hacks no more than before training, and its {rate} rate fell by more than "
        f"{100 * COLLAPSE_MARGIN:g} points."
        for name, rate in fallen
        if rate
    ]
    return [*blocks, *([Items(tuple(notes))] if notes else []), *_plot("deployment", figures.deployment(done), _DOTS)]


def _rate_row(name: str, arm: Arm, policy: str, step: int | None) -> tuple[str, ...]:
    values = [seed_values(arm, rate, policy, step=step) for rate in RATES]
    return (name, str(len(values[0])), *(wording.share(estimate(found)) for found in values))


def comparison_blocks(arms: Sequence[Arm]) -> list[Block]:
    """Every arm against none, routeV and each placebo, paired by seed."""
    done = {arm.name: arm for arm in arms if arm.finished}
    references = [name for name in done if name in REFERENCES or name.startswith("placebo ")]
    tables = [table for name in references if (table := _comparison_table(done, name))]
    if not tables:
        return []
    least = min(len(arm.finished) for arm in done.values())
    text = (
        "Differences of deployed rates in percentage points, over the seeds that both arms have. Their 95% "
        "interval is made like that of a rate. p is two-sided and exact, by the signs of the seeds' differences; "
        "Holm's adjustment is over all tests of a table. "
    )
    if least == 1:
        text += "Arms with one seed have no test, and an interval over problems alone."
    elif least < 6:
        text += f"With {least} seeds p cannot be below {wording.probability(2.0 ** (1 - least))}, however clear the "
        text += "difference; the interval and the seeds themselves have to be read."
    return [Heading("Paired comparisons"), Paragraph(text), *tables]


def _comparison_table(done: Mapping[str, Arm], reference: str) -> Table | None:
    found: dict[str, list[Comparison | None]] = {
        name: [compare(arm, done[reference], rate) for rate in ("hack", "solve")]
        for name, arm in done.items()
        if name != reference
    }
    found = {name: pair for name, pair in found.items() if None not in pair}
    tests = [comparison.p_value for pair in found.values() for comparison in pair if comparison.p_value is not None]
    adjusted = iter(holm(tests))
    rows = []
    for name, pair in found.items():
        cells = [name, str(pair[0].estimate.seeds)]
        for comparison in pair:
            held = None if comparison.p_value is None else next(adjusted)
            p_values = (wording.probability(comparison.p_value), wording.probability(held))
            cells += [wording.points(comparison.estimate), *p_values]
        rows.append(tuple(cells))
    header = ("arm", "seeds", "hack", "p", "p (Holm)", "solve", "p", "p (Holm)")
    return Table(header, tuple(rows), f"Against {reference}") if rows else None


_DOTS = (
    "Final rates. Filled: deployed; open: as trained. Lines are 95% intervals, small ticks single seeds. "
    f"Fewer than {LEAST_SEEDS} seeds say little about seeds."
)


def figure_blocks(arms: Sequence[Arm], observed: Mapping[str, Observations]) -> list[Block]:
    """Curves, zones, scores and ratios."""
    shaded = "Lines are means over seeds; the shade spans the seeds."
    running = f"{shaded} Running means over {figures.SMOOTHING} steps."
    plots = [
        ("Over training", "evaluation", figures.evaluation_curves(arms), f"Rates on held-out problems. {shaded}"),
        (None, "training", figures.training_curves(arms), f"The rollouts of training themselves. {running}"),
        ("By mode", "modes", figures.mode_curves(arms), f"The deployed policy, mode by mode. {shaded}"),
        (
            "What the gate did",
            "zones",
            figures.zone_shares(arms),
            "Shares of zones among scored rollouts, means over seeds. The line is qmass, the quarantine's share "
            "of the gradient's norm.",
        ),
        (
            None,
            "scores",
            figures.score_histograms(observed),
            "Gate scores of rollouts with positive advantage by true label, which the gate never sees; all steps "
            "and seeds. The outermost bars hold what lies beyond them.",
        ),
        (None, "ratios", figures.ratio_curves(arms), f"Mean ratio of training to sampling policy. {running}"),
    ]
    blocks: list[Block] = []
    for title, name, plot, caption in plots:
        found = _plot(name, plot, caption)
        blocks += [*([Heading(title)] if title and found else []), *found]
        if name == "scores":
            blocks += _auroc_table(observed)
    return blocks


def _auroc_table(observed: Mapping[str, Observations]) -> list[Block]:
    rows = [
        (name, *(str(len(found.scores[t])) for t in TRUTHS), "-" if found.auroc is None else f"{found.auroc:.3f}")
        for name, found in observed.items()
        if any(found.scores.values())
    ]
    caption = "Rollouts with positive advantage by true label, and AUROC of the score for hack against the rest"
    return [Table(("arm", *TRUTHS, "AUROC"), tuple(rows), caption)] if rows else []


def _plot(name: str, plot: Plot | None, caption: str) -> list[Block]:
    return [] if plot is None else [Figure(name, *plotting.render(plot), caption)]


def gallery_blocks(observed: Mapping[str, Observations]) -> list[Block]:
    """Completions to look at, of the first seed of each arm."""
    blocks: list[Block] = []
    for name, found in observed.items():
        if found.examples:
            blocks.append(Heading(name, 3))
        for example in found.examples:
            blocks.append(Code(example.prompt, f"{example.title}. The prompt:"))
            blocks += [Code(text, caption) for caption, text in example.completions]
    return [Heading("Examples"), *blocks] if blocks else []


def settings_blocks(arms: Sequence[Arm]) -> list[Block]:
    """Settings that are not the same in all runs."""
    found = differing_settings(arms)
    if not found:
        return [Heading("Settings"), Paragraph("All runs have the same settings, seeds aside.")]
    rows = tuple((name, *map(wording.number, values)) for name, values in found.items())
    caption = "Settings that are not the same in all arms; seeds and what has no part in the result are left out"
    return [Heading("Settings"), Table(("setting", *(arm.name for arm in arms)), rows, caption)]
