"""What a configuration must satisfy; every violation is one line that names field, rule, value and remedy."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin

from vgrout_jax.config.arms import ARMS, PLACEBOS
from vgrout_jax.config.schema import MODES, Config


def settled(config: Config) -> Config:
    """A copy of the configuration, resolved and checked: the only kind that reaches a run.

    Raises:
        ValueError: one line with the field, the rule, the value and the remedy.
    """
    copy = dataclasses.replace(config)
    for field in dataclasses.fields(config):
        section = getattr(config, field.name)
        if dataclasses.is_dataclass(section):
            setattr(copy, field.name, dataclasses.replace(section))
    copy.resolve()
    validate(copy)
    return copy


def validate(config: Config) -> None:
    """Raises ValueError at the first rule that `config` breaks."""
    _validate_types(config)
    _validate_fields(config)
    _validate_arm(config)
    _validate_model(config)
    _validate_data(config)
    _validate_batch(config)


def _validate_types(config: Config) -> None:
    """A value of another type than its field's would only fail somewhere in the middle of a run."""
    for outer in dataclasses.fields(config):
        section = getattr(config, outer.name)
        if not dataclasses.is_dataclass(outer.type):
            _require(_has_type(section, outer.type), outer.name, f"be {_words(outer.type)}", section)
            continue
        _require(isinstance(section, outer.type), outer.name, f"be {_words(outer.type)}", section)
        for field in dataclasses.fields(section):
            name, value = f"{outer.name}.{field.name}", getattr(section, field.name)
            _require(_has_type(value, field.type), name, f"be {_words(field.type)}", value)


def _validate_fields(config: Config) -> None:
    """The rules that stand in the fields' metadata, one kind after the other."""
    rules = [(name, field.metadata, read(config, name)) for name, field in fields_of(Config) if field.metadata]
    for name, rule, value in rules:
        if "choices" in rule:
            _require(value in rule["choices"], name, f"be one of {', '.join(rule['choices'])}", value)
    numbers = [(name, rule, value) for name, rule, value in rules if "choices" not in rule]
    for name, _, value in numbers:
        _require(math.isfinite(value), name, "be finite", value)
    for name, rule, value in numbers:
        if "at_least" in rule:
            _require(value >= rule["at_least"], name, f"be >= {rule['at_least']:g}", value)
        if "at_most" in rule:
            _require(value <= rule["at_most"], name, f"be <= {rule['at_most']} ({rule['because']})", value)
        if "above" in rule:
            _require(value > rule["above"], name, f"be > {rule['above']:g}", value)
    for name, rule, value in numbers:
        if rule.get("share"):
            _require(0 <= value <= 1, name, "be between 0 and 1", value)


def fields_of(kind: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """`section.field` and the field, of all fields that are no sections."""
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            yield from fields_of(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field


def _has_type(value: Any, kind: Any) -> bool:
    parts = get_args(kind)
    if get_origin(kind) is Union:
        return any(_has_type(value, part) for part in parts)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_has_type(item, parts[0]) for item in value)
    if kind in (int, float):  # a bool is an int to Python, and an int is a number where a float is wanted
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)


def _words(kind: Any) -> str:
    parts = get_args(kind)
    if get_origin(kind) is Union:
        return " or ".join(_words(part) for part in parts)
    if get_origin(kind) is tuple:
        return f"a tuple of {_words(parts[0])}"
    return "None" if kind is type(None) else kind.__name__


