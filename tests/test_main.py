"""The command line: every field is a flag, and every mistake is one line before jax is imported."""

import dataclasses
import json
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from absl import flags

from tests.config.test_schema import assign, built
from vgrout_jax.common import files
from vgrout_jax.common.command_line import UsageError
from vgrout_jax.config import ARMS, SCALES, Config, validation
from vgrout_jax.config import flags as run_flags
from vgrout_jax.config.validation import read

ROOT = Path(__file__).resolve().parents[1]
SMOKE = f"--config={ROOT}/configs/routeV.py:smoke"


@pytest.fixture
def command_line(monkeypatch):
    """(arguments) -> the configuration that `main` would run, with flags of its own for every call."""

    def parse(*arguments):
        values = flags.FlagValues()
        config = run_flags.config_flags.DEFINE_config_file("config", None, flag_values=values)
        workdir = flags.DEFINE_string("workdir", None, "", flag_values=values)
        monkeypatch.setattr(run_flags.flags, "FLAGS", values)
        monkeypatch.setattr(run_flags, "CONFIG", config)
        monkeypatch.setattr(run_flags, "WORKDIR", workdir)
        monkeypatch.setattr(sys, "argv", ["main", *arguments])
        run_flags.parse_flags(sys.argv)
        return run_flags.resolve(run_flags.CONFIG.value, run_flags.WORKDIR.value)

    return parse


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_builds_at_every_scale(arm, scale, command_line):
    sources = () if scale == "smoke" else ("--config.data.train=problems.jsonl", "--config.teacher.pool=pool.jsonl")
    config, workdir = command_line(f"--config={ROOT}/configs/{arm}.py:{scale}", *sources)
    assert (config.arm, config.scale) == (arm, scale)
    assert workdir.parent == Path("runs") and workdir.name.startswith(f"{arm}-{scale}-")
    expected = built(arm, scale)
    expected.resolve()
    assert config == expected


def test_fast_is_the_default_scale(command_line):
    sources = ("--config.data.train=problems.jsonl", "--config.teacher.pool=pool.jsonl")
    assert (
        command_line(f"--config={ROOT}/configs/none.py", *sources)[0]
        == command_line(f"--config={ROOT}/configs/none.py:fast", *sources)[0]
    )


def test_fast_and_full_ask_for_problems_and_fast_for_a_pool(command_line):
    for scale in ("fast", "full"):
        with pytest.raises(UsageError, match=r"^data\.train must"):
            command_line(f"--config={ROOT}/configs/routeV.py:{scale}")
    with pytest.raises(UsageError, match=r"^teacher\.pool must"):
        command_line(f"--config={ROOT}/configs/routeV.py:fast", "--config.data.train=a.jsonl")
    command_line(f"--config={ROOT}/configs/routeV.py:full", "--config.data.train=a.jsonl")


WRONG_FLAGS = {
    "--config.gate.lowest: ": ["--config.gate.lowest=1"],
    "--config.gates.low: ": ["--config.gates.low=1"],
    "--config.gate.low.deep: ": ["--config.gate.low.deep=1"],
    "--config.train.step: ": ["--config.train.step", "5"],
    "--config.gate is a section": ["--config.gate=1"],
    "--config.arm is settled": ["--config.arm=none"],
    "--config.scale is settled": ["--config.scale=full"],
    "flag --config.optim.lr=fast": ["--config.optim.lr=fast"],
    "flag --config.train.steps=1.5": ["--config.train.steps=1.5"],
    "flag --config.log.wandb=maybe": ["--config.log.wandb=maybe"],
    "model.remat must be": ["--config.model.remat=maybe"],
    "flag --config.eval.problems=all": ["--config.eval.problems=all"],
    "train.steps must be int": ["--config.train.steps=None"],
    "gate.pool must be": ["--config.gate.pool=None"],
    "data.train must be": ["--config.data.train=5"],
    "data.train must name": ["--config.data.train="],
    "data.prompt_buckets must be": ["--config.data.prompt_buckets=a,b"],
    "env.modes must be": ["--config.env.modes=run_tests,sentinal"],
    "gate.low must be < gate.high": ["--config.gate.low=0.5", "--config.gate.high=0.1"],
    "rollout.top_p must be": ["--config.rollout.top_p=1.01"],
    "train.micro_batch must divide": ["--config.train.micro_batch=5"],
    "placebo.kind must be None": ["--config.placebo.kind=labels"],
    "Unknown command line flag 'stpes'": ["--stpes=5"],
    "Missing value for flag --config.gate.low": ["--config.gate.low"],
    "unexpected argument 'more'": ["more"],
}


