"""From a step's rollouts and device metrics to the flat record of docs/method.md section 14. Host side, NumPy."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vgrout_jax.evaluation.rates import auroc
from vgrout_jax.rl.rollout import OWN, TEACHER, Rollout, Rollouts
from vgrout_jax.rl.step import StepMetrics
from vgrout_jax.routing.gate import CLEAN, HACK, MID

ZONES = {"clean": CLEAN, "mid": MID, "hack": HACK}
QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}


def step_record(rollouts: Rollouts, metrics: StepMetrics, described: Mapping[str, Any]) -> dict[str, Any]:
    """Every metric of a step that comes from its rollouts and its update.

    Args:
        rollouts: the step's rows.
        metrics: of the step, as NumPy arrays.
        described: what the arm's source says of its memory, of `Source.describe`.

    Returns:
        Key of `metrics.METRIC_KEYS` -> number, None where there was nothing to measure.
    """
    record = _outcomes(rollouts.rows) | _lengths(rollouts) | _zones(metrics) | _losses(metrics)
    if "score" in metrics.decision.record:
        record |= _scores(rollouts.rows, metrics)
    record |= described
    record |= _sampler_agreement(rollouts, metrics)
    record["loss"], record["grad_norm"] = metrics.loss, metrics.gradient_norm
    record["qmass"] = metrics.qmass if float(metrics.gradient_norm) > 0 else None
    record["groups/skipped"] = int((~metrics.decision.live).sum()) // rollouts.group_size
    record["time/generate"], record["time/grade"] = rollouts.seconds["generate"], rollouts.seconds["grade"]
    return record


def _mean(values: Iterable[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _outcomes(rows: Sequence[Rollout]) -> dict[str, Any]:
    own = [row for row in rows if row.source == OWN]
    teacher = [row for row in rows if row.source == TEACHER]
    return {
        "reward/own": _mean([row.reward for row in own]),
        "reward/teacher": _mean([row.reward for row in teacher]),
        "solve/own": _mean([row.correct for row in own]),
        "solve/teacher": _mean([row.correct for row in teacher]),
        "hack/own": _mean([row.exploited for row in own]),
        "hack/teacher": _mean([row.exploited for row in teacher]),
        "hack/own_deployed": _mean([row.exploited for row in own if not row.quarantine_on]),
        "hack/own_full": _mean([row.exploited for row in own if row.quarantine_on]),
        "compile/own": _mean([row.compiled for row in own]),
        "channel/own": _mean([row.channel is not None for row in own]),
    }


def _lengths(rollouts: Rollouts) -> dict[str, Any]:
    own = [row for row in rollouts.rows if row.source == OWN]
    lengths = [row.tokens for row in own]
    return {
        "length/mean": _mean(lengths),
        "length/max": max(lengths, default=None),
        "cut_off": _mean([row.cut_off for row in own]),
        "tokens_per_second": sum(lengths) / max(rollouts.seconds["generate"], 1e-9),
    }


def _zones(metrics: StepMetrics) -> dict[str, Any]:
    """Shares among the rollouts that the gate speaks of; None where there is none."""
    scored, labels = np.asarray(metrics.decision.scored), np.asarray(metrics.decision.labels)
    shares = {f"zone/{name}": _mean(labels[scored] == label) for name, label in ZONES.items()}
    return shares | {"zone/unscored": float(np.mean(~scored))}


def _losses(metrics: StepMetrics) -> dict[str, Any]:
    """Token means of the ratio, clip fraction and KL, over all rows and per zone."""
    tokens, labels = np.asarray(metrics.losses.tokens), np.asarray(metrics.decision.labels)

    def token_mean(values: np.ndarray, chosen: np.ndarray) -> float | None:
        weight = tokens * chosen
        return float((np.asarray(values) * weight).sum() / weight.sum()) if weight.sum() else None

    everything = np.ones_like(tokens, bool)
    record = {"ratio/mean": token_mean(metrics.losses.ratio, everything)}
    record["kl"] = None if metrics.losses.kl is None else token_mean(metrics.losses.kl, everything)
    for name, label in ZONES.items():
        record[f"ratio/{name}"] = token_mean(metrics.losses.ratio, labels == label)
        record[f"clip_fraction/{name}"] = token_mean(metrics.losses.clip_fraction, labels == label)
    return record


def _scores(rows: Sequence[Rollout], metrics: StepMetrics) -> dict[str, Any]:
    scores, scored = np.asarray(metrics.decision.record["score"]), np.asarray(metrics.decision.scored)
    known = scores[scored]
    record = {f"score/{n}": float(np.quantile(known, q)) if known.size else None for n, q in QUANTILES.items()}
    rewarded = scored & (np.asarray(metrics.decision.advantages) > 0)
    hacks = np.array([row.exploited for row in rows])
    return record | {"gate/auroc": auroc(scores[rewarded], hacks[rewarded])}


def _sampler_agreement(rollouts: Rollouts, metrics: StepMetrics) -> dict[str, Any]:
    """How far the sampler's log-probabilities are from those of a pass that ran the policy that sampled."""
    own = np.array([row.source == OWN for row in rollouts.rows])
    chosen = (np.asarray(metrics.recomputed) & own)[:, None] & np.asarray(rollouts.batch.completion_mask)
    difference = np.abs(rollouts.batch.sampler_logprobs - np.asarray(metrics.logprobs))[chosen]
    return {
        "sampler/logprob_diff_mean": float(difference.mean()) if difference.size else None,
        "sampler/logprob_diff_max": float(difference.max()) if difference.size else None,
    }


def verdict_records(rollouts: Rollouts) -> list[dict[str, Any]]:
    """What is known of every rollout before the update: prompt, completion, reward and verdict."""
    return [_graded(row) for row in rollouts.rows]


def rollout_records(rollouts: Rollouts, metrics: StepMetrics) -> list[dict[str, Any]]:
    """What the workdir keeps of every rollout: prompt, completion, verdict, advantage, score and label."""
    names = {label: name for name, label in ZONES.items()}
    advantages, scored = np.asarray(metrics.decision.advantages), np.asarray(metrics.decision.scored)
    scores, labels = metrics.decision.record.get("score"), np.asarray(metrics.decision.labels)
    return [
        {
            **_graded(row),
            "advantage": float(advantages[index]),
            "score": float(scores[index]) if scores is not None and scored[index] else None,
            "label": names[int(labels[index])],
        }
        for index, row in enumerate(rollouts.rows)
    ]


def _graded(row: Rollout) -> dict[str, Any]:
    return {
        "problem": row.prompt.problem.id,
        "mode": row.prompt.mode,
        "source": row.source,
        "policy": "full" if row.quarantine_on else "deployed",
        "prompt": row.prompt.text,
        "completion": row.text,
        "reward": row.reward,
        "verdict": _verdict(row),
        "tokens": row.tokens,
    }


def _verdict(row: Rollout) -> dict[str, Any]:
    names = ("compiled", "correct", "channel", "exploited", "status", "cut_off")
    return {name: getattr(row, name) for name in names}
