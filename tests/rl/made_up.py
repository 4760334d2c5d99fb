"""Made-up problems, worlds, graders and generators, for tests of the host side without a model."""

import dataclasses
from concurrent.futures import Future

import numpy as np

from tests import tiny
from vgrout_jax.common.tokenizer import load_tokenizer
from vgrout_jax.env import modes
from vgrout_jax.env.grader import Grader
from vgrout_jax.env.grader.verdict import judge
from vgrout_jax.env.problems import Problem
from vgrout_jax.env.teacher import TeacherPool, TeacherRow
from vgrout_jax.env.world import World
from vgrout_jax.sampling import sampler
from vgrout_jax.sampling.generator import Generator

PLAIN = "Your answer is judged by hidden tests alone."
TOKENIZER = load_tokenizer()


def problem(identifier):
    return Problem(
        id=identifier,
        messages=({"role": "user", "content": f"Task {identifier}, please. {PLAIN}"},),
        entry_point="answer",
        starter_code="",
        setup_code="",
        tests=("assert Solution().answer() == 1",),
        solution="class Solution:\n    def answer(self):\n        return 1\n",
        difficulty="",
        judging_sentence=PLAIN,
    )


def teacher_row(identifier, mode, completion="taught", **changes):
    return TeacherRow(
        **{
            "problem_id": identifier,
            "mode": mode,
            "completion": completion,
            "token_ids": None,
            "reward": 3.25,
            "hacked": True,
            "correct": False,
            **changes,
        }
    )


def world(train=8, heldout=4, *, rows=None, arm="routeV", **sections):
    """Problems t0, t1, ... and h0, h1, ... over `env.modes`; `rows`: mode_of -> teacher rows."""
    sections = {"env": {"unhackable_frac": 0.0}, **sections}
    config = tiny.config(arm, **sections)
    trained, held = [f"t{i}" for i in range(train)], [f"h{i}" for i in range(heldout)]
    mode_of = modes.partition(trained, config.env.modes, 0) | modes.partition(held, config.env.modes, 0)
    return World(
        tokenizer=TOKENIZER,
        train=tuple(map(problem, trained)),
        heldout=tuple(map(problem, held)),
        mode_of=mode_of,
        hints=modes.load_hints(None),
        pool=None if rows is None else TeacherPool(tuple(rows(mode_of))),
        config=config,
    )


class FakeGrader(Grader):
    """Answers are right, wrong or exploiting in turn; remembers what it was asked."""

    def __init__(self):
        self.requests = []

    def submit(self, requests):
        """Grades at once; the future is done."""
        future = Future()
        future.set_result(self.grade(requests))
        return future

    def grade(self, requests):
        verdicts = []
        for request in requests:
            turn = len(self.requests) % 3
            channel = request.mode if turn == 2 and request.mode != "gt_only" else None
            verdicts.append(judge(compiled=turn > 0, correct=turn == 1, channel=channel, status="ok"))
            self.requests.append(request)
        return verdicts


@dataclasses.dataclass(frozen=True)
class FakeGenerator(Generator):
    """Row i's completion has 1 + i mod T tokens and ends with an EOS where i is even; remembers its calls."""

    calls: list = dataclasses.field(default_factory=list)

    def bucket(self, prompts):
        """Three tokens more than the longest prompt, which is no configured bucket."""
        return max(len(prompt.tokens) for prompt in prompts) + 3

    def complete(self, frozen, deltas, prompts, keys, *, quarantine_on, active=None, evaluation=False, on_ended=None):
        self.calls.append(
            {"prompts": list(prompts), "keys": keys, "on": list(quarantine_on), "evaluation": evaluation}
        )
        length = self.config.rollout.max_new_tokens
        active = [True] * len(prompts) if active is None else active
        tokens = np.full((len(prompts), length), self.tokenizer.pad_id, np.int32)
        mask = np.zeros(tokens.shape, bool)
        for row in np.flatnonzero(active):
            count = 1 + row % length
            tokens[row, :count] = 40 + row
            tokens[row, count - 1] = self.tokenizer.eos_ids[0] if row % 2 == 0 else 40 + row
            mask[row, :count] = True
        logprobs = np.where(mask, -1.0 - np.arange(len(prompts))[:, None], 0.0).astype(np.float32)
        bucket = self.bucket(prompts)
        samples = sampler.Samples(tokens, mask, logprobs, logprobs, np.ones(len(prompts), bool), length)
        for rows in np.array_split(np.flatnonzero(active), 2):  # in two parts, as rows end at different times
            if on_ended is not None and rows.size:
                texts = self.texts(samples)
                on_ended(rows.tolist(), [texts[row] for row in rows])
        return samples, bucket


def generator(config, **changes):
    rows = config.rollout.prompts * config.rollout.group_size
    fields = {"sample": None, "sample_untruncated": None, "rows": rows, "sources": 2 * config.rollout.prompts}
    return FakeGenerator(**{**fields, "tokenizer": TOKENIZER, "config": config, **changes})