def read(config: Config, name: str) -> Any:
    """The value of `section.field`."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _require(holds: bool, name: str, rule: str, value: Any) -> None:
    if not holds:
        raise ValueError(f"{name} must {rule}, got {value!r}")


def _validate_arm(config: Config) -> None:
    """The arm is what its source, its action and the placebo make it; a mixture under its name would mislead."""
    gate, placebo = config.gate, config.placebo.kind
    for name in ("label.source", "label.action"):
        expected = ARMS[config.arm].fields[name]
        _require(read(config, name) == expected, name, f"be {expected} for the arm {config.arm}", read(config, name))
    if config.arm == "placebo":
        rule = f"be one of {', '.join(PLACEBOS)} for the arm placebo"
        _require(placebo in PLACEBOS, "placebo.kind", rule, placebo)
    else:
        rule = f"be None for the arm {config.arm} (use configs/placebo.py)"
        _require(placebo is None, "placebo.kind", rule, placebo)
    _require(gate.low < gate.high, "gate.low", f"be < gate.high ({gate.high})", gate.low)
    stop, warn = config.guard.stop_nats, config.guard.warn_nats
    _require(warn <= stop, "guard.warn_nats", f"be <= guard.stop_nats ({stop})", warn)


def _validate_model(config: Config) -> None:
    model, optim = config.model, config.optim
    rule = f"be a multiple of model.num_kv_heads ({model.num_kv_heads})"
    _require(
        model.num_heads > 0 and model.num_heads % model.num_kv_heads == 0, "model.num_heads", rule, model.num_heads
    )
    _require(model.head_dim % 2 == 0, "model.head_dim", "be even, for the rotary embedding", model.head_dim)
    if model.vocab_size is not None:
        _require(model.vocab_size >= 1, "model.vocab_size", "be >= 1, or None for the tokenizer's", model.vocab_size)
    for name, beta in (("optim.beta1", optim.beta1), ("optim.beta2", optim.beta2)):
        _require(beta < 1, name, "be < 1", beta)


def _validate_data(config: Config) -> None:
    data, modes = config.data, config.env.modes
    _require(bool(data.train), "data.train", "name at least one source (JSONL path, URL, dataset name)", data.train)
    rule = f"be distinct names out of {', '.join(MODES)}"
    _require(bool(modes) and len(set(modes)) == len(modes) and set(modes) <= set(MODES), "env.modes", rule, modes)
    if not data.heldout:
        rule = "be between 0 and 1, both excluded, where data.heldout is empty"
        _require(0 < data.heldout_frac < 1, "data.heldout_frac", rule, data.heldout_frac)
    buckets = data.prompt_buckets
    ascending = bool(buckets) and all(low < high for low, high in zip((0, *buckets), buckets, strict=False))
    _require(ascending, "data.prompt_buckets", "be ascending positive lengths", buckets)
    rule = f"hold a bucket of at least data.max_prompt_tokens ({data.max_prompt_tokens})"
    _require(buckets[-1] >= data.max_prompt_tokens, "data.prompt_buckets", rule, buckets)


def _validate_batch(config: Config) -> None:
    rollout, teacher = config.rollout, config.teacher
    rows = rollout.prompts * rollout.group_size
    rule = f"divide the {rows} rollouts of a step (rollout.prompts * rollout.group_size)"
    _require(rows % config.train.micro_batch == 0, "train.micro_batch", rule, config.train.micro_batch)
    rule = f"be < rollout.group_size ({rollout.group_size}), so that a group has rollouts of its own"
    _require(teacher.per_prompt < rollout.group_size, "teacher.per_prompt", rule, teacher.per_prompt)
    if teacher.per_prompt:
        rule = "name a pool of completions where teacher.per_prompt > 0 (or set --config.teacher.per_prompt=0)"
        _require(bool(teacher.pool), "teacher.pool", rule, teacher.pool)
    last = config.train.steps - 1
    inside = all(0 <= step <= last for step in config.profile.steps)
    _require(inside, "profile.steps", f"lie between 0 and {last}, the run's last step", config.profile.steps)
    if config.eval.problems is not None:
        _require(config.eval.problems >= 1, "eval.problems", "be >= 1, or None for all", config.eval.problems)
    if config.grader.workers is not None:
        _require(
            config.grader.workers >= 1, "grader.workers", "be >= 1, or None for one a core", config.grader.workers
        )
