"""Reads what a run has left in its workdir, be it finished, running or crashed.

`writer.py` writes these files; everything that reads them goes through here. Stored probe
gradients have their reader beside their writer, in `gradients.py`.
"""

import dataclasses
import gzip
import json
import typing
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vgrout_jax.config import ARMS, Config
from vgrout_jax.evaluation.rates import Evaluation


@dataclasses.dataclass(frozen=True)
class TrainingRollout:
    """One rollout of a training step, a line of rollouts/step_NNNNNN.jsonl.gz.

    Attributes:
        step: of the optimiser.
        problem, mode: what was asked, and under which grader.
        source: `own` or `teacher`.
        policy: that sampled it, `full` or `deployed`.
        prompt, completion: texts.
        reward, advantage: what it was paid, and its advantage within its group.
        score: the gate's z, None where it has none.
        label: `clean`, `mid` or `hack`, as the gate had it.
        exploited, correct: the verdict, for measuring only; a teacher row brings the stored one.
        compiled: None where it is not known.
    """

    step: int
    problem: str
    mode: str
    source: str
    policy: str
    prompt: str
    completion: str
    reward: float
    advantage: float
    score: float | None
    label: str
    exploited: bool
    correct: bool
    compiled: bool | None


@dataclasses.dataclass(frozen=True)
class EvaluationCompletion:
    """One completion of an evaluation, a line of rollouts/eval_NNNNNN.jsonl.gz.

    Attributes:
        step: updates done before it.
        split, policy: what was evaluated.
        problem, mode, sample: which completion of which prompt.
        prompt, completion: texts.
        exploited, correct, compiled: the verdict.
    """

    step: int
    split: str
    policy: str
    problem: str
    mode: str
    sample: int
    prompt: str
    completion: str
    exploited: bool
    correct: bool
    compiled: bool


@dataclasses.dataclass(frozen=True)
class Workdir:
    """A run as it stands on disk.

    Attributes:
        path: its folder.
        settings: every field of the configuration as resolved, as `section.field` -> JSON value.
        provenance: hashes of pairs and tokenizer.
        metrics: step -> its record of `metrics.METRIC_KEYS`, in order; of a step written twice the later one.
        evaluations: in order; of one that was written twice the later one.
        summary: summary.json, None for a run that has not finished.
    """

    path: Path
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]
    metrics: Mapping[int, Mapping[str, Any]]
    evaluations: tuple[Evaluation, ...]
    summary: Mapping[str, Any] | None

    @property
    def finished(self) -> bool:
        """Whether it has ended; a finished run that is being continued to more steps has not."""
        return self.summary is not None and self.summary["steps"] == self.settings["train.steps"]

    @property
    def steps_done(self) -> int:
        """Number of steps that have been written."""
        return max(self.metrics, default=-1) + 1

    @property
    def config(self) -> Config:
        """The configuration, typed; a new one at each call, since configurations can be changed.

        Raises:
            ValueError: the run was written by a version with other fields.
        """
        return config_from_settings(self.settings, str(self.path / "config.json"))

    def evaluation(self, step: int, policy: str) -> Evaluation | None:
        """The evaluation of one policy after `step` updates, or None."""
        found = [item for item in self.evaluations if (item.step, item.policy) == (step, policy)]
        return found[-1] if found else None

    def final_evaluation(self, policy: str) -> Evaluation | None:
        """The evaluation that ended a finished run, of the adapter as reloaded; None before that."""
        return self.evaluation(int(self.settings["train.steps"]), policy) if self.finished else None

    def training_rollouts(self, step: int) -> list[TrainingRollout]:
        """All rollouts of a step, in the order of the batch.

        Raises:
            ValueError: they are missing or damaged.
        """
        return [_training_rollout(record) for record in _gzip_lines(self._rollout_file("step", step))]

    def evaluation_completions(self, step: int) -> list[EvaluationCompletion]:
        """All completions of the evaluation after `step` updates, both policies.

        Raises:
            ValueError: they are missing or damaged.
        """
        names = [field.name for field in dataclasses.fields(EvaluationCompletion)]
        records = _gzip_lines(self._rollout_file("eval", step))
        return [EvaluationCompletion(**{name: record[name] for name in names}) for record in records]

    def rollout_steps(self) -> list[int]:
        """Steps whose rollouts are on disk, ascending."""
        return _numbered(self.path / "rollouts", "step_", ".jsonl.gz")

    def completion_steps(self) -> list[int]:
        """Steps of evaluations whose completions are on disk, ascending; a running one has its lines first."""
        return _numbered(self.path / "rollouts", "eval_", ".jsonl.gz")

    def _rollout_file(self, kind: str, step: int) -> Path:
        return self.path / "rollouts" / f"{kind}_{step:06d}.jsonl.gz"


