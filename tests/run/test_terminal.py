"""The table of steps, the bar beside it and the final table."""

import io
import math
import re

import jax.numpy as jnp
import pytest

from vgrout_jax.evaluation import rates
from vgrout_jax.run import writer
from vgrout_jax.run.terminal import GROUPS, StepTable, final_table

COLUMNS = [column for _, _, columns in GROUPS for column in columns]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def rows(text):
    """The cells of every row below the rule."""
    lines = text.splitlines()
    rule = next(place for place, line in enumerate(lines) if set(line) <= {"-", "+"} and line)
    return [line.replace("|", " ").split() for line in lines[rule + 1 :]]


def test_every_column_shows_a_documented_metric():
    assert {column.key for column in COLUMNS} <= set(writer.METRIC_KEYS)
    assert len({column.key for column in COLUMNS}) == len(COLUMNS)
    assert all(len(column.title) <= column.width for column in COLUMNS)


def test_each_column_shows_its_own_metric(capsys):
    table = StepTable(2)
    values = {column.key: 0.01 * (place + 11) for place, column in enumerate(COLUMNS)}
    table.row(3, values)
    (cells,) = rows(capsys.readouterr().out)
    assert cells[0] == "3"
    assert cells[1:] == [format(values[column.key], column.form) for column in COLUMNS]


def test_legend_and_heading_are_printed_once_and_explain_every_group(capsys):
    table = StepTable(3)
    for step in range(3):
        table.row(step, {})
    out = capsys.readouterr().out
    assert len(rows(out)) == 3
    for name, text, _ in GROUPS:
        assert out.count(text) == 1
        assert f"  {name}" in out


def test_missing_none_and_nan_are_dashes(capsys):
    StepTable(1).row(0, {"reward/own": None, "qmass": math.nan, "gate/auroc": jnp.float32(jnp.nan), "kl": 0.5})
    (cells,) = rows(capsys.readouterr().out)
    shown = dict(zip((column.key for column in COLUMNS), cells[1:], strict=True))
    assert shown.pop("kl") == "0.5"
    assert set(shown.values()) == {"-"}


@pytest.mark.parametrize("value", [0.0, -0.1, 1e9, -1e9, 1e300, -1e300, 123456.789, 1e-12, math.inf, -math.inf])
def test_rows_stay_aligned_whatever_the_values(capsys, value):
    table = StepTable(2)
    table.row(0, {})
    table.row(99999, dict.fromkeys(writer.METRIC_KEYS, value))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.count(" | ") == len(GROUPS)]
    assert len(lines) == 4  # two of heading, two of steps
    assert len({tuple(m.start() for m in re.finditer(r" \| ", line)) for line in lines}) == 1
    assert len({len(line) for line in lines}) == 1


def test_nothing_but_the_table_and_no_bar_without_a_terminal(capsys):
    table = StepTable(2)
    table.status("generating")
    table.row(0, {})
    table.close()
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "\r" not in captured.out and "\x1b" not in captured.out


def test_a_terminal_gets_a_bar_on_its_own_stream(capsys):
    terminal, table_stream = Terminal(), io.StringIO()
    table = StepTable(2, stream=table_stream, bar_stream=terminal)
    table.status("generating")
    table.row(0, {})
    table.row(1, {})
    table.close()
    assert "generating" in terminal.getvalue() and "2" in terminal.getvalue()
    assert "\r" not in table_stream.getvalue() and len(rows(table_stream.getvalue())) == 2
    assert capsys.readouterr() == ("", "")


def on_screen(text):
    """The lines that a terminal shows: after a carriage return, characters overwrite those already there."""
    lines = []
    for line in text.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


def test_rows_and_bar_share_a_terminal_without_mixing(monkeypatch):
    """What is left on the screen is what the table alone would have printed."""
    alone, terminal = io.StringIO(), Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.stderr", terminal)
    for table in (StepTable(2, stream=alone, bar_stream=io.StringIO()), StepTable(2)):
        for step in range(2):
            table.status("generating")
            table.row(step, {})
        table.close()
    assert "generating" in terminal.getvalue()
    assert on_screen(terminal.getvalue()) == [line.rstrip() for line in alone.getvalue().split("\n")]


def evaluation(policy, step, hacked, *, split="heldout"):
    samples = [
        rates.Sample(
            f"p{i}", ("run_tests", "sentinel")[i % 2], hack=i < hacked, solve=i >= 30, compile=True, channel=i < 10
        )
        for i in range(40)
    ]
    return rates.Evaluation(step, split, policy, rates.rate_table(samples))


def test_final_table_shows_the_four_rates_of_both_policies_with_intervals():
    runs = [evaluation("deployed", 60, 0), evaluation("as_trained", 60, 20)]
    text = final_table(runs)
    trained, deployed = (
        next(line for line in text.splitlines() if line.startswith(f"  {name}"))
        for name in ("as trained", "deployed")
    )
    assert re.findall(r"(\d+\.\d)% \[", trained) == ["50.0", "25.0", "100.0", "25.0"]
    assert re.findall(r"(\d+\.\d)% \[", deployed) == ["0.0", "25.0", "100.0", "25.0"]
    low, high = rates.wilson_interval(0, 40)
    assert f"0.0% [{100 * low:.1f}, {100 * high:.1f}]" in deployed
    heading = text.splitlines()[0]
    for name in ("hack", "solve", "compile", "channel"):  # headings end where their cells end
        assert heading[: heading.index(name) + len(name)].rstrip() == heading[: heading.index(name) + len(name)]
    assert len(heading) == len(trained) == len(deployed)
    assert text.count("run_tests") == text.count("sentinel") == 2


def test_final_table_takes_the_last_of_each_policy_and_keeps_splits_apart():
    text = final_table(
        [
            evaluation("deployed", 0, 40),
            evaluation("deployed", 60, 4),
            evaluation("deployed", 60, 8, split="train"),
        ]
    )
    assert "100.0% [" in text and "10.0% [" in text and "20.0% [" in text
    rows = [line for line in text.splitlines() if line.startswith("  deployed")]
    assert [re.search(r"(\d+\.\d)%", row).group(1) for row in rows] == ["10.0", "20.0"]
    assert sum(line.split()[:3] == ["as", "trained", "-"] for line in text.splitlines()) == 2


def test_final_table_says_in_words_what_training_and_the_quarantine_did():
    before, runs = evaluation("deployed", 0, 4), [evaluation("deployed", 60, 0), evaluation("as_trained", 60, 20)]
    text = final_table(runs, before=before)
    first, row = text.splitlines()[:2]
    assert row.startswith("  before training") and "10.0% [" in row and len(row) == len(first)
    assert "As trained, 50% of the answers exploit the grader; deployed, the quarantine removed, 0%." in text
    assert "Before training 25% were right; deployed, 25% are." in text
    assert "Before training" not in final_table(runs)


def test_final_table_lists_what_was_written(tmp_path):
    text = final_table([evaluation("deployed", 1, 1)], [tmp_path / "metrics.jsonl"])
    assert text.endswith(f"written:\n  {tmp_path / 'metrics.jsonl'}")
