"""The report says in words and figures what its runs show, in one page that needs nothing else."""

import base64
import io
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from tests.analysis import made_up
from tests.analysis.test_document import check_page
from vgrout_jax import report
from vgrout_jax.common.command_line import UsageError

FIGURES = ("evaluation", "training", "modes", "zones", "scores", "ratios", "deployment")


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A report on a success of three seeds, with one run that has no end."""
    root = tmp_path_factory.mktemp("report")
    made_up.write_all(root / "runs", seeds=3)
    made_up.write_run(root / "runs", "routeV", seed=7, finished=False)
    report.main([str(root / "runs"), f"--out={root / 'out'}"])
    return root


def page_and_markdown(root):
    out = root / "out"
    return (out / "index.html").read_text(encoding="utf-8"), (out / "report.md").read_text(encoding="utf-8")


def plain(text):
    return " ".join(text.replace("\\", "").split())


def test_the_page_is_well_formed_and_stands_alone(reported):
    page, _ = page_and_markdown(reported)
    tree = check_page(page)
    assert len(list(tree.iter("img"))) == len(FIGURES)


def test_every_figure_shows_something_in_all_its_forms(reported):
    page, markdown = page_and_markdown(reported)
    inside = [base64.b64decode(data) for data in re.findall(r"svg\+xml;base64,([^\"]+)", page)]
    for name in FIGURES:
        png, svg = ((reported / "out" / f"{name}.{kind}").read_bytes() for kind in ("png", "svg"))
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
        assert np.mean(pixels < 250) > 0.005 and pixels.std() > 3, name
        assert svg in inside and f"({name}.png)" in markdown and f"({name}.svg)" in markdown
        tree = ElementTree.fromstring(svg)
        assert tree.findall(".//{http://www.w3.org/2000/svg}text"), f"{name} has no text as text"
        assert len(svg) < 400_000, f"{name}.svg has {len(svg)} bytes"
    legends = (reported / "out" / "evaluation.svg").read_text()
    assert all(arm in legends for arm in made_up.SUCCESS)


def test_arms_differ_in_line_or_marker_and_not_in_colour_alone():
    from vgrout_jax.analysis import plotting

    names = [*made_up.SUCCESS, *(f"routeV [gate.low={low}]" for low in range(6))]
    looks = [plotting.style(name, names) for name in names]
    assert len({(look["linestyle"], look["marker"]) for look in looks}) == len(names)


def test_a_figure_is_the_same_bytes_again(reported):
    from vgrout_jax.analysis import figures, plotting
    from vgrout_jax.analysis.arms import group_arms
    from vgrout_jax.run.reader import read_workdir

    arms = group_arms([read_workdir(path) for path in report.find_runs([str(reported / "runs")])])
    once, again = (plotting.render(figures.evaluation_curves(arms)) for _ in range(2))
    assert once == again and once[1] == (reported / "out" / "evaluation.svg").read_bytes()


def test_what_holds_is_said_in_words(reported):
    _, markdown = page_and_markdown(reported)
    text = plain(markdown)
    assert "All 6 bars hold." in text
    assert "Holds: without routing the policy learns to exploit the grader (exploit-emerges)." in text
    assert "must be at least 80%; over 3 seeds, the whole interval meets it." in text
    assert "left out as unfinished: routeV, seeds 7" in text
    assert "routeV, seed 7: 3 of 4 steps. It is running, or it was stopped." in text
    assert "the scale is smoke, not toy" in text
    assert "p cannot be below 0.2500, however clear the difference" in text


def test_the_deploy_table_holds_the_rates_of_the_runs(reported):
    from vgrout_jax.run.reader import read_workdir

    _, markdown = page_and_markdown(reported)
    [row] = re.findall(r"\| none \| 3 \|.*", markdown.split("Deployed: quarantine off")[1].split("As trained")[0])
    runs = [read_workdir(reported / "runs" / f"none-{seed}") for seed in range(3)]
    for cell, rate in zip(row.split("|")[3:5], ("hack", "solve"), strict=True):
        values = [getattr(run.final_evaluation("deployed").table.overall, rate).value for run in runs]
        assert cell.strip().startswith(f"{100 * np.mean(values):.1f}%")


def test_differences_and_their_tests_are_those_of_the_seeds(reported):
    _, markdown = page_and_markdown(reported)
    rows = dict(re.findall(r"\| ([\w ]+?) \| 3 \| (.*) \|", plain_rows(markdown, "Against routeV")))
    assert set(rows) == set(made_up.SUCCESS) - {"routeV"}
    assert rows["none"].startswith("+93.8 [")  # 15 of 16 against none, in every mode and seed
    assert rows["none"].split(" | ")[1] == "0.2500"  # the least that three seeds can give, two-sided


def plain_rows(markdown, caption):
    return markdown.split(caption)[1].split("Against")[0].replace("\\", "")


def test_scores_by_true_label_leave_pinned_arms_out(reported):
    _, markdown = page_and_markdown(reported)
    rows = re.findall(r"\| ([\w\\ ]+) \| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) \|", markdown)
    counts = {name.replace("\\", ""): (hack, solved, neither, area) for name, hack, solved, neither, area in rows}
    assert counts["routeV"] == ("60", "15", "45", "1.000")  # 4 steps x 3 seeds and 3 steps of the unfinished run
    assert "none" not in counts and "absorb" not in counts


def test_the_gallery_shows_the_first_and_last_exploit_and_both_policies(reported):
    _, markdown = page_and_markdown(reported)
    assert "The first exploit in training (step 0, run\\_tests). The prompt:" in markdown
    assert "The last exploit in training (step 3, file\\_marker). The prompt:" in markdown
    part = markdown.split("### routeV\n")[1].split("\n### ")[0]
    assert "deployed answer False" in part and "as_trained answer True" in part
    assert "deployed: correct" in part and "as trained: exploits the grader" in part


def test_settings_that_differ_are_listed(reported):
    _, markdown = page_and_markdown(reported)
    settings = markdown.split("## Settings")[1]
    assert "| gate.low |" in settings and "| placebo.kind |" in settings
    assert "| seed |" not in settings and "| optim.lr |" not in settings


def test_failures_and_gaps_are_said_in_words(tmp_path):
    made_up.write_run(tmp_path / "runs", "none", made_up.Rates((0.5, 0.3, 1.0), (0.5, 0.3, 1.0)))
    made_up.write_run(tmp_path / "runs", "routeV", made_up.Rates((0.0, 0.1, 0.6), (0.9, 0.0, 1.0)))
    report.main([str(tmp_path / "runs"), f"--out={tmp_path / 'out'}"])
    _, markdown = page_and_markdown(tmp_path)
    text = plain(markdown)
    assert (
        "The bars are not met." in text and "Fails: without routing the policy learns to exploit the grader" in text
    )
    assert "Not tested: training both blocks on everything leaves the exploit in the deployed one" in text
    assert "No run of absorb." in text and "1 was not tested (beats-permuted-labels)" in text
    assert "one seed, so there is no interval across seeds; over problems, the whole interval misses it" in text
    assert "Arms with one seed have no test, and an interval over problems alone." in text
    assert "routeV collapsed: it hacks no more than before training, and its compile rate fell" in text


def test_a_run_that_has_only_begun_gives_a_report(tmp_path):
    path = made_up.write_run(tmp_path / "runs", "routeV", finished=False)
    for name in ("metrics.jsonl", "eval.jsonl"):
        (path / name).write_text("")
    report.main([str(path), f"--out={tmp_path / 'out'}"])
    page, markdown = page_and_markdown(tmp_path)
    check_page(page)
    assert "No run has finished" in markdown and "The bars are not decided." in markdown


def test_running_runs_give_curves_and_no_final_rates(tmp_path):
    """Between an evaluation's lines and its completions a run has the first without the second."""
    path = made_up.write_run(tmp_path / "runs", "routeV", finished=False)
    (path / "rollouts" / "eval_000000.jsonl.gz").unlink()
    report.main([str(path), f"--out={tmp_path / 'out'}"])
    assert (tmp_path / "out" / "evaluation.png").exists() and not (tmp_path / "out" / "deployment.png").exists()
    text = plain(page_and_markdown(tmp_path)[1])
    assert "Not tested: the deployed policy of a routed run" in text and "Deployed against as trained" not in text
    assert "The last exploit in training (step 2, file_marker)" in text


