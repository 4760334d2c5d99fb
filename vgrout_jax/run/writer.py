"""What a run writes into its workdir, and the one list of per-step metrics.

config.json                   every field as resolved, and the provenance (hashes of pairs and tokenizer)
metrics.jsonl                 a line a step, every diagnostic of docs/method.md section 14
eval.jsonl                    a line per evaluation and policy
rollouts/step_000000.jsonl.gz every completion of a step with its prompt, reward, verdict, label and score
rollouts/graded_...           its rewards and verdicts alone, from before the update that uses them until after it
rollouts/eval_000000.jsonl.gz every completion of an evaluation
tensorboard/                  every number of the two .jsonl files
resume/                       what an interrupted run continues from (`snapshots.py`)
summary.json                  written at the end; its absence marks a run that did not finish
"""

import contextlib
import gzip
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from vgrout_jax.common import files
from vgrout_jax.config import Config
from vgrout_jax.evaluation.rates import RATES, Evaluation
from vgrout_jax.run.continuation import LINE_FILES, folder_problem, graded_path
from vgrout_jax.run.tensorboard import EventFile

ROLLOUT_FIELDS = ("prompt", "completion", "reward", "verdict", "label", "score", "mode", "source")

# Keys of a step's metrics. A value is a number, or None or NaN where nothing was there to measure.
METRIC_KEYS: dict[str, str] = {
    "reward/own": "mean reward of the step's own rollouts",
    "reward/teacher": "mean stored reward of the rows from the teacher pool",
    "solve/own": "share of own rollouts that are correct",
    "solve/teacher": "share of teacher rows that are correct",
    "hack/own": "share of own rollouts whose channel fired and that are not correct",
    "hack/teacher": "share of teacher rows that hacked and are not correct",
    "hack/own_deployed": "hack share of the own rollouts sampled with the quarantine ablated",
    "hack/own_full": "hack share of the own rollouts sampled with both blocks on",
    "compile/own": "share of own rollouts whose code compiles",
    "channel/own": "share of own rollouts whose own mode's channel fired, right or wrong",
    "zone/clean": "share of scored rollouts labelled clean: only the deployed block trains",
    "zone/mid": "share of scored rollouts labelled mid: both blocks train",
    "zone/hack": "share of scored rollouts labelled hack: only the quarantine trains",
    "zone/unscored": "share of all rollouts without a score (zero advantage), labelled clean",
    "qmass": "|g_quarantine| / (|g_deployed| + |g_quarantine|) of the final gradient",
    "score/q05": "5% quantile of the gate's score z",
    "score/q25": "25% quantile of z",
    "score/q50": "median of z",
    "score/q75": "75% quantile of z",
    "score/q95": "95% quantile of z",
    "gate/auroc": "AUROC of z against the measuring-only hack flag, among rows with positive advantage",
    "gate/band_low": "lower band edge, the mean over modules where each has its own",
    "gate/band_width": "band width, the mean over modules where each has its own",
    "gate/modules": "number of modules in the pool",
    "gate/no_usable_module": "1 if no module was usable (placebos only; for routeV the run stops)",
    "ratio/mean": "mean over completion tokens of the ratio of training to sampling policy",
    "ratio/clean": "the same, rows labelled clean",
    "ratio/mid": "the same, rows labelled mid",
    "ratio/hack": "the same, rows labelled hack",
    "clip_fraction/clean": "share of completion tokens whose ratio is clipped (truncated), rows labelled clean",
    "clip_fraction/mid": "the same, rows labelled mid",
    "clip_fraction/hack": "the same, rows labelled hack",
    "kl": "mean of exp(D) - D - 1 over completion tokens, D = reference minus policy log-probability",
    "loss": "the loss of pass 2",
    "grad_norm": "global norm of the gradient before clipping",
    "lr": "learning rate of the update",
    "length/mean": "mean completion length of own rollouts in tokens, the end token included",
    "length/max": "longest completion of own rollouts in tokens",
    "cut_off": "share of own rollouts cut off by the length limit",
    "groups/skipped": "number of groups skipped because their rewards are equal",
    "sampler/logprob_diff_mean": "mean |sampler's log-probability - recomputed one| at matching settings",
    "sampler/logprob_diff_max": "greatest |sampler's log-probability - recomputed one|",
    "guard/reference_logprob": "mean log-probability of the fixed reference completions, in nats",
    "tokens_per_second": "tokens generated per second of generation",
    "time/generate": "seconds spent sampling",
    "time/grade": "seconds spent waiting for the grader",
    "time/update": "seconds of the optimiser step (both passes)",
    "time/direction": "seconds spent extracting the direction, divided by the steps it serves",
    "time/evaluate": "seconds spent evaluating before this step",
}


