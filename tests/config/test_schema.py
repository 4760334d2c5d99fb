"""The presets hold the values of docs/method.md, and every impossible setting is refused in one line."""

import dataclasses

import pytest

from vgrout_jax import train
from vgrout_jax.config import ARMS, SCALES, Config
from vgrout_jax.config.scales import make_config
from vgrout_jax.config.validation import read, settled, validate
from vgrout_jax.run import build

# What the scales fast and full leave to the user.
DATA = {"data.train": ("problems.jsonl",), "teacher.pool": ("pool.jsonl",)}


def assign(config, /, **values):
    for name, value in values.items():
        *section, field = name.split(".")
        setattr(read(config, ".".join(section)) if section else config, field, value)
    return config


def built(arm, scale="smoke", /, **values):
    config = make_config(arm, scale)
    return assign(config, **({} if scale == "smoke" else DATA), **values)


# docs/method.md section 16; the columns are smoke, toy, fast, full.
SCALE_VALUES = {
    "model.path": (None, "builtin:toy", "Qwen/Qwen3-4B", "Qwen/Qwen3-4B"),
    "rollout.prompts": (2, 8, 8, 16),
    "rollout.group_size": (4, 8, 8, 16),
    "rollout.max_new_tokens": (32, 32, 512, 1536),
    "data.max_prompt_tokens": (..., 32, 1536, 1536),
    "train.steps": (..., 60, 60, 200),
    "adapter.rank": (4, 16, 32, 32),
    "rollout.temperature": (1.0, 1.0, 0.7, 0.7),
    "rollout.top_p": (1.0, 1.0, 0.95, 0.95),
    "rollout.top_k": (0, 0, 0, 0),
    "optim.lr": (3e-4, 1e-3, 3e-4, 7e-5),
    "loss.kl_coefficient": (1e-3, 0.0, 1e-3, 1e-3),
    "optim.weight_decay": (0.1, 0.0, 0.1, 0.1),
    "loss.clip_epsilon": (0.2, 0.2, 0.2, 0.2),
    "teacher.per_prompt": (1, 0, 1, 0),
    "teacher.off_step": (..., ..., 30, ...),
    "env.unhackable_frac": (0.25, 0.0, 0.25, 0.0),
    # sections 5, 9 and 13, the same at every scale
    "gate.refresh_every": (5, 5, 5, 5),
    "gate.band_floor": (0.05, 0.05, 0.05, 0.05),
    "optim.warmup_frac": (0.2, 0.2, 0.2, 0.2),
    "optim.beta1": (0.9, 0.9, 0.9, 0.9),
    "optim.beta2": (0.99, 0.99, 0.99, 0.99),
    "optim.clip_norm": (1.0, 1.0, 1.0, 1.0),
    "guard.warn_nats": (3.0, 3.0, 3.0, 3.0),
    "guard.stop_nats": (5.0, 5.0, 5.0, 5.0),
    "eval.temperature": (0.7, 0.7, 0.7, 0.7),
    "grpo.unbiased": (True, True, True, True),
}


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("scale", SCALES)
def test_scales_hold_the_method_s_values(arm, scale):
    config, column = make_config(arm, scale), SCALES.index(scale)
    for name, values in SCALE_VALUES.items():
        if values[column] is not ...:
            assert read(config, name) == values[column], name


# docs/method.md section 6: (calibrated, literal).
NAMED_GATES = {
    "gate.leave_one_out": (True, False),
    "gate.pool": ("mean_then_band", "band_then_mean"),
    "gate.low": (-0.1, 0.0),
    "gate.high": (0.0, 1.0),
    "direction.unit_sides": (True, False),
    "gate.probe_policy": ("ablated", "full"),
    "loss.ratio": ("truncated", "clip"),
    "rollout.deployed_frac": (0.5, 0.0),
}


@pytest.mark.parametrize("scale", ["fast", "full"])
def test_literal_and_calibrated_gates_differ_as_the_method_says(scale):
    calibrated, literal = make_config("routeV", scale), make_config("routeV_literal", scale)
    for name, values in NAMED_GATES.items():
        assert (read(calibrated, name), read(literal, name)) == values, name
    for name in NAMED_GATES:
        assign(literal, **{name: read(calibrated, name)})
    assert dataclasses.replace(literal, arm="routeV") == calibrated  # and in nothing else


