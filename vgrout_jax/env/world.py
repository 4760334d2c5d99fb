"""The world of a run: its problems, their modes, the prompts that disclose them, and the teacher's pool."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from vgrout_jax.common.tokenizer import ChatTokenizer
from vgrout_jax.config import Config
from vgrout_jax.env import modes, problems
from vgrout_jax.env.modes import GT_ONLY, Names
from vgrout_jax.env.problems import Problem
from vgrout_jax.env.teacher import TeacherPool, load_pool


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A problem as it is shown: under one mode, with one set of disclosed names.

    Attributes:
        problem: the problem.
        mode: what is disclosed, and how answers are graded.
        names: the names in the disclosure.
        text: the user message.
        tokens: the whole chat prompt.
    """

    problem: Problem
    mode: str
    names: Names
    text: str
    tokens: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class World:
    """Everything about the environment that is fixed for a run.

    Attributes:
        tokenizer: of the policy.
        train: training problems; `heldout`: those of the evaluation, disjoint from them.
        mode_of: problem id -> mode, for both.
        hints: mode -> disclosure.
        pool: the teacher's completions, or None.
        config: of the run.
    """

    tokenizer: ChatTokenizer
    train: tuple[Problem, ...]
    heldout: tuple[Problem, ...]
    mode_of: Mapping[str, str]
    hints: Mapping[str, str]
    pool: TeacherPool | None
    config: Config

    def prompt(self, problem: Problem, mode: str, names: Names) -> Prompt:
        """Renders and tokenises one prompt.

        Raises:
            ValueError: the prompt is longer than `data.max_prompt_tokens`.
        """
        messages = modes.render(problem, mode, names, self.hints)
        tokens = tuple(self.tokenizer.encode_chat(messages))
        limit = self.config.data.max_prompt_tokens
        if len(tokens) > limit:
            raise ValueError(
                f"data.max_prompt_tokens must be >= the longest prompt, got {limit}: problem {problem.id} has "
                f"{len(tokens)} tokens under mode {mode}; raise the limit (and data.prompt_buckets) or leave it out"
            )
        return Prompt(problem, mode, names, messages[-1]["content"], tokens)

    def training_prompts(self, step: int) -> list[Prompt]:
        """The P prompts of a step, a function of `step` alone.

        Modes take turns, each with its own seeded permutation of its problems an epoch, so that every problem
        is seen equally often. `env.unhackable_frac` of the prompts are shown with the plain sentence.
        """
        count = self.config.rollout.prompts
        chosen = [self._problem(step * count + slot) for slot in range(count)]
        draw = np.random.default_rng((self.config.seed, 1, step))
        plain_count = int(self.config.env.unhackable_frac * count + draw.random())
        plain = set(draw.permutation(count)[:plain_count].tolist())
        return [
            self.prompt(problem, GT_ONLY if slot in plain else self.mode_of[problem.id], modes.TRAINING_NAMES)
            for slot, problem in enumerate(chosen)
        ]

    def heldout_prompts(self, limit: int | None) -> list[Prompt]:
        """The held-out prompts, with other names disclosed than training's; `limit` keeps the modes balanced."""
        groups = self._by_mode(self.heldout)
        longest = max(map(len, groups.values()))
        ordered = [group[row] for row in range(longest) for group in groups.values() if row < len(group)]
        return [self.prompt(p, self.mode_of[p.id], modes.HELDOUT_NAMES) for p in ordered[:limit]]

    def _by_mode(self, chosen: Sequence[Problem]) -> dict[str, list[Problem]]:
        groups: dict[str, list[Problem]] = {}
        for problem in chosen:
            groups.setdefault(self.mode_of[problem.id], []).append(problem)
        return dict(sorted(groups.items()))

    def _problem(self, index: int) -> Problem:
        groups = list(self._by_mode(self.train).values())
        group_index, turn = index % len(groups), index // len(groups)
        group = groups[group_index]
        epoch, position = divmod(turn, len(group))
        order = np.random.default_rng((self.config.data.seed, 2, group_index, epoch)).permutation(len(group))
        return group[order[position]]


@dataclasses.dataclass(frozen=True)
class Files:
    """What the files hold that a configuration names; no tokenizer is needed to read them.

    Attributes:
        train, heldout: problems.
        pool: of the teacher, or None.
        hints: templates of the disclosures, by mode.
    """

    train: Sequence[Problem]
    heldout: Sequence[Problem]
    pool: TeacherPool | None
    hints: Mapping[str, str]


def read_files(config: Config) -> Files:
    """Reads the problems, the teacher's pool and the disclosures.

    Raises:
        ValueError, FileNotFoundError: with one line that names the file, problem or field.
    """
    found = problems.load_problems(config.data.train, setting="data.train")
    if config.data.heldout:
        train, heldout = found, problems.load_problems(config.data.heldout, setting="data.heldout")
    else:
        train, heldout = problems.split_heldout(found, config.data.heldout_frac, config.data.seed)
    problems.check_disjoint(train, heldout)
    pool = load_pool(config.teacher.pool) if config.teacher.per_prompt else None
    return Files(train, heldout, pool, modes.load_hints(config.env.hints))


def load_world(config: Config, tokenizer: ChatTokenizer, files: Files | None = None) -> World:
    """Loads and checks everything that the configuration names; every prompt is rendered once.

    `files`: of `read_files`, where they have been read before.

    Raises:
        ValueError, FileNotFoundError: with one line that names the file, problem or field.
    """
    files = files or read_files(config)
    train, heldout, pool = files.train, files.heldout, files.pool
    fixed = pool.required_modes() if pool else {}
    mode_of = modes.partition([p.id for p in train], config.env.modes, config.data.seed, fixed=fixed)
    mode_of |= modes.partition([p.id for p in heldout], config.env.modes, config.data.seed)
    if pool:
        pool = pool.align({p.id: mode_of[p.id] for p in train})
    world = World(tokenizer, tuple(train), tuple(heldout), mode_of, files.hints, pool, config)
    for problem in train:
        for mode in {mode_of[problem.id], GT_ONLY}:
            world.prompt(problem, mode, modes.TRAINING_NAMES)
    world.heldout_prompts(None)
    return world