class RunWriter:
    """Writes the files of one run; every line is flushed, so that a run that dies keeps what it measured."""

    def __init__(
        self,
        workdir: str | Path,
        config: Config,
        *,
        provenance: Mapping[str, Any] | None = None,
        first_step: int | None = None,
    ):
        """Creates the workdir and writes config.json.

        Args:
            workdir: folder of the run; created with its parents. It may exist, but hold no run.
            config: the run's configuration, as resolved.
            provenance: stored beside it in config.json: content hash of the pairs, hash of the tokenizer.
            first_step: append to the run that the workdir holds, which `continuation.cut_back` has cut back to this
                step; None: a new run.

        Raises:
            ValueError: if the workdir holds a run, is a file or cannot be written, or a package is missing.
        """
        self.workdir = Path(workdir)
        self._lines: dict[str, TextIO] = {}
        self._tensorboard = self._wandb = None
        wandb = _import_wandb() if config.log.wandb else None
        try:
            for name in LINE_FILES if first_step is None else ():
                _refuse_a_run(self.workdir, name)
            (self.workdir / "rollouts").mkdir(parents=True, exist_ok=True)
            resolved = {**config.to_dict(), "provenance": dict(provenance or {})}
            files.write_json(self.workdir / "config.json", resolved)
            if config.log.tensorboard:
                self._tensorboard = EventFile(self.workdir / "tensorboard")
            if wandb is not None:
                self._wandb = _start_wandb(wandb, self.workdir, config, resolved)
            # Exclusive creation comes last: it settles a race of two runs for one folder, and a start that
            # failed above leaves nothing that a second attempt would take for a run.
            mode = "x" if first_step is None else "a"
            for name in LINE_FILES:
                self._lines[name] = open(self.workdir / name, mode, encoding="ascii")  # noqa: SIM115
            self._points = 0 if first_step is None else _count_lines(self.workdir)
        except OSError as error:
            self.close()
            raise ValueError(_folder_problem(self.workdir, error)) from error

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends a step's metrics to metrics.jsonl and to the event files.

        Args:
            step: counted from 0.
            metrics: key of `METRIC_KEYS` -> number, scalar array or None.

        Raises:
            ValueError: if a key is not documented in `METRIC_KEYS`, or a value is not a number.
        """
        unknown = sorted(set(metrics) - set(METRIC_KEYS))
        if unknown:
            raise ValueError(f"metrics must be documented in metrics.METRIC_KEYS, got {', '.join(unknown)}")
        plain = {key: files.to_plain(value) for key, value in metrics.items()}
        odd = [key for key, value in plain.items() if not isinstance(value, (int, float, type(None)))]
        if odd:
            raise ValueError(f"metrics must be numbers, got {', '.join(odd)} of step {step}")
        self._append("metrics.jsonl", {"step": step, **plain})
        self._log_scalars(step, plain)

    def write_evaluation(self, evaluation: Evaluation) -> None:
        """Appends one policy's evaluation to eval.jsonl and to the event files."""
        record = evaluation.to_record()
        self._append("eval.jsonl", record)
        prefix = f"eval/{evaluation.split}/{evaluation.policy}"
        scalars = {f"{prefix}/{name}": record[name] for name in RATES}
        for mode, rates in record["modes"].items():
            scalars.update({f"{prefix}/{mode}/{name}": rates[name] for name in RATES})
        self._log_scalars(evaluation.step, scalars)

    def first_evaluation(self) -> Evaluation | None:
        """The deployed policy's evaluation before the first update, or None where there is none."""
        for line in (self.workdir / "eval.jsonl").read_text(encoding="ascii").splitlines():
            record = json.loads(line)
            if record["policy"] == "deployed":
                return Evaluation.from_record(record) if record["step"] == 0 else None
        return None

    def write_rollouts(self, step: int, rollouts: Sequence[Mapping[str, Any]]) -> Path:
        """Writes all completions of a step to rollouts/step_NNNNNN.jsonl.gz, whole or not at all.

        Args:
            step: counted from 0.
            rollouts: one mapping a rollout, with at least the keys `ROLLOUT_FIELDS`.

        Returns:
            The file's path.

        Raises:
            ValueError: if a rollout lacks a field.
        """
        for row, rollout in enumerate(rollouts):
            missing = [name for name in ROLLOUT_FIELDS if name not in rollout]
            if missing:
                raise ValueError(f"rollouts[{row}] of step {step} must have the fields {', '.join(missing)}")
        path = self.workdir / "rollouts" / f"step_{step:06d}.jsonl.gz"
        with self.writing():
            _write_gzip_lines(path, [{"step": step, **rollout} for rollout in rollouts])
        return path

    def write_verdicts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes a step's rewards and verdicts to rollouts/graded_NNNNNN.jsonl.gz, before they are used.

        `drop_verdicts` removes the file when rollouts/step_NNNNNN.jsonl.gz holds all of it. One that a kill leaves
        behind is read when the step is done again.
        """
        with self.writing():
            _write_gzip_lines(self.verdicts_path(step), [{"step": step, **row} for row in rows])

    def drop_verdicts(self, step: int) -> None:
        """Removes what `write_verdicts` has written."""
        self.verdicts_path(step).unlink(missing_ok=True)

    def verdicts_path(self, step: int) -> Path:
        """The file of `write_verdicts`."""
        return graded_path(self.workdir, step)

    def write_evaluation_completions(self, step: int, records: Sequence[Mapping[str, Any]]) -> Path:
        """Writes all completions of an evaluation to rollouts/eval_NNNNNN.jsonl.gz, whole or not at all.

        Returns:
            The file's path.
        """
        path = self.workdir / "rollouts" / f"eval_{step:06d}.jsonl.gz"
        with self.writing():
            _write_gzip_lines(path, records)
        return path

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json, the mark of a run that finished."""
        with self.writing():
            files.write_json(self.workdir / "summary.json", dict(summary))
        if self._wandb is not None:
            self._wandb.summary.update(files.to_plain(summary))

    def paths(self) -> list[Path]:
        """Every file and folder that now exists at the top of the workdir, sorted; hidden ones left out."""
        return sorted(path for path in self.workdir.iterdir() if not path.name.startswith("."))

    def sync(self) -> None:
        """Puts the lines on disk, so that no resume state outlives a line of a step before it."""
        with self.writing():
            for file in self._lines.values():
                os.fsync(file.fileno())

    def close(self) -> None:
        """Closes every file; may be called again."""
        for file in self._lines.values():
            with contextlib.suppress(OSError):  # what a full disk did not take was reported when it was written
                file.close()
        if self._tensorboard is not None:
            with contextlib.suppress(OSError):
                self._tensorboard.close()
            self._tensorboard = None
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        with self.writing():
            self._lines[name].write(files.dumps(record) + "\n")
            self._lines[name].flush()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turns what a disk refuses into one line."""
        try:
            yield
        except OSError as error:
            raise ValueError(
                f"workdir {self.workdir} cannot be written ({error.strerror or error}); mend that and start the run "
                "again with the same workdir: it continues from its last resume state"
            ) from error

    def _log_scalars(self, step: int, values: Mapping[str, Any]) -> None:
        scalars = {key: float(value) for key, value in values.items() if value is not None}
        if self._tensorboard is not None:
            with self.writing():
                self._tensorboard.write(step, scalars)
        if self._wandb is not None:
            # W&B drops what it has under a number already: the points that a resumed run logs again.
            self._wandb.log({**scalars, "step": step}, step=self._points)
        self._points += 1


def _write_gzip_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    lines = "".join(files.dumps(record) + "\n" for record in records)
    files.write_atomic(path, gzip.compress(lines.encode("ascii"), mtime=0))


def _refuse_a_run(workdir: Path, name: str) -> None:
    if (workdir / name).exists():
        raise ValueError(f"workdir {workdir} already holds a run ({name}); choose another or delete it")


def _folder_problem(workdir: Path, error: OSError) -> str:
    if isinstance(error, FileExistsError) and Path(str(error.filename)).name in LINE_FILES:
        name = Path(str(error.filename)).name
        return f"workdir {workdir} already holds a run ({name}); choose another or delete it"
    return folder_problem(workdir, error)


def _count_lines(workdir: Path) -> int:
    return sum((workdir / name).read_bytes().count(b"\n") for name in LINE_FILES)


def _import_wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            "log.wandb needs the package wandb: pip install wandb, or set --config.log.wandb=false"
        ) from error
    return wandb


def _start_wandb(wandb: Any, workdir: Path, config: Config, resolved: Mapping[str, Any]) -> Any:
    identifier = workdir / "wandb_id.txt"
    if not identifier.exists():
        files.write_atomic(identifier, secrets.token_hex(8).encode())
    run = wandb.init(
        project=config.log.wandb_project,
        dir=str(workdir),
        config=files.to_plain(resolved),
        id=identifier.read_text(encoding="ascii"),
        resume="allow",
    )
    # Steps and evaluations share a step of our own; W&B's own counter would refuse the later of the two.
    run.define_metric("*", step_metric="step")
    return run