@pytest.mark.parametrize(
    "arm,changes",
    [
        ("none", {"label.source": "none"}),
        ("absorb", {"label.source": "none", "label.action": "absorb"}),
        ("placebo", {"placebo.kind": "direction"}),
    ],
)
@pytest.mark.parametrize("scale", SCALES)
def test_arms_differ_from_routev_in_the_gate_alone(arm, changes, scale):
    assert make_config(arm, scale) == assign(make_config("routeV", scale), arm=arm, **changes)


MISTAKES = {
    "arm": {"arm": "routev"},
    "scale": {"scale": "tiny"},
    "seed": {"seed": -1},
    "model.dtype": {"model.dtype": "float16"},
    "model.num_heads": {"model.num_heads": 3},
    "model.head_dim": {"model.head_dim": 7},
    "model.vocab_size": {"model.vocab_size": 0},
    "model.logprob_chunk": {"model.logprob_chunk": 0},
    "adapter.rank": {"adapter.rank": 0},
    "data.train": {"data.train": ()},
    "data.heldout_frac": {"data.heldout_frac": 0.0},
    "data.max_prompt_tokens": {"data.max_prompt_tokens": 0},
    "data.prompt_buckets": {"data.prompt_buckets": (64, 32, 8192)},
    "data.prompt_buckets (empty)": {"data.prompt_buckets": ()},
    "data.prompt_buckets (short)": {"data.max_prompt_tokens": 1536, "data.prompt_buckets": (32, 1535)},
    "env.modes": {"env.modes": ("run_test",)},
    "env.modes (empty)": {"env.modes": ()},
    "env.modes (twice)": {"env.modes": ("sentinel", "sentinel")},
    "env.unhackable_frac": {"env.unhackable_frac": 1.5},
    "rollout.prompts": {"rollout.prompts": 0},
    "rollout.group_size": {"rollout.group_size": 1},
    "rollout.max_new_tokens": {"rollout.max_new_tokens": 0},
    "rollout.temperature": {"rollout.temperature": 0.0},
    "rollout.temperature (infinite)": {"rollout.temperature": float("inf")},
    "rollout.top_k": {"rollout.top_k": -1},
    "rollout.top_p": {"rollout.top_p": 0.0},
    "rollout.deployed_frac": {"rollout.deployed_frac": 1.1},
    "teacher.per_prompt": {"teacher.per_prompt": 4},
    "teacher.pool": {"teacher.pool": ()},
    "teacher.off_step": {"teacher.off_step": -1},
    "direction.pairs_per_batch": {"direction.pairs_per_batch": 0},
    "label.source": {"label.source": "none"},
    "label.action": {"label.action": "absorb"},
    "penalty.coefficient": {"penalty.coefficient": -1.0},
    "modulate.alpha": {"modulate.alpha": -0.5},
    "gate.low": {"gate.low": 0.5, "gate.high": 0.5},
    "gate.low (not a number)": {"gate.low": float("nan")},
    "gate.pool": {"gate.pool": "mean"},
    "gate.band_floor": {"gate.band_floor": 0.0},
    "gate.probe_policy": {"gate.probe_policy": "both"},
    "gate.refresh_every": {"gate.refresh_every": 0},
    "placebo.kind": {"placebo.kind": "labels"},
    "loss.ratio": {"loss.ratio": "none"},
    "loss.clip_epsilon": {"loss.clip_epsilon": -0.1},
    "loss.kl_coefficient": {"loss.kl_coefficient": float("nan")},
    "optim.lr": {"optim.lr": -1e-4},
    "optim.beta2": {"optim.beta2": 1.0},
    "optim.warmup_frac": {"optim.warmup_frac": 2.0},
    "optim.clip_norm": {"optim.clip_norm": 0.0},
    "train.steps": {"train.steps": 0},
    "train.micro_batch": {"train.micro_batch": 3},
    "eval.samples": {"eval.samples": 0},
    "eval.problems": {"eval.problems": 0},
    "grader.workers": {"grader.workers": 0},
    "grader.idle_seconds": {"grader.idle_seconds": 0.0},
    "grader.memory_mb": {"grader.memory_mb": 1},
    "grader.minimum": {"grader.minimum": "nothing"},
    "guard.warn_nats": {"guard.warn_nats": 6.0},
    "mesh.tensor": {"mesh.tensor": 0},
    # of the wrong type, as a configuration made in Python may hold them
    "train.steps (type)": {"train.steps": 2.0},
    "model.remat": {"model.remat": "yes"},
    "optim.lr (type)": {"optim.lr": None},
    "optim.lr (flag)": {"optim.lr": True},
    "data.train (type)": {"data.train": "problems.jsonl"},
    "data.train (items)": {"data.train": (5,)},
    "data.prompt_buckets (items)": {"data.prompt_buckets": (32.0, 2048.0)},
    "eval.problems (type)": {"eval.problems": "all"},
    "gate (type)": {"gate": None},
}


