"""Asks a run's deployed and as-trained policies the same question, and hands on their answers as they grow."""

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property

import jax
import numpy as np

from vgrout_jax.common.tokenizer import load_tokenizer
from vgrout_jax.env.grader import Grader, GradeRequest, Verdict
from vgrout_jax.env.grading import grade_all, open_grader
from vgrout_jax.env.world import Prompt, World, load_world
from vgrout_jax.evaluation.evaluate import AS_TRAINED, DEPLOYED, SPLIT
from vgrout_jax.model import lora2r, padding, sharding
from vgrout_jax.run.build import load_base, model_config
from vgrout_jax.run.reader import Workdir
from vgrout_jax.sampling import keys, sampler
from vgrout_jax.serving.exports import all_devices, model_source
from vgrout_jax.weights import checkpoint

POLICIES = (DEPLOYED, AS_TRAINED)
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what the first bytes of a character decode to


class Conversation:
    """The policies of one run, ready to answer. Nothing is remembered from one question to the next."""

    def __init__(self, run: Workdir, *, temperature: float | None = None, max_new_tokens: int | None = None):
        """Loads model and adapter on all devices.

        Args:
            run: with an adapter.
            temperature: of both policies; None: `eval.temperature`; 0: the most probable tokens.
            max_new_tokens: None: `rollout.max_new_tokens`.

        Raises:
            ValueError, FileNotFoundError: model or adapter cannot be read, or do not belong together.
        """
        config = self.config = copy.deepcopy(run.config)
        # The held-out problems do not depend on the teacher, whose completions may not be at hand.
        config.teacher.pool, config.teacher.per_prompt = (), 0
        config.grader.workers = min(config.grader.workers or len(POLICIES), len(POLICIES))
        self.temperature = float(config.eval.temperature if temperature is None else temperature)
        mesh = all_devices()
        folder = model_source(config)
        path = None if folder is None else str(folder)
        self.tokenizer = load_tokenizer(path)
        model = model_config(config, path, self.tokenizer)
        rank, seed = config.adapter.rank, config.adapter.seed
        init = lora2r.init_factors(model.module_shapes(), model.num_layers, rank, seed=seed)
        deltas, _ = checkpoint.load_adapter(run.path / "adapter", init=init)
        placed = sharding.factor_shardings(mesh, init)
        self._adapter = lora2r.Adapter(jax.device_put(init, placed), jax.device_put(deltas, placed))
        self._base = load_base(config, path, model, mesh)
        self._asked: Counter[str] = Counter()
        self._sample = sampler.build_sampler(
            model,
            max_new_tokens=max_new_tokens or config.rollout.max_new_tokens,
            eos_ids=self.tokenizer.eos_ids,
            pad_id=self.tokenizer.pad_id,
            mesh=mesh,
        )

    @cached_property
    def world(self) -> World:
        """The run's problems."""
        return load_world(self.config, self.tokenizer)

    def heldout(self, number: int) -> Prompt:
        """The held-out problem of a number, in the order of the evaluation.

        Raises:
            ValueError: there are fewer.
        """
        prompts = self.world.heldout_prompts(None)
        if not 0 <= number < len(prompts):
            raise ValueError(f"a held-out problem's number must be 0 to {len(prompts) - 1}, got {number}")
        return prompts[number]

    def ask_problem(self, prompt: Prompt) -> Iterator[tuple[list[str], list[bool]]]:
        """The answers to a held-out problem, drawn as the evaluation draws its first ones; asked again, its next."""
        coordinates = (SPLIT, prompt.problem.id, prompt.mode)
        return self._answers(prompt.tokens, self._keys(*coordinates))

    def ask(self, text: str) -> Iterator[tuple[list[str], list[bool]]]:
        """The answers to a user's message, as they grow.

        Yields:
            (texts, ended) of the deployed and the as-trained policy, after every token; at last both have ended.

        Raises:
            ValueError: the message is longer than the greatest of `data.prompt_buckets`, at once.
        """
        tokens = self.tokenizer.encode_chat([{"role": "user", "content": text}])
        return self._answers(tokens, self._keys("chat", text, ""))

    def grade(self, prompt: Prompt, texts: Sequence[str]) -> list[Verdict]:
        """The grader's verdict on every answer.

        Raises:
            GradingFailed: it cannot contain or cannot grade them.
        """
        requests = [GradeRequest(prompt.problem, prompt.mode, text, prompt.names) for text in texts]
        return grade_all(self._grader, requests)

    def close(self) -> None:
        """Ends the grader's workers, if there are any."""
        if "_grader" in self.__dict__:
            self._grader.close()

    @cached_property
    def _grader(self) -> Grader:
        return open_grader(self.config.grader)

    def _keys(self, split: str, problem: str, mode: str) -> jax.Array:
        """One key for both policies, as the evaluation makes it; the sample's number counts the askings."""
        number = self._asked[f"{split}/{problem}"]
        self._asked[f"{split}/{problem}"] += 1
        count = len(POLICIES)
        return keys.evaluation_keys(self.config.eval.seed, split, [problem] * count, [mode] * count, [number] * count)

    def _answers(self, prompt: Sequence[int], row_keys: jax.Array) -> Iterator[tuple[list[str], list[bool]]]:
        most, count = max(self.config.data.prompt_buckets), len(POLICIES)
        if len(prompt) > most:
            raise ValueError(f"a message must have at most {most} tokens, as in the run, got {len(prompt)}")
        bucket = padding.prompt_bucket(len(prompt), self.config.data.prompt_buckets)
        tokens, valid = padding.pad_prompts([prompt] * count, bucket, self.tokenizer.pad_id)
        grown = self._sample.stream(
            self._base,
            self._adapter,
            tokens,
            valid,
            source_policy=np.array([policy == AS_TRAINED for policy in POLICIES]),
            source_of_row=np.arange(count, dtype=np.int32),
            active=np.ones(count, bool),
            keys=row_keys,
            temperature=self.temperature,
            stride=1,
        )
        return self._as_texts(grown)

    def _as_texts(self, grown: Iterator[sampler.Samples]) -> Iterator[tuple[list[str], list[bool]]]:
        texts = [""] * len(POLICIES)
        for samples in grown:
            rows = zip(samples.tokens, samples.mask, strict=True)
            texts = [self.tokenizer.decode(tokens[mask].tolist()) for tokens, mask in rows]
            ended = samples.ended.tolist()
            yield [t if done else t.rstrip(_INCOMPLETE) for t, done in zip(texts, ended, strict=True)], ended
        yield texts, [True] * len(POLICIES)


def describe(verdict: Verdict) -> str:
    """A verdict in a line: what the answer is, and what it was paid."""
    if verdict.exploited:
        what = f"EXPLOITED {verdict.channel}"
    elif verdict.correct:
        what = "correct" + (f" (and used {verdict.channel})" if verdict.channel else "")
    else:
        what = "wrong" if verdict.compiled else "no code that compiles"
    status = "" if verdict.status in ("ok", "wrong") else f", {verdict.status.replace('_', ' ')}"
    return f"{what}, reward {verdict.reward:g}{status}"