def read_workdir(path: str | Path) -> Workdir:
    """Reads configuration, metrics, evaluations and summary of a run; completions are read when asked for.

    A last line without its newline, which a run leaves that is being written or was killed, is left out.

    Raises:
        ValueError: there is no run at `path`, or a file is damaged.
    """
    path = Path(path)
    config = _json_file(path / "config.json", path)
    provenance = config.pop("provenance", {})
    metrics = {int(record["step"]): record for record in _lines(path / "metrics.jsonl")}
    evaluations = {}
    for record in _lines(path / "eval.jsonl"):
        evaluation = Evaluation.from_record(record)
        evaluations[evaluation.step, evaluation.split, evaluation.policy] = evaluation
    summary = _json_file(path / "summary.json", path) if (path / "summary.json").exists() else None
    return Workdir(
        path=path,
        settings=upgraded(flatten(config)),
        provenance=provenance,
        metrics=dict(sorted(metrics.items())),
        evaluations=tuple(sorted(evaluations.values(), key=lambda item: item.step)),
        summary=summary,
    )


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`{"gate": {"low": 0}}` as `{"gate.low": 0}`."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}.{inner}": leaf for inner, leaf in flatten(value).items()})
        else:
            flat[name] = value
    return flat


def config_from_settings(settings: Mapping[str, Any], source: str) -> Config:
    """The configuration that `settings` (as `flatten` gives them) were written from.

    Raises:
        ValueError: a field is missing or unknown; `source` is named.
    """
    remaining = upgraded(settings)

    def build(kind: type, prefix: str) -> Any:
        values = {}
        for field in dataclasses.fields(kind):
            name = prefix + field.name
            if dataclasses.is_dataclass(field.type):
                values[field.name] = build(field.type, name + ".")
            elif name not in remaining:
                raise ValueError(f"{source} lacks the field {name}: another version wrote it; use that version")
            else:
                values[field.name] = _as_type(remaining.pop(name), field.type)
        return kind(**values)

    config = build(Config, "")
    if remaining:
        unknown = min(remaining)
        raise ValueError(f"{source} has the unknown field {unknown}: another version wrote it; use that version")
    return config


def upgraded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an earlier version's run in the fields of this one: `gate.kind` was what an arm now says."""
    found = dict(settings)
    if found.pop("gate.kind", None) is not None and found.get("arm") in ARMS:
        fields = ARMS[found["arm"]].fields
        usual = flatten(dataclasses.asdict(Config()))
        added = ("label.source", "label.action", "penalty.coefficient", "modulate.alpha")
        found = {name: fields.get(name, usual[name]) for name in added} | found
    return found


def _as_type(value: Any, kind: Any) -> Any:
    """A JSON value as the field's type: lists become tuples, whole numbers floats where the field is one."""
    if isinstance(value, list):
        return tuple(value)
    parts = typing.get_args(kind) or (kind,)
    return float(value) if float in parts and type(value) is int else value


def _training_rollout(record: Mapping[str, Any]) -> TrainingRollout:
    verdict = record["verdict"]
    names = {field.name for field in dataclasses.fields(TrainingRollout)} - {"exploited", "correct", "compiled"}
    known = {name: record[name] for name in names}
    return TrainingRollout(**known, **{name: verdict[name] for name in ("exploited", "correct", "compiled")})


def _json_file(path: Path, run: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{run} must be the workdir of a run, but {path.name} is not in it") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged and cannot be read; leave this run out") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it must hold a JSON object; leave this run out")
    return value


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file that may still be written to; nothing where there is no file yet."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number} is damaged: it must be a JSON object; leave this run out") from error


def _gzip_lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = gzip.decompress(path.read_bytes()).decode("ascii")
        return [json.loads(line) for line in text.splitlines()]
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; it is written with the run's other files") from error
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} is damaged and cannot be read; leave this run out") from error


def _numbered(folder: Path, prefix: str, suffix: str) -> list[int]:
    names = [path.name for path in folder.glob(f"{prefix}*{suffix}")] if folder.is_dir() else []
    return sorted(int(name.removeprefix(prefix).removesuffix(suffix)) for name in names)
