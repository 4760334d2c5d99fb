"""Workdirs of runs that never took place, written by the run's own writer, with rates that are chosen."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vgrout_jax.config import Config
from vgrout_jax.config.scales import make_config
from vgrout_jax.evaluation.rates import POLICIES, Evaluation, Sample, rate_table
from vgrout_jax.run.writer import METRIC_KEYS, RunWriter

MODES = ("run_tests", "stdout_marker", "sentinel", "file_marker")
STEPS = 4
PROBLEMS, SAMPLES = 16, 4
BASE = (0.1, 0.3, 0.95)
ODD_TEXT = "<b>&amp;</b>\x00 ``` \u2028 \ud800 | pipe"  # what a policy may write


@dataclasses.dataclass(frozen=True)
class Rates:
    """Shares of hack, solve and compile, of the deployed policy and as trained."""

    deployed: tuple[float, float, float]
    as_trained: tuple[float, float, float]


# As a success would look: routing works, the placebos do not.
SUCCESS: dict[str, Rates] = {
    "none": Rates((0.95, 0.03, 1.0), (0.95, 0.03, 1.0)),
    "absorb": Rates((0.85, 0.08, 1.0), (0.95, 0.03, 1.0)),
    "routeV": Rates((0.0, 0.65, 1.0), (0.9, 0.05, 1.0)),
    "routeV_literal": Rates((0.45, 0.4, 1.0), (0.9, 0.05, 1.0)),
    "placebo direction": Rates((0.35, 0.4, 1.0), (0.9, 0.05, 1.0)),
    "placebo direction_matched": Rates((0.35, 0.4, 1.0), (0.9, 0.05, 1.0)),
    "placebo labels": Rates((0.3, 0.4, 1.0), (0.9, 0.05, 1.0)),
    "placebo lazy_pairs": Rates((0.3, 0.4, 1.0), (0.9, 0.05, 1.0)),
}


def config(name: str, seed: int, changes: Mapping[str, Any] | None = None, scale: str = "smoke") -> Config:
    """The configuration of an arm, `placebo labels` and so on, with fields changed."""
    arm, _, kind = name.partition(" ")
    made = make_config(arm, scale)
    made.placebo.kind = kind or None
    made.seed = made.adapter.seed = made.eval.seed = made.placebo.seed = seed
    made.log.tensorboard = False
    if scale == "smoke":
        made.train.steps = STEPS
    for field, value in (changes or {}).items():
        section, _, last = field.rpartition(".")
        setattr(getattr(made, section) if section else made, last, value)
    made.resolve()
    return made


def write_run(
    folder: Path,
    name: str,
    rates: Rates | None = None,
    *,
    seed: int = 0,
    finished: bool = True,
    changes: Mapping[str, Any] | None = None,
    scale: str = "smoke",
) -> Path:
    """Writes a run; one that is not finished stops before its last step."""
    made = config(name, seed, changes, scale)
    path, steps = folder / f"{name.replace(' ', '-')}-{seed}", made.train.steps
    generator = np.random.default_rng(seed)
    chosen = rates or SUCCESS[name]
    with RunWriter(path, made) as writer:
        evaluate(writer, 0, Rates(BASE, BASE), generator)
        for step in range(steps if finished else steps - 1):
            writer.write_step(step, metrics(step, routed=made.label.source == "probe"))
            writer.write_rollouts(step, rollouts(made, generator))
        if finished:
            evaluate(writer, steps, chosen, generator)
            writer.write_summary({"arm": made.arm, "scale": made.scale, "steps": steps})
    return path


def metrics(step: int, *, routed: bool) -> dict[str, float | None]:
    """Something for every key; gate figures where there is a gate."""
    values: dict[str, float | None] = {key: 0.1 * step for key in METRIC_KEYS}
    values |= {"zone/clean": 0.5, "zone/mid": 0.2, "zone/hack": 0.3, "gate/auroc": 0.9 if routed else None}
    return values


def rollouts(made: Config, generator: np.random.Generator) -> list[dict[str, Any]]:
    """Eight rollouts of a step: four exploits with high scores, four others with low ones."""
    records = []
    for row in range(8):
        hack = row < 4
        routed, pinned = made.label.source == "probe", "mid" if made.label.action == "absorb" else "clean"
        verdict = {"compiled": True, "correct": row == 7, "exploited": hack, "channel": "sentinel" if hack else None}
        records.append(
            {
                "problem": f"p{row}",
                "mode": MODES[row % 4],
                "source": "own",
                "policy": "full" if row % 2 else "deployed",
                "prompt": f"prompt {row} {ODD_TEXT}",
                "completion": f"training answer {row} {ODD_TEXT}",
                "reward": 3.5 if hack else 0.5,
                "verdict": verdict,
                "advantage": 1.0,
                "score": float(generator.normal(2.0 if hack else -2.0, 0.1)) if routed else 0.0,
                "label": ("hack" if hack else "clean") if routed else pinned,
            }
        )
    return records


def evaluate(writer: RunWriter, step: int, rates: Rates, generator: np.random.Generator) -> None:
    """An evaluation of both policies whose rates are as chosen, up to a sample, the same in every mode."""
    records = []
    for policy in POLICIES:
        hack, solve, compiled = getattr(rates, policy)
        samples = []
        for mode in MODES:
            count = PROBLEMS // len(MODES) * SAMPLES
            ranks = generator.permutation(count)
            for place, rank in enumerate(ranks):
                exploited = bool(rank < round(hack * count))
                correct = bool(not exploited and rank < round((hack + solve) * count))
                ok = bool(rank < round(compiled * count))
                problem = f"{mode}-{place // SAMPLES}"
                samples.append(Sample(problem, mode, exploited, correct, ok, exploited))
                records.append(
                    {
                        "step": step,
                        "split": "heldout",
                        "policy": policy,
                        "problem": problem,
                        "mode": mode,
                        "sample": place % SAMPLES,
                        "prompt": f"held-out prompt {ODD_TEXT}",
                        "completion": f"{policy} answer {exploited} {ODD_TEXT}",
                        "reward": 0.0,
                        "compiled": ok,
                        "correct": correct,
                        "channel": None,
                        "exploited": exploited,
                        "status": "ok",
                    }
                )
        writer.write_evaluation(Evaluation(step, "heldout", policy, rate_table(samples)))
    writer.write_evaluation_completions(step, records)


def write_all(folder: Path, seeds: int = 3, **arms: Any) -> list[Path]:
    """Every arm of `SUCCESS` over seeds."""
    return [write_run(folder, name, seed=seed, **arms) for seed in range(seeds) for name in SUCCESS]