@pytest.mark.parametrize("message", WRONG_FLAGS)
def test_wrong_flags_are_one_line(message, command_line):
    with pytest.raises(UsageError) as caught:
        command_line(SMOKE, *WRONG_FLAGS[message])
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ([], "--config must name an arm's file"),
        (["--config="], "--config must name an existing .py file"),
        (["--config", "configs/nowhere.py"], "--config must name an existing .py file"),
        (["--config=configs/nowhere.py:smoke"], "--config must name an existing .py file"),
        ([f"--config={ROOT}/pyproject.toml"], "--config must name an existing .py file"),
        ([f"--config={ROOT}/configs/none.py:tiny"], "--config: the scale must be one of smoke, toy, fast, full"),
        (
            ["--config", f"{ROOT}/configs/none.py:tiny"],
            "--config: the scale must be one of smoke, toy, fast, full",
        ),
        ([f"--config={ROOT}/configs/none.py:"], "--config: the scale must be one of smoke, toy, fast, full"),
        (["--config.seed=1", SMOKE], "Found --config.seed=1 in argv before"),
    ],
)
def test_wrong_config_files_are_one_line(arguments, message, command_line):
    with pytest.raises(UsageError) as caught:
        command_line(*arguments)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_a_config_file_s_own_mistake_is_one_line(tmp_path, command_line):
    (tmp_path / "mine.py").write_text("def get_config(scale='fast'):\n    raise ValueError('two\\nlines')\n")
    (tmp_path / "nothing.py").write_text("def get_config(scale='fast'):\n    return {}\n")
    with pytest.raises(UsageError) as caught:
        command_line(f"--config={tmp_path}/mine.py")
    assert str(caught.value) == "lines"
    with pytest.raises(UsageError, match="must name an arm's file"):
        command_line(f"--config={tmp_path}/nothing.py")


