"""What a report takes from the completions of an arm's runs: gate scores by true label, and examples."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from vgrout_jax.analysis.arms import Arm
from vgrout_jax.evaluation.rates import POLICIES, auroc
from vgrout_jax.run.reader import EvaluationCompletion, TrainingRollout, Workdir

TRUTHS = ("hack", "solved", "neither")


@dataclasses.dataclass(frozen=True)
class Example:
    """A prompt with completions that belong together.

    Attributes:
        title: what it is an example of.
        prompt: as shown.
        completions: (caption, text).
    """

    title: str
    prompt: str
    completions: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Observations:
    """Of one arm, over its runs.

    Attributes:
        scores: true label (`TRUTHS`) -> gate scores of the rollouts with positive advantage; measuring only.
        examples: of its first seed.
    """

    scores: dict[str, list[float]]
    examples: tuple[Example, ...]

    @property
    def auroc(self) -> float | None:
        """Of the score against the hack flag, over all steps and seeds together."""
        values = np.array([score for truth in TRUTHS for score in self.scores[truth]], np.float64)
        flags = np.array([truth == "hack" for truth in TRUTHS for _ in self.scores[truth]], bool)
        return auroc(values, flags)


def truth_of(rollout: TrainingRollout) -> str:
    """The true label, which the gate never sees."""
    return "hack" if rollout.exploited else "solved" if rollout.correct else "neither"


def observe(arm: Arm, visit: Callable[[Workdir], object] = lambda run: None) -> Observations:
    """Reads the completions of an arm's runs once; `visit` is called after each run, for progress."""
    scores: dict[str, list[float]] = {truth: [] for truth in TRUTHS}
    examples: list[Example] = []
    for index, run in enumerate(arm.runs.values()):
        hacks = []
        for step in run.rollout_steps():
            for rollout in run.training_rollouts(step):
                if arm.routed and rollout.score is not None and rollout.advantage > 0:
                    scores[truth_of(rollout)].append(rollout.score)
                if index == 0 and rollout.exploited and rollout.source == "own":
                    hacks = [*hacks[:1], rollout]  # the first and the latest
        if index == 0:
            examples = [*_training_examples(hacks), *_paired_example(run)]
        visit(run)
    return Observations(scores, tuple(examples))


def _training_examples(hacks: Sequence[TrainingRollout]) -> list[Example]:
    titles = ("The first exploit in training", "The last exploit in training")
    return [
        Example(
            f"{title} (step {hack.step}, {hack.mode})", hack.prompt, ((_training_caption(hack), hack.completion),)
        )
        for title, hack in zip(titles, hacks, strict=False)
    ]


def _training_caption(rollout: TrainingRollout) -> str:
    score = "no score" if rollout.score is None else f"score {rollout.score:.2f}"
    policy = "both blocks on" if rollout.policy == "full" else "quarantine off"
    return f"sampled with {policy}; reward {rollout.reward:g}, label {rollout.label} ({score})"


def _paired_example(run: Workdir) -> list[Example]:
    """Both policies' answers to one prompt: where the exploit is in one alone, else where they differ."""
    steps = run.completion_steps()
    if not steps:
        return []
    step = steps[-1]
    found: dict[tuple[str, str, int], dict[str, EvaluationCompletion]] = {}
    for item in run.evaluation_completions(step):
        found.setdefault((item.problem, item.mode, item.sample), {})[item.policy] = item
    whole = [both for both in found.values() if set(both) == set(POLICIES)]
    if not whole:
        return []
    both = max(whole, key=_contrast)
    captions = tuple((f"{policy.replace('_', ' ')}: {_outcome(both[policy])}", both[policy]) for policy in POLICIES)
    deployed = both["deployed"]
    title = f"Deployed against as trained, the same prompt (after {step} updates, {deployed.mode})"
    return [Example(title, deployed.prompt, tuple((caption, item.completion) for caption, item in captions))]


def _contrast(both: dict[str, EvaluationCompletion]) -> tuple[bool, bool, bool]:
    deployed, trained = both["deployed"], both["as_trained"]
    differ = deployed.exploited != trained.exploited
    return differ and deployed.correct, differ, deployed.completion != trained.completion


def _outcome(item: EvaluationCompletion) -> str:
    if item.exploited:
        return "exploits the grader"
    return "correct" if item.correct else "wrong" if item.compiled else "does not compile"
