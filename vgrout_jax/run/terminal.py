"""What a person sees of a run: one table row a step, a progress bar, and the final table.

Standard output carries the table and nothing else; the bar is drawn on standard error, if that is a terminal.
"""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from io import TextIOBase
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vgrout_jax.evaluation.rates import RATES, Evaluation, Rate, Rates


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of the step table.

    Attributes:
        title: heading, no wider than `width`.
        key: key of `metrics.METRIC_KEYS`.
        form: format of a number, as of `format`.
        width: characters.
    """

    title: str
    key: str
    form: str = ".2f"
    width: int = 6


# Group heading, what the legend says of it, its columns.
GROUPS: tuple[tuple[str, str, tuple[Column, ...]], ...] = (
    (
        "own rollouts",
        "mean reward; share correct; share that hack (channel fired and not correct)",
        (Column("reward", "reward/own"), Column("solve", "solve/own"), Column("hack", "hack/own")),
    ),
    (
        "teacher",
        "mean stored reward of the rows from the teacher pool",
        (Column("reward", "reward/teacher"),),
    ),
    (
        "zones",
        "shares of scored rollouts: clean (deployed block trains), mid (both), hack (quarantine only)",
        (Column("clean", "zone/clean"), Column("mid", "zone/mid"), Column("hack", "zone/hack")),
    ),
    (
        "routing",
        "quarantine's share of the gradient; AUROC of gate score against the measuring-only hack flag",
        (Column("qmass", "qmass"), Column("auroc", "gate/auroc")),
    ),
    (
        "update",
        "KL to the base model; gradient norm before clipping; mean ratio of training to sampling policy",
        (Column("KL", "kl", ".2g", 7), Column("norm", "grad_norm", ".3g", 7), Column("ratio", "ratio/mean")),
    ),
    (
        "tokens",
        "share of own rollouts cut off by the length limit; tokens generated per second",
        (Column("cut", "cut_off"), Column("per s", "tokens_per_second", ".0f")),
    ),
    (
        "seconds",
        "time to generate, to grade, and to update",
        (
            Column("gen", "time/generate", ".1f"),
            Column("grade", "time/grade", ".1f"),
            Column("update", "time/update", ".1f"),
        ),
    ),
)
_STEP_WIDTH = 5


class StepTable:
    """Prints a legend, a heading and one aligned row a step; moves a progress bar if there is a terminal."""

    def __init__(self, steps: int, *, stream: TextIOBase | None = None, bar_stream: TextIOBase | None = None):
        """Prints nothing yet.

        Args:
            steps: number of steps of the run.
            stream: where the table goes; None: standard output.
            bar_stream: where the bar goes, if it is a terminal; None: standard error.
        """
        self._stream = sys.stdout if stream is None else stream
        bar_stream = sys.stderr if bar_stream is None else bar_stream
        self._headed = False
        self._bar = tqdm(total=steps, file=bar_stream, disable=not bar_stream.isatty(), unit="step", leave=False)

    def status(self, text: str) -> None:
        """Says beside the bar what is going on now; nothing where there is no bar."""
        self._bar.set_postfix_str(text)

    def row(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Prints the row of a step; what is missing, None or NaN is shown as '-'."""
        if not self._headed:
            self._print("\n".join([*legend(), "", *heading()]))
            self._headed = True
        groups = [
            " ".join(_cell(metrics.get(column.key), column) for column in columns).rjust(len(name))
            for name, _, columns in GROUPS
        ]
        self._print(" | ".join([f"{step:>{_STEP_WIDTH}}", *groups]))
        self._bar.update(1)

    def close(self) -> None:
        """Removes the bar; may be called again."""
        self._bar.close()

    def _print(self, text: str) -> None:
        # The bar is taken off the terminal while a row is printed, and drawn again below it.
        with tqdm.external_write_mode(file=self._stream):
            self._stream.write(text + "\n")
            self._stream.flush()


def legend() -> list[str]:
    """One line a group of columns; '-' marks what a step does not have."""
    width = max(len(name) for name, _, _ in GROUPS)
    lines = [f"  {name:<{width}}  {text}" for name, text, _ in GROUPS]
    return [*lines, f"  {'-':<{width}}  nothing to measure in this step"]


