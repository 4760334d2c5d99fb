"""The replay command: what it prints and writes, and its one-line mistakes."""

import io
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.analysis.test_document import check_page
from tests.analysis.test_replaying import ROWS, STEPS, write_run
from vgrout_jax import replay, train
from vgrout_jax.analysis.replaying import replay as replay_run
from vgrout_jax.common.command_line import UsageError
from vgrout_jax.config.arms import PLACEBOS
from vgrout_jax.config.scales import make_config
from vgrout_jax.config.validation import validate
from vgrout_jax.run.reader import read_workdir


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("stored"))


def test_the_command_prints_and_writes_what_would_have_been_routed(tmp_path, capsys):
    path = write_run(tmp_path)
    replay.main([str(path)])
    own = capsys.readouterr().out
    assert (
        "The run's own setting." in own and f"Labels that are other than the run's: 0.0% (0 of {STEPS * ROWS})" in own
    )
    replay.main([str(path), "--config.gate.high=2.5", "--config.gate.low", "-3", f"--out={tmp_path / 'out'}"])
    out = capsys.readouterr().out
    assert "* gate.high = 2.5" in out and "* gate.low = -3.0" in out and "without rounding" in out
    changed = int(re.search(r"Labels that are other than the run's: [\d.]+% \((\d+) of", out)[1])
    assert changed == sum(int(line.split()[-1]) for line in out.splitlines() if re.match(r"\d+  +\d+ ", line)) > 0
    check_page((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))
    for name in ("map", "scores"):
        pixels = np.asarray(Image.open(io.BytesIO((tmp_path / "out" / f"{name}.png").read_bytes())).convert("L"))
        assert pixels.std() > 10
    assert ">gate<" in (tmp_path / "out" / "map.svg").read_text()
    assert "](map.png)" in (tmp_path / "out" / "replay.md").read_text() and (path / "replay" / "index.html").exists()


@pytest.mark.parametrize(
    "arguments,message",
    [
        (
            ["--config.gate.probe_policy=full"],
            "--config.gate.probe_policy=full cannot be replayed; what can: gate.low",
        ),
        (["--config.gate.low=x"], "argument --config.gate.low: invalid float value: 'x'"),
        (["--config.gate.leave_one_out=maybe"], "must be true or false, got 'maybe'"),
        (["--config.gate.low=0.9"], "gate.low must be < gate.high"),
        (["--config.gate.refresh_every=0"], "gate.refresh_every must be >= 1, got 0"),
        (["--config.gate.band_floor=0"], "gate.band_floor must be > 0"),
        (["--config.gate.pool=median"], "gate.pool must be one of"),
        (["--config.placebo.kind=colour"], "placebo.kind must be one of"),
    ],
)
def test_mistakes_are_named(stored, arguments, message):
    with pytest.raises((UsageError, ValueError), match=re.escape(message)):
        replay.main([str(stored), *arguments])


def test_flags_are_read_as_their_field_s_type(tmp_path):
    options = replay._parse(
        ["run", "--config.direction.tags=a, b", "--config.placebo.kind=None", "--config.direction.unit_sides=FALSE"]
    )
    found = {name: getattr(options, name) for name in replay.FIELDS if hasattr(options, name)}
    assert found == {"direction.tags": ("a", "b"), "placebo.kind": None, "direction.unit_sides": False}


def test_a_missing_run_is_one_line_before_jax_is_imported(tmp_path):
    script = "import sys\nfrom vgrout_jax import replay\n"
    script += "from vgrout_jax.common.command_line import end_with_one_line\n"
    script += (
        "try:\n    end_with_one_line(replay.main)\nfinally:\n    print({'jax', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120)
    [line] = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith("error: ") and "config.json is not in it" in line
    assert done.stdout == "set()\n"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [None, *PLACEBOS])
def test_a_real_run_s_labels_are_replayed_exactly(tmp_path, kind):
    """Of routeV and of every placebo, over two directions: a random one is drawn once, others are extracted anew."""
    config = make_config("placebo" if kind else "routeV", "smoke")
    config.train.steps, config.eval.every_steps, config.eval.samples = 4, 0, 1
    config.log.tensorboard, config.log.gradients, config.placebo.kind = False, True, kind
    config.gate.refresh_every = 2
    config.resolve()
    validate(config)
    train.train(config, tmp_path)
    run = read_workdir(tmp_path)
    found = replay_run(run, run.config)
    names = ("clean", "mid", "hack")
    for step in found.steps:
        assert [names[label] for label in step.labels] == [row.label for row in run.training_rollouts(step.step)]
        assert step.rounding < 0.1
    assert found.exact and len(found.steps) == 4
    first, second = (tmp_path / "gradients" / f"direction_{step:06d}.npz" for step in (0, 2))
    assert second.exists() == (kind != "direction")
    if kind != "direction":
        assert not np.array_equal(np.load(first)["v"], np.load(second)["v"])