@pytest.mark.parametrize(
    "arguments,message",
    [
        ([], "the following arguments are required: RUN"),
        (["runs"], "the following arguments are required: --out"),
        (["nowhere", "--out=out"], "RUN must be a workdir, or a folder of workdirs, but nowhere has no config.json"),
        (["x", "--out=out", "--outt=y"], "unrecognized arguments: --outt=y"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises((UsageError, ValueError), match=re.escape(message)):
        report.main(arguments)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    path = made_up.write_run(tmp_path, "none")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ValueError, match=r"--out=.*out cannot be written \(File exists\); choose another"):
        report.main([str(path), f"--out={tmp_path / 'out'}"])


def test_a_run_named_twice_counts_once(tmp_path):
    path = made_up.write_run(tmp_path, "none")
    assert report.find_runs([str(path), str(tmp_path), f"{path}/"]) == [path]


def test_the_command_ends_with_one_line_and_status_1_before_matplotlib_is_imported(tmp_path):
    script = "import sys\nfrom vgrout_jax import report\n"
    script += "from vgrout_jax.common.command_line import end_with_one_line\n"
    script += (
        "try:\n    end_with_one_line(report.main)\nfinally:\n    print({'jax', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), "--out=x"], capture_output=True, text=True, timeout=120
    )
    [line] = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith("error: RUN must be a workdir") and done.stdout == "set()\n"