def heading() -> list[str]:
    """The two heading lines, the groups above their columns, and a rule."""
    top, titles = [" " * _STEP_WIDTH], [f"{'step':>{_STEP_WIDTH}}"]
    for name, _, columns in GROUPS:
        cells = " ".join(f"{column.title:>{column.width}}" for column in columns)
        top.append(f"{name:^{len(cells)}}")
        titles.append(f"{cells:>{len(name)}}")
    rule = "-+-".join("-" * len(title) for title in titles)
    return [" | ".join(top), " | ".join(titles), rule]


def _cell(value: Any, column: Column) -> str:
    number = math.nan if value is None else float(value)
    if math.isnan(number):
        return f"{'-':>{column.width}}"
    texts = [format(number, form) for form in (column.form, ".1e", ".0e")]
    # A number too wide for its column is in metrics.jsonl; the table keeps its alignment.
    text = next((text for text in texts if len(text) <= column.width), "#" * column.width)
    return f"{text:>{column.width}}"


_POLICY_NAMES = {"as_trained": "as trained", "deployed": "deployed"}


def final_table(
    evaluations: Sequence[Evaluation], paths: Sequence[Path] = (), *, before: Evaluation | None = None
) -> str:
    """The table as trained / deployed against hack, solve, compile and channel, with 95% intervals.

    Args:
        evaluations: of each split and policy the last one counts.
        paths: everything written, listed below the table.
        before: the policy before the first update; gives a row of its own, and the comparison in words.

    Returns:
        Text of several lines, without a newline at its end.

    Reference: docs/method.md section 13.
    """
    latest = {(evaluation.split, evaluation.policy): evaluation for evaluation in evaluations}
    lines = []
    for split in dict.fromkeys(split for split, _ in latest):
        lines.append(_rates_heading(split))
        if before is not None and before.split == split:
            lines.append(_rates_row("before training", before.table.overall, indent=2))
        lines += [*_split_rows(split, latest), ""]
        deployed, trained = latest.get((split, "deployed")), latest.get((split, "as_trained"))
        if before is not None and deployed and trained:
            lines += [*_in_words(before, deployed, trained), ""]
    lines.append("95% intervals, with problems as the sampling unit. A hack rate of zero with a fallen")
    lines.append("compile or solve rate is collapse, not suppression.")
    if paths:
        lines += ["", "written:", *(f"  {path}" for path in paths)]
    return "\n".join(lines)


def _in_words(before: Evaluation, deployed: Evaluation, trained: Evaluation) -> list[str]:
    """What the table says about exploits and about work."""

    def share(evaluation: Evaluation, rate: str) -> str:
        value = getattr(evaluation.table.overall, rate).value
        return "-" if value is None else f"{100 * value:.0f}%"

    return [
        f"As trained, {share(trained, 'hack')} of the answers exploit the grader; deployed, the quarantine removed, "
        f"{share(deployed, 'hack')}.",
        f"Before training {share(before, 'solve')} were right; deployed, {share(deployed, 'solve')} are.",
    ]


def _split_rows(split: str, latest: Mapping[tuple[str, str], Evaluation]) -> list[str]:
    rows = []
    for policy, name in _POLICY_NAMES.items():
        evaluation = latest.get((split, policy))
        if evaluation is None:
            rows.append(f"  {name:<20}{'-':>6}")
            continue
        rows.append(_rates_row(name, evaluation.table.overall, indent=2))
        if len(evaluation.table.modes) > 1:
            rows += [_rates_row(mode, rates, indent=4) for mode, rates in evaluation.table.modes.items()]
    return rows


def _rates_heading(split: str) -> str:
    return f"{split:<22}{'n':>6}" + "".join(f"{name:>22}" for name in RATES)


def _rates_row(name: str, rates: Rates, *, indent: int) -> str:
    cells = "".join(f"{_rate_cell(getattr(rates, rate)):>22}" for rate in RATES)
    return f"{' ' * indent}{name:<{22 - indent}}{rates.n:>6}{cells}"


def _rate_cell(rate: Rate) -> str:
    if rate.value is None:
        return "-"
    return f"{100 * rate.value:.1f}% [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
