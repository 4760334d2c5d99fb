"""Says in plain words that a policy has collapsed: it does nothing, or less than it could before.

A run does not end for it, as an arm may be meant to show it; but a hack rate of zero beside it is no success
(docs/method.md section 13). Host side, no arrays.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from vgrout_jax.evaluation.rates import Evaluation
from vgrout_jax.rl.rollout import OWN, Rollout

PATIENCE = 10  # steps in a row after which a state of affairs is reported, and again after as many
WATCHED = ("compile", "solve")  # rates whose fall is collapse


@dataclasses.dataclass(frozen=True)
class Memory:
    """What the warnings remember.

    Attributes:
        equal_rewards: steps in a row in which every group's rewards were equal.
        empty: steps in a row in which every own completion was empty.
        cut_off: steps in a row in which the length limit ended every own completion.
        best: rate of the deployed policy -> [step, value, lower end of its interval] of the evaluation whose lower
            end was the highest.
    """

    equal_rewards: int = 0
    empty: int = 0
    cut_off: int = 0
    best: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)


_WORDS = {
    "equal_rewards": (
        "in every group all rewards were equal, so nothing was learnt; the task is too hard or solved: look at "
        "reward/own, and try easier problems, more rollouts a prompt or rows of a teacher"
    ),
    "empty": (
        "every completion was empty: the policy has learnt to end at once; try a lower optim.lr, a higher "
        "loss.kl_coefficient or a larger rollout.deployed_frac"
    ),
    "cut_off": (
        "every completion was cut off by the length limit: the policy no longer ends its answers, or "
        "rollout.max_new_tokens is too small for them"
    ),
}


def observe_step(memory: Memory, step: int, rows: Sequence[Rollout], *, live_groups: int) -> tuple[Memory, list[str]]:
    """Takes a step's rollouts and its number of groups whose rewards were not all equal.

    Returns:
        The memory after it, and a warning for each state of affairs that has lasted `PATIENCE` steps, or twice, or
        three times as many.
    """
    own = [row for row in rows if row.source == OWN]
    seen = {
        "equal_rewards": live_groups == 0,
        "empty": bool(own) and all(not row.text.strip() for row in own),
        "cut_off": bool(own) and all(row.cut_off for row in own),
    }
    counts = {name: getattr(memory, name) + 1 if now else 0 for name, now in seen.items()}
    warnings = [
        f"step {step}: in the last {count} steps {_WORDS[name]}"
        for name, count in counts.items()
        if count and count % PATIENCE == 0
    ]
    return dataclasses.replace(memory, **counts), warnings


def observe_evaluation(memory: Memory, evaluation: Evaluation) -> tuple[Memory, list[str]]:
    """Takes an evaluation; only the deployed policy's compile and solve rates are watched.

    A fall is clear where the whole 95% interval lies below that of an earlier evaluation.

    Returns:
        The memory after it, and a warning for each rate that has clearly fallen.
    """
    if evaluation.policy != "deployed":
        return memory, []
    best, warnings = dict(memory.best), []
    for name in WATCHED:
        rate = getattr(evaluation.table.overall, name)
        if rate.value is None:
            continue
        if name in best and rate.high < best[name][2]:
            earlier, value, _ = best[name]
            warnings.append(
                f"step {evaluation.step}: the deployed policy's {name} rate has fallen to {rate.value:.1%} from "
                f"{value:.1%} at step {int(earlier)}: that is collapse, and a low hack rate beside it is no success"
            )
        if name not in best or rate.low > best[name][2]:
            best[name] = [evaluation.step, rate.value, rate.low]
    return dataclasses.replace(memory, best=best), warnings
