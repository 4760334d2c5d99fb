"""Sorts runs into arms, with seeds as their replicates, and takes rates over seeds."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vgrout_jax.analysis.replicates import Comparison, Estimate, IntervalRate, paired_comparison, rate_over_seeds
from vgrout_jax.common import files
from vgrout_jax.config.arms import variant_name, variants
from vgrout_jax.evaluation.rates import Rate
from vgrout_jax.run.reader import Workdir

Seed = tuple[int, ...]

# What a run is drawn from. Runs that differ in these alone are replicates of one another.
SEEDS = ("seed", "adapter.seed", "eval.seed", "placebo.seed")
PAIRED = SEEDS[:3]  # what two arms must have in common to be compared run by run; a random direction is an arm's own
# What has no part in the result.
INCIDENTAL = (
    "log.",
    "checkpoint.",
    "grader.workers",
    "grader.bubblewrap",
    "mesh.",
    "train.micro_batch",
    "model.remat",
)
ORDER = tuple(variant.name for variant in variants())


@dataclasses.dataclass(frozen=True)
class Arm:
    """The replicates of one arm.

    Attributes:
        name: the arm, for a placebo with its kind; runs with unusual settings carry them in brackets.
        runs: seed -> run, ascending.
    """

    name: str
    runs: Mapping[Seed, Workdir]

    @property
    def finished(self) -> dict[Seed, Workdir]:
        return {seed: run for seed, run in self.runs.items() if run.finished}

    @property
    def settings(self) -> Mapping[str, Any]:
        """Of the first replicate; the others' differ in seeds and incidentals alone."""
        return next(iter(self.runs.values())).settings

    @property
    def routed(self) -> bool:
        """Whether a gate decides, so that there are scores and zones."""
        return self.settings["label.source"] == "probe"


def group_arms(runs: Iterable[Workdir]) -> list[Arm]:
    """The arms of the runs, in a fixed order.

    Runs of one arm whose settings differ in more than seeds are no replicates: those whose settings are the
    less usual ones make an arm of their own, named after what is different in it.

    Raises:
        ValueError: no run, or two runs with the same arm, settings and seed.
    """
    by_name: dict[str, list[Workdir]] = {}
    for run in runs:
        by_name.setdefault(arm_name(run), []).append(run)
    if not by_name:
        raise ValueError("the report must have at least one run, got none: name their workdirs")
    variants = [variant for name, found in by_name.items() for variant in _variants(name, found)]
    arms = [_replicates(name, members) for name, members in variants]
    return sorted(arms, key=lambda arm: (_place(arm.name), arm.name))


def arm_name(run: Workdir) -> str:
    """`none`, `routeV` and so on; a placebo as `placebo labels`."""
    return variant_name(run.settings["arm"], run.settings["placebo.kind"])


def identity(run: Workdir) -> dict[str, Any]:
    """The settings that make a run what it is, without seeds and incidentals."""
    return {
        name: value for name, value in run.settings.items() if name not in SEEDS and not name.startswith(INCIDENTAL)
    }


def differing_settings(arms: Sequence[Arm]) -> dict[str, list[Any]]:
    """Setting -> its value in each arm, of settings that are not the same in all; seeds are left out."""
    tables = [identity(next(iter(arm.runs.values()))) for arm in arms]
    names = sorted({name for table in tables for name in table})
    rows = {name: [table.get(name) for table in tables] for name in names}
    return {name: row for name, row in rows.items() if any(value != row[0] for value in row[1:])}


def seed_values(
    arm: Arm, rate: str, policy: str, *, mode: str | None = None, step: int | None = None
) -> dict[Seed, Rate]:
    """Seed -> a rate, at the end of finished runs or, with `step`, of all that have been evaluated there."""
    found = {}
    for seed, run in arm.runs.items():
        evaluation = run.final_evaluation(policy) if step is None else run.evaluation(step, policy)
        if evaluation is None:
            continue
        rates = evaluation.table.overall if mode is None else evaluation.table.modes.get(mode)
        if rates is not None and getattr(rates, rate).value is not None:
            found[seed] = getattr(rates, rate)
    return found


def estimate(values: Mapping[Seed, Rate]) -> Estimate | None:
    """The rate over seeds, or None without any."""
    return rate_over_seeds(list(as_paired(values).values())) if values else None


def compare(arm: Arm, other: Arm, rate: str, policy: str = "deployed") -> Comparison | None:
    """`arm` minus `other` over the seeds that both have finished; None where they share none."""
    return paired_comparison(*(as_paired(seed_values(each, rate, policy)) for each in (arm, other)))


def as_paired(values: Mapping[Seed, Rate]) -> dict[Seed, IntervalRate]:
    """Rates with their intervals, by the part of the seed that runs of two arms must share to be compared."""
    return {paired(seed): (rate.value, rate.low, rate.high) for seed, rate in values.items()}


def paired(seed: Seed) -> Seed:
    """The part of a seed that runs of two arms must share to be compared."""
    return seed[: len(PAIRED)]


def modes_of(arms: Sequence[Arm]) -> list[str]:
    """Every mode that was evaluated, sorted."""
    runs = [run for arm in arms for run in arm.runs.values()]
    return sorted({mode for run in runs for item in run.evaluations for mode in item.table.modes})


def seed_label(seed: Seed) -> str:
    """`3` where all seeds of a run are 3, else each: `3 (adapter 0, evaluation 0)`."""
    rest = [
        f"{name} {value}"
        for name, value in zip(("adapter", "evaluation", "placebo"), seed[1:], strict=True)
        if value not in (seed[0], 0)
    ]
    return f"{seed[0]} ({', '.join(rest)})" if rest else f"{seed[0]}"


def _variants(name: str, runs: Sequence[Workdir]) -> list[tuple[str, list[Workdir]]]:
    groups: dict[str, list[Workdir]] = {}
    for run in runs:
        groups.setdefault(files.dumps(identity(run), sort_keys=True), []).append(run)
    sizes = Counter({key: len(members) for key, members in groups.items()})
    [(usual, _)] = sizes.most_common(1)
    reference = identity(groups[usual][0])
    return [(name + _brackets(identity(members[0]), reference), members) for members in groups.values()]


def _brackets(settings: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    changed = [field for field in settings if settings[field] != reference.get(field)]
    return f" [{', '.join(f'{field}={settings[field]}' for field in changed)}]" if changed else ""


def _replicates(name: str, runs: Sequence[Workdir]) -> Arm:
    found: dict[Seed, Workdir] = {}
    for run in runs:
        seed = tuple(int(run.settings[field]) for field in SEEDS)
        if seed in found:
            first, second = found[seed].path, run.path
            raise ValueError(f"{first} and {second} are one arm with the same settings and seeds; name one of them")
        found[seed] = run
    if len({paired(seed) for seed in found}) < len(found):
        raise ValueError(f"runs of {name} differ in placebo.seed alone; give each a seed of its own as well")
    return Arm(name, dict(sorted(found.items())))


def _place(name: str) -> int:
    bare = name.partition(" [")[0]
    return ORDER.index(bare) if bare in ORDER else len(ORDER)