# Runs `main`, and tells on standard output what was imported by the end.
DRIVER = """
import sys
from vgrout_jax import main
try:
    main.run()
finally:
    print(sorted({"jax", "numpy", "flax", "transformers"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "arguments,field",
    [
        ((SMOKE, "--config.gate.lowest=1"), "--config.gate.lowest"),
        ((SMOKE, "--config.optim.lr=fast"), "--config.optim.lr"),
        ((SMOKE, "--config.gate.low=0.9"), "gate.low"),
        ((f"--config={ROOT}/configs/none.py:smoke", "--config.label.action=absorb"), "label.action"),
        ((SMOKE, "--config.gate.kind=mid"), "--config.gate.kind is no field any more: an arm's label.source"),
    ],
)
def test_the_command_ends_with_one_line_and_status_1_before_jax_is_imported(arguments, field, tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", DRIVER, *arguments, f"--workdir={tmp_path}/run"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert ran.returncode == 1
    [line] = ran.stderr.splitlines()
    assert line.startswith("error: ") and field in line
    assert ran.stdout.strip() == "[]"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "argument,name,value",
    [
        ("--config.env.modes=run_tests,sentinel", "env.modes", ("run_tests", "sentinel")),
        ("--config.env.modes=run_tests, sentinel", "env.modes", ("run_tests", "sentinel")),
        ("--config.env.modes=('run_tests', 'sentinel')", "env.modes", ("run_tests", "sentinel")),
        ("--config.env.modes=exit_code", "env.modes", ("exit_code",)),
        ("--config.data.train=a.jsonl,owner/name", "data.train", ("a.jsonl", "owner/name")),
        ("--config.data.train=builtin:smoke", "data.train", ("builtin:smoke",)),
        ("--config.data.prompt_buckets=256,8192", "data.prompt_buckets", (256, 8192)),
        ("--config.direction.tags=hack,lazy", "direction.tags", ("hack", "lazy")),
        ("--config.direction.tags=()", "direction.tags", ()),
        ("--config.direction.tags=None", "direction.tags", ("hack",)),
        ("--config.eval.problems=None", "eval.problems", None),
        ("--config.eval.problems=7", "eval.problems", 7),
        ("--config.grader.workers=3", "grader.workers", 3),
        ("--config.grader.workers=None", "grader.workers", None),
        ("--config.model.path=None", "model.path", None),
        ("--config.env.hints=None", "env.hints", None),
        ("--config.optim.lr=1e-5", "optim.lr", 1e-5),
        ("--config.optim.clip_norm=2", "optim.clip_norm", 2.0),
        ("--config.log.wandb", "log.wandb", True),
        ("--noconfig.log.tensorboard", "log.tensorboard", False),
        ("--config.grpo.unbiased=false", "grpo.unbiased", False),
    ],
)
def test_flags_are_read_as_their_field_s_type(argument, name, value, command_line):
    config, _ = command_line(SMOKE, argument)
    assert read(config, name) == value and type(read(config, name)) is type(value)


def test_optional_values_may_stand_apart_from_their_flag(command_line):
    config, _ = command_line(SMOKE, "--config.eval.problems", "None", "--config.model.path", "None", "--workdir", "w")
    assert config.eval.problems is None and config.model.path is None
    placebo = f"--config={ROOT}/configs/placebo.py:smoke"
    assert command_line(placebo, "--config.placebo.kind=labels")[0].placebo.kind == "labels"
    assert command_line(SMOKE, "--workdir=runs/a")[1] == Path("runs/a")


def test_lazy_pairs_are_chosen_by_their_placebo(command_line):
    placebo = f"--config={ROOT}/configs/placebo.py:smoke"
    assert command_line(placebo)[0].direction.tags == ("hack",)
    assert command_line(placebo, "--config.placebo.kind=lazy_pairs")[0].direction.tags == ("lazy",)
    given = command_line(placebo, "--config.placebo.kind=lazy_pairs", "--config.direction.tags=hack")[0]
    assert given.direction.tags == ("hack",)


def test_the_package_s_own_completions_are_left_out_for_other_problems(command_line, caplog):
    assert command_line(SMOKE)[0].teacher.per_prompt == 1 and not caplog.records
    config, _ = command_line(SMOKE, "--config.data.train=problems.jsonl")
    assert (config.teacher.pool, config.teacher.per_prompt) == ((), 0) and len(caplog.records) == 1
    config, _ = command_line(SMOKE, "--config.data.train=a.jsonl", "--config.teacher.pool=pool.jsonl")
    assert (config.teacher.pool, config.teacher.per_prompt) == (("pool.jsonl",), 1)


def every_field():
    for section in dataclasses.fields(Config):
        if dataclasses.is_dataclass(section.type):
            for field in dataclasses.fields(section.type):
                yield f"{section.name}.{field.name}", field.type
        elif section.name not in ("arm", "scale"):  # the config file's own
            yield section.name, section.type


FIELDS = list(every_field())


def another_value(kind, value):
    """A value of a field's type, as text and as read; not its present one."""
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Union:
        return another_value(parts[0], value)
    if typing.get_origin(kind) is tuple:
        items = ("3", "5") if parts[0] is int else ("one", "two")
        return ",".join(items), tuple(map(parts[0], items))
    if kind is bool:
        return str(not value).lower(), not value
    return {int: ("77", 77), float: ("0.0625", 0.0625), str: ("other", "other")}[kind]


@pytest.mark.parametrize("name,kind", FIELDS, ids=[name for name, _ in FIELDS])
def test_every_field_is_a_flag(name, kind, command_line, monkeypatch):
    monkeypatch.setattr(validation, "validate", lambda config: None)  # the rules have tests of their own
    pool = ("--config.teacher.pool=pool.jsonl",) if name == "data.train" else ()  # else the pool is left out too
    before, _ = command_line(SMOKE, *pool)
    text, value = another_value(kind, read(before, name))
    after, _ = command_line(SMOKE, *pool, f"--config.{name}={text}")
    assert read(before, name) != value and read(after, name) == value
    assert type(read(after, name)) is type(value)
    assert assign(after, **{name: read(before, name)}) == before  # and nothing else has changed


def test_config_json_round_trip(tmp_path, command_line):
    config, _ = command_line(SMOKE, "--config.eval.problems=None", "--config.env.modes=run_tests,sentinel")
    files.write_json(tmp_path / "config.json", config.to_dict())
    stored = json.loads((tmp_path / "config.json").read_text())
    assert set(stored) == {field.name for field in dataclasses.fields(Config)}

    def restore(node, kind):
        if not dataclasses.is_dataclass(kind):
            return tuple(node) if isinstance(node, list) else node
        types = {field.name: field.type for field in dataclasses.fields(kind)}
        assert set(node) == set(types)
        return kind(**{name: restore(value, types[name]) for name, value in node.items()})

    assert restore(stored, Config) == config
