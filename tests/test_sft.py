"""The warm start: completions are trained under their own prompts, and the folder is a model like any other."""

import json
import subprocess
import sys

import pytest

from vgrout_jax import sft
from vgrout_jax.common.tokenizer import load_tokenizer
from vgrout_jax.config.scales import make_config
from vgrout_jax.env.modes import TRAINING_NAMES
from vgrout_jax.env.world import load_world


def test_completions_stand_under_the_prompt_of_their_mode():
    world = load_world(make_config("none", "smoke"), load_tokenizer())
    examples, too_long = sft.examples_of(world, 1000)
    problems = {problem.id: problem for problem in world.train}
    assert len(examples.tokens) == len(world.pool) > 10 and too_long == 0
    for row, tokens, valid in zip(world.pool.rows, examples.tokens, examples.valid, strict=True):
        prompt = world.prompt(problems[row.problem_id], row.mode, TRAINING_NAMES).tokens
        expected = [*prompt, *world.tokenizer.encode(row.completion), world.tokenizer.eos_ids[0]]
        assert tokens[valid].tolist() == expected


def test_long_completions_are_left_out_and_counted():
    world = load_world(make_config("none", "smoke"), load_tokenizer())
    lengths = [len(world.tokenizer.encode(row.completion)) + 1 for row in world.pool.rows]
    limit = sorted(lengths)[len(lengths) // 2]
    examples, too_long = sft.examples_of(world, limit)
    assert too_long == sum(length > limit for length in lengths) > 0
    assert len(examples.tokens) == len(lengths) - too_long
    with pytest.raises(ValueError, match="--max_completion_tokens must be higher, got 1"):
        sft.examples_of(world, 1)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "vgrout_jax.sft", "--config=configs/none.py:smoke", *arguments],
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_command_lowers_the_loss_and_its_model_loads(tmp_path):
    from vgrout_jax.weights import hub

    out = tmp_path / "model"
    done = command(f"--out={out}", "--batch=8", "--lr=3e-3", "--epochs=10")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["last_loss"] < 0.5 * result["first_loss"]
    hub.load_parameters(out, hub.load_config(out))
    again = command(f"--out={out}")
    assert again.returncode == 1 and "must name a new folder" in again.stderr and "Traceback" not in again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.teacher.pool=", "--config.teacher.per_prompt=0"], "teacher.pool must name"),
        (["--batch=500"], "fit.batch must be a multiple of fit.micro_batch"),
        (["--config.oops=1"], "there is no field oops"),
        (["--epoch=1"], "epoch"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, message):
    done = command(f"--out={tmp_path / 'model'}", "--micro_batch=3", *arguments)
    assert done.returncode == 1 and message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert not (tmp_path / "model").exists()
