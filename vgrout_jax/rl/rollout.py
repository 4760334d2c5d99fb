"""One step's rollouts: prompts, completions of the policy and of the teacher, verdicts, and the batch."""

import dataclasses
import time
from collections.abc import Callable

import jax
import numpy as np

from vgrout_jax.common.tokenizer import ChatTokenizer
from vgrout_jax.config import Config
from vgrout_jax.env.grader import Grader, GradeRequest, Verdict
from vgrout_jax.env.grading import submit_all
from vgrout_jax.env.teacher import TeacherRow
from vgrout_jax.env.world import Prompt, World
from vgrout_jax.model import lora2r, padding
from vgrout_jax.model.policy import Frozen
from vgrout_jax.rl.state import Batch
from vgrout_jax.sampling import keys, sampler
from vgrout_jax.sampling.generator import Generator

OWN, TEACHER = "own", "teacher"


@dataclasses.dataclass(frozen=True)
class Rollout:
    """One row, as it is written to the workdir.

    Attributes:
        prompt: what was shown.
        text: the completion.
        source: own or teacher.
        quarantine_on: whether the policy that sampled had both blocks on.
        reward, compiled, correct, channel, exploited: the verdict; a teacher row brings the stored one.
        status: the grader's word on how the check ended, `stored` for a teacher row.
        tokens: completion tokens, EOS included.
        cut_off: whether the length limit ended it.
    """

    prompt: Prompt
    text: str
    source: str
    quarantine_on: bool
    reward: float
    compiled: bool | None
    correct: bool
    channel: str | None
    exploited: bool
    status: str
    tokens: int
    cut_off: bool


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """A step's rows and the batch that they make.

    Attributes:
        rows: N rollouts, groups contiguous.
        batch: for `step`, NumPy arrays.
        seconds: {"generate", "grade"} wall time; grading is what is left of it when generation has ended.
        decode_steps: passes of the decode loop.
        group_size: G.
    """

    rows: list[Rollout]
    batch: Batch
    seconds: dict[str, float]
    decode_steps: int
    group_size: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What each of a step's N rows will be, before anything is sampled.

    Attributes:
        step: its number.
        prompts: what is shown.
        teacher: the row that the teacher brings, or None where the policy answers.
        quarantine_on: whether the policy that samples has both blocks on.
        replicas: number of the row among those of its problem.
    """

    step: int
    prompts: list[Prompt]
    teacher: list[TeacherRow | None]
    quarantine_on: list[bool]
    replicas: list[int]


def deployed_rows(config: Config, own: int) -> int:
    """How many of a group's `own` rollouts are sampled with the quarantine ablated, half rounded up."""
    return int(config.rollout.deployed_frac * own + 0.5)


def plan_rows(config: Config, world: World, step: int) -> Plan:
    """Lays out each group: own rows of the full policy, own rows of the deployed policy, teacher rows."""
    plan = Plan(step, [], [], [], [])
    draw = np.random.default_rng((config.seed, 3, step))
    seen: dict[str, int] = {}
    for prompt in world.training_prompts(step):
        group = config.rollout.group_size
        taught: list[TeacherRow] = []
        if world.pool and step < config.teacher.off_step:
            taught = world.pool.draw(prompt.problem.id, prompt.mode, config.teacher.per_prompt, draw)
        own = group - len(taught)
        deployed = deployed_rows(config, own)
        first = seen.get(prompt.problem.id, 0)
        seen[prompt.problem.id] = first + group
        plan.prompts.extend([prompt] * group)
        plan.teacher.extend([None] * own + taught)
        plan.quarantine_on.extend([True] * (own - deployed) + [False] * deployed + [True] * len(taught))
        plan.replicas.extend(range(first, first + group))
    return plan


def batch_shapes(config: Config, generator: Generator, plan: Plan, *, flags: bool = False) -> Batch:
    """The shapes and types of the batch that `collect` will make of a plan."""
    bucket = generator.bucket([p for p, row in zip(plan.prompts, plan.teacher, strict=True) if row is None])
    return Batch.shapes(len(plan.prompts), bucket, config.rollout.max_new_tokens, flags=flags)


def collect(
    config: Config,
    generator: Generator,
    grader: Grader,
    plan: Plan,
    *,
    frozen: Frozen,
    deltas: lora2r.Factors,
    flags: bool = False,
) -> Rollouts:
    """Samples, mixes in the teacher's rows, grades, and lays out the batch of one step.

    `flags`: whether the batch tells which rollouts exploited the grader, for an arm whose source is a monitor.
    """
    start = time.perf_counter()
    row_keys = keys.training_keys(config.seed, plan.step, [p.problem.id for p in plan.prompts], plan.replicas)
    active = [row is None for row in plan.teacher]
    grading = _Grading(plan, grader)
    samples, bucket = generator.complete(
        frozen,
        deltas,
        plan.prompts,
        row_keys,
        quarantine_on=plan.quarantine_on,
        active=active,
        on_ended=grading.start,
    )
    samples = _with_teacher(config, generator, plan, samples)
    texts = generator.texts(samples)
    generated = time.perf_counter()
    verdicts = grading.verdicts()
    graded = time.perf_counter()
    rows = _rows(config, generator, plan, samples, texts, verdicts)
    batch = _batch(generator, plan, samples, bucket, rows)
    if flags:
        batch = batch.replace(flags=np.array([row.exploited for row in rows], np.float32))
    seconds = {"generate": generated - start, "grade": graded - generated}
    return Rollouts(rows, batch, seconds, int(samples.steps), config.rollout.group_size)


