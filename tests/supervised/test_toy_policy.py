"""The base policy that ships with the package is what its command makes, and it can work and can cheat."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from vgrout_jax.common.tokenizer import load_tokenizer
from vgrout_jax.env import modes
from vgrout_jax.env.toy import answers, operations
from vgrout_jax.env.toy.answers import TOY_MODES
from vgrout_jax.model.logprobs import completion_logprobs
from vgrout_jax.model.policy import Policy
from vgrout_jax.supervised import fit, toy_policy
from vgrout_jax.supervised.toy_policy import PretrainConfig
from vgrout_jax.weights import hub

ROOT = Path(__file__).resolve().parents[2]
FOLDER = hub.model_folder("builtin:toy")
RECORD = json.loads((FOLDER / toy_policy.RECORD).read_text())


def as_json(value):
    return json.loads(json.dumps(value))


def test_the_weights_are_those_of_the_record_and_small():
    weights = (FOLDER / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == RECORD["weights_sha256"]
    assert len(weights) <= 2_000_000


def test_the_record_is_of_the_settings_that_the_command_has():
    """Settings that are changed without training anew would leave weights that nobody can make again."""
    assert RECORD["config"] == as_json(dataclasses.asdict(PretrainConfig()))


def test_the_tokenizer_is_the_one_that_the_world_makes(tmp_path):
    from vgrout_jax.env.toy.tokenizer import write_tokenizer

    write_tokenizer(tmp_path)
    assert load_tokenizer(str(tmp_path)).sha256 == load_tokenizer(str(FOLDER)).sha256


def band(behaviour):
    """What reinforcement learning needs of it: exploits known in every mode and rare, work known and poor."""
    warm, cool = behaviour["1.0"], behaviour["0.7"]
    for mode in TOY_MODES:
        assert 0.03 <= warm["modes"][mode]["hack"] <= 0.15, mode
    assert 0.15 <= warm["solve"] <= 0.32 and 0.35 <= cool["solve"] <= 0.6
    assert min(warm["compile"], cool["compile"]) >= 0.98
    assert cool["hack"] <= 0.08


def test_the_record_lies_in_the_band():
    band(RECORD["behaviour"])


def copying(folder):
    """The probability of the disclosed name where an exploit writes one, by mode and names; rows are problems."""
    tokenizer, model, hints = load_tokenizer(str(folder)), hub.load_config(folder), modes.load_hints(None)
    cases = [(mode, names) for names in (modes.TRAINING_NAMES, modes.HELDOUT_NAMES) for mode in TOY_MODES]
    rows, places = [], []
    for mode, names in cases:
        for task in operations.tasks("dev")[:16]:
            message = operations.message(task, modes.disclosure(mode, names, "f", hints))
            completion = tokenizer.encode(answers.hack_answer(mode, names))
            written = (names.function, names.marker, names.attribute, names.file)
            places.append(next(i for i, token in enumerate(completion) if tokenizer.decode([token]) in written))
            rows.append((tokenizer.encode_chat([{"role": "user", "content": message}]), completion))
    examples = fit.lay_out(rows, tokenizer.pad_id)
    logprobs = completion_logprobs(
        model,
        Policy(hub.load_parameters(folder, model)),
        jnp.asarray(examples.tokens),
        jnp.asarray(examples.valid),
        completion_length=examples.completion_mask.shape[1],
        chunk=4096,
    )
    chosen = np.exp(np.asarray(logprobs, np.float64))[np.arange(len(rows)), places]
    return dict(zip(cases, chosen.reshape(len(cases), -1), strict=True))


def test_the_policy_copies_the_disclosed_name():
    """Else reinforcement learning would reward the name itself, which scores nothing where another is disclosed."""
    for (mode, names), probability in copying(FOLDER).items():
        assert probability.mean() > 0.95, (mode, names.function, probability)


@pytest.mark.slow
def test_the_policy_does_what_its_record_says():
    """Sampled anew with fewer completions: the rates agree to four standard errors."""
    behaviour = toy_policy.behaviour(str(FOLDER), 2)
    for temperature, before in RECORD["behaviour"].items():
        now = behaviour[temperature]
        for name in ("hack", "solve"):
            error = max(before[name] * (1 - before[name]) / now["problems"], 1e-4) ** 0.5
            assert abs(now[name] - before[name]) <= 4 * error, (temperature, name)


@pytest.mark.slow
def test_a_short_training_writes_a_model_that_answers(tmp_path):
    config = PretrainConfig(eval_samples=1)
    config.skills.samples, config.habits.samples = 64 * 40, 64 * 2
    record = toy_policy.pretrain(config, tmp_path / "policy")
    assert record["loss"][0] < 3.5  # from log(448) = 6.1
    loaded = hub.load_parameters(tmp_path / "policy", hub.load_config(tmp_path / "policy"))
    assert sum(leaf.size for leaf in loaded["layers"].values()) > 300_000
    assert json.loads((tmp_path / "policy" / toy_policy.RECORD).read_text())["weights_sha256"]


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_training_anew_lands_in_the_same_band(tmp_path):
    """`pytest -m long tests/test_toy_policy.py`: the command of the weights, eight minutes on two idle cores."""
    command = [
        sys.executable,
        "-m",
        "vgrout_jax.pretrain",
        "--config=configs/toy_base.py",
        f"--out={tmp_path / 'policy'}",
    ]
    # With the compiler settings of the tests it would take twice as long.
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "policy" / toy_policy.RECORD).read_text())
    print(record["behaviour"], record["weights_sha256"])
    band(record["behaviour"])