@pytest.mark.parametrize("case", MISTAKES)
def test_impossible_settings_are_one_line_that_names_the_field(case):
    config = built("routeV", **MISTAKES[case])
    if case != "gate (type)":
        config.resolve()
    with pytest.raises(ValueError) as caught:
        validate(config)
    message = str(caught.value)
    assert message.startswith(f"{case.split(' ')[0]} must ") and ", got " in message and "\n" not in message


def test_every_number_is_checked():
    """No numeric field takes a value that is not a number at all; the gate's thresholds may be infinite."""
    for section in dataclasses.fields(Config):
        for field in dataclasses.fields(section.type) if dataclasses.is_dataclass(section.type) else ():
            name = f"{section.name}.{field.name}"
            if field.type is float:
                with pytest.raises(ValueError, match=r"^(gate\.low|" + name.replace(".", r"\.") + ") must"):
                    validate(built("routeV", **{name: float("nan")}))


@pytest.mark.parametrize(
    "arm,source", [("none", "probe"), ("absorb", "monitor"), ("routeV", "monitor"), ("placebo", "none")]
)
def test_an_arm_is_what_its_name_says(arm, source):
    with pytest.raises(ValueError, match=rf"^label\.source must .* for the arm {arm}"):
        validate(built(arm, **{"label.source": source}))
    with pytest.raises(ValueError, match=rf"^label\.action must be (route|absorb) for the arm {arm}, got 'penalise'"):
        validate(built(arm, **{"label.action": "penalise"}))
    with pytest.raises(ValueError, match=r"^placebo\.kind must"):
        validate(built(arm, **{"placebo.kind": None if arm == "placebo" else "direction"}))


def test_settled_is_a_copy_that_is_resolved_and_checked():
    config = make_config("routeV", "smoke")
    found = settled(config)
    assert (config.direction.tags, found.direction.tags) == (None, ("hack",))
    assert settled(found) == found and found.rollout is not config.rollout
    config.rollout.group_size = 1
    with pytest.raises(ValueError, match=r"^rollout\.group_size must be >= 2, got 1"):
        settled(config)


def test_a_configuration_that_nobody_has_settled_reaches_a_run_settled(tmp_path):
    """From Python as from the command: the same pairs, and what is impossible is said at once."""
    config = make_config("routeV", "toy")
    assert build.build_run(config).config == settled(config)
    config.rollout.group_size = 1
    for begin in (build.build_run, lambda config: train.train(config, tmp_path / "run")):
        with pytest.raises(ValueError, match=r"^rollout\.group_size must be >= 2, got 1"):
            begin(config)
    assert not (tmp_path / "run").exists()


def test_seeds_that_jax_would_cut_to_32_bits_are_refused():
    for name in ("seed", "adapter.seed", "data.seed", "eval.seed", "model.seed", "placebo.seed"):
        validate(built("routeV", **{name: 2**32 - 1}))
        with pytest.raises(ValueError, match=rf"^{name} must be <= 4294967295 .* got 4294967296"):
            validate(built("routeV", **{name: 2**32}))