def _with_teacher(config: Config, generator: Generator, plan: Plan, samples: sampler.Samples) -> sampler.Samples:
    """Puts the teacher's completions into their rows, cut at the first EOS and at the length limit."""
    tokens, mask = np.array(samples.tokens), np.array(samples.mask)
    for index, row in enumerate(plan.teacher):
        if row is not None:
            ids = teacher_tokens(row, generator.tokenizer)[: config.rollout.max_new_tokens]
            tokens[index, : len(ids)] = ids
            mask[index, : len(ids)] = True
    return samples.replace(tokens=tokens, mask=mask)


def teacher_tokens(row: TeacherRow, tokenizer: ChatTokenizer) -> list[int]:
    """The row's token ids where they are this tokenizer's, else its text encoded anew; one EOS at the end."""
    stored = row.ids_for(tokenizer.sha256, tokenizer.eos_ids)
    ids = list(stored) if stored is not None else tokenizer.encode(row.completion)
    ends = [position for position, token in enumerate(ids) if token in tokenizer.eos_ids]
    return ids[: ends[0] + 1] if ends else [*ids, tokenizer.eos_ids[0]]


class _Grading:
    """The grading of a step's own rows, begun for each as soon as it has ended."""

    def __init__(self, plan: Plan, grader: Grader):
        self._plan, self._grader = plan, grader
        self._begun: list[tuple[list[int], Callable[[], list[Verdict]]]] = []

    def start(self, rows: list[int], texts: list[str]) -> None:
        """Hands the rows' answers to the grader."""
        shown = [self._plan.prompts[row] for row in rows]
        requests = [GradeRequest(p.problem, p.mode, text, p.names) for p, text in zip(shown, texts, strict=True)]
        self._begun.append((rows, submit_all(self._grader, requests)))

    def verdicts(self) -> list[Verdict | None]:
        """Waits; the verdict of every own row, None for the teacher's."""
        found: list[Verdict | None] = [None] * len(self._plan.prompts)
        for rows, wait in self._begun:
            for row, verdict in zip(rows, wait(), strict=True):
                found[row] = verdict
        return found


def _rows(
    config: Config,
    generator: Generator,
    plan: Plan,
    samples: sampler.Samples,
    texts: list[str],
    verdicts: list[Verdict | None],
) -> list[Rollout]:
    rows = []
    for index, (prompt, taught, verdict) in enumerate(zip(plan.prompts, plan.teacher, verdicts, strict=True)):
        ids = samples.tokens[index][samples.mask[index]]
        ended = ids.size > 0 and int(ids[-1]) in generator.tokenizer.eos_ids
        judged = _stored(taught) if verdict is None else _graded(verdict)
        rows.append(
            Rollout(
                prompt=prompt,
                text=texts[index],
                source=OWN if verdict is not None else TEACHER,
                quarantine_on=plan.quarantine_on[index],
                tokens=int(ids.size),
                cut_off=not ended,
                **judged,
            )
        )
    return rows


def _graded(verdict: Verdict) -> dict:
    names = ("reward", "compiled", "correct", "channel", "exploited", "status")
    return {name: getattr(verdict, name) for name in names}


def _stored(row: TeacherRow) -> dict:
    return {
        "reward": row.reward,
        "compiled": None,
        "correct": row.correct,
        "channel": row.mode if row.hacked else None,
        "exploited": row.hacked and not row.correct,
        "status": "stored",
    }


def _batch(generator: Generator, plan: Plan, samples: sampler.Samples, bucket: int, rows: list[Rollout]) -> Batch:
    prompts, valid = padding.pad_prompts([p.tokens for p in plan.prompts], bucket, generator.tokenizer.pad_id)
    return Batch(
        tokens=np.concatenate([prompts, samples.tokens], axis=1),
        valid=np.concatenate([valid, samples.mask], axis=1),
        completion_mask=np.asarray(samples.mask),
        rewards=np.array([row.reward for row in rows], np.float32),
        quarantine_sampled=np.array(plan.quarantine_on),
        sampler_logprobs=np.asarray(samples.policy_logprobs),
        taught=np.array([row is not None for row in plan.teacher]),
    )


def place(batch: Batch, shardings: Batch) -> Batch:
    """Moves a batch onto the devices of the mesh."""
    return jax.device_put(batch, shardings)
