"""No verdict reaches an arm that does not say that it reads a monitor: by type, and by the bits of whole runs."""

import dataclasses
import gzip
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tests import tiny
from vgrout_jax import train
from vgrout_jax.arms.base import Readings
from vgrout_jax.arms.compose import make_arm
from vgrout_jax.config.arms import variants
from vgrout_jax.config.scales import make_config
from vgrout_jax.config.validation import validate
from vgrout_jax.env.grader import Grader
from vgrout_jax.env.teacher import TeacherPool
from vgrout_jax.model.policy import Frozen
from vgrout_jax.rl.optim import make_optimizer
from vgrout_jax.rl.state import Batch, initial_state
from vgrout_jax.rl.step import build_step
from vgrout_jax.weights import checkpoint

VARIANTS = {variant.name: variant for variant in variants()}
NEUTRAL = ("tokens", "valid", "completion_mask", "rewards", "quarantine_sampled", "sampler_logprobs", "taught")


def configured(name: str):
    """A run of one step on one layer, in the plain schedule."""
    variant = VARIANTS[name]
    config = make_config(variant.arm, "smoke")
    for field, value in variant.flags.items():
        section, field = field.split(".")
        setattr(getattr(config, section), field, value)
    config.model.num_layers, config.train.schedule = 1, "plain"
    config.train.steps, config.eval.every_steps = 1, 0
    config.eval.samples, config.eval.problems, config.log.tensorboard = 1, 1, False
    config.resolve()
    validate(config)
    return config


def test_what_an_arm_needs_is_what_it_reads():
    """The table's word on labels is that of the arm's source."""
    for name, variant in VARIANTS.items():
        source = make_arm(configured(name)).source
        needs = "verdicts" if source.reads_monitor else "pairs" if source.learns else "nothing"
        assert variant.entry.needs == needs, name


def test_the_step_of_an_arm_without_a_monitor_has_no_input_for_a_verdict():
    """The inputs of the jitted step are the state, the frozen model, the memory of pairs, a key, and these."""
    for name in VARIANTS:
        config = configured(name)
        arm, model, mesh = make_arm(config), tiny.model(layers=1), tiny.mesh()
        frozen = tiny.frozen(model)
        optimizer = make_optimizer(config.optim, config.train.steps)
        config.adapter.rank = tiny.RANK
        state = initial_state(frozen.init, optimizer, mesh)
        rows = config.rollout.prompts * config.rollout.group_size
        batch = Batch.shapes(rows, 4, config.rollout.max_new_tokens, flags=arm.source.reads_monitor)
        fields = {field.name for field in dataclasses.fields(batch) if getattr(batch, field.name) is not None}
        step = build_step(config, model, optimizer, mesh, arm=arm)
        memory = fake_memory(config, arm, model)
        seen = jax.eval_shape(step, state, Frozen(frozen.base, frozen.init), memory, batch, jax.random.key(0))
        assert seen is not None  # it traces with nothing else
        assert fields - set(NEUTRAL) == ({"flags"} if arm.source.reads_monitor else set()), name
        if arm.source.reads_monitor:
            with pytest.raises((TypeError, AttributeError)):  # and cannot do without
                jax.eval_shape(step, state, frozen, memory, batch.replace(flags=None), jax.random.key(0))


def fake_memory(config, arm, model):
    """The shapes of what the arm learns from a few pairs."""
    if not arm.source.learns:
        return None
    modules = 7 * model.num_layers
    readings = Readings(
        jax.ShapeDtypeStruct((6, modules, config.adapter.rank), "float32") if arm.source.reads_probe else None,
        jax.ShapeDtypeStruct((6, model.num_layers, model.hidden_size), "float32")
        if arm.source.reads_features
        else None,
    )
    return jax.eval_shape(arm.source.learn, readings)


def adapter(workdir):
    deltas, _ = checkpoint.load_adapter(workdir / "adapter")
    return [np.asarray(leaf) for leaf in jax.tree.leaves(deltas)]


def decisions(workdir):
    with gzip.open(workdir / "rollouts" / "step_000000.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    return [[row[name] for name in ("label", "score", "completion", "advantage")] for row in rows]


def spoil_verdicts(monkeypatch):
    """Verdicts of correctness replaced by noise, rewards kept, in teacher rows too; returns what was changed."""
    noise, changed = np.random.default_rng(0), []

    def flip(items, names):
        noisy = [dataclasses.replace(item, **{name: bool(noise.random() < 0.5) for name in names}) for item in items]
        changed.extend(old != new for old, new in zip(items, noisy, strict=True))
        return noisy

    submit, draw = Grader.submit, TeacherPool.draw
    verdict = ("correct", "exploited", "compiled", "passed")

    def submit_flipped(self, requests):
        pending = submit(self, requests)
        return SimpleNamespace(result=lambda: flip(pending.result(), verdict))

    monkeypatch.setattr(Grader, "submit", submit_flipped)
    monkeypatch.setattr(TeacherPool, "draw", lambda self, *rest: flip(draw(self, *rest), ("correct", "hacked")))
    return changed


@pytest.fixture(scope="module")
def shared_programs(tmp_path_factory):
    """The arms' runs share most of their programs; what one has compiled the others load."""
    settings = {"jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache"))}
    settings["jax_persistent_cache_min_compile_time_secs"] = 0.2
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.slow
@pytest.mark.usefixtures("one_program", "shared_programs")
@pytest.mark.parametrize("name", VARIANTS)
def test_noise_for_verdicts_changes_no_bit_but_where_a_monitor_is_read(name, tmp_path, monkeypatch):
    train.train(configured(name), tmp_path / "plain")
    changed = spoil_verdicts(monkeypatch)
    train.train(configured(name), tmp_path / "noise")
    assert any(changed)
    folders = (tmp_path / "plain", tmp_path / "noise")
    same = all(np.array_equal(*pair) for pair in zip(*map(adapter, folders), strict=True))
    same &= decisions(folders[0]) == decisions(folders[1])
    assert same == (VARIANTS[name].entry.needs != "verdicts")
