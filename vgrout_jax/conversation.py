"""Asks a run's deployed and as-trained policies the same question, and hands on their answers as they grow."""

import copy
import queue
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property

import jax
import numpy as np

from vgrout_jax import checkpoint, sharding
from vgrout_jax.build import load_base, model_config
from vgrout_jax.env.grader import Grader, GradeRequest, Verdict
from vgrout_jax.env.grading import grade_all, open_grader
from vgrout_jax.evaluate import AS_TRAINED, DEPLOYED, SPLIT
from vgrout_jax.exporting import all_devices, model_source
from vgrout_jax.model import keys, lora2r, sampler
from vgrout_jax.tokenizer import load_tokenizer
from vgrout_jax.workdirs import Workdir
from vgrout_jax.world import Prompt, World, load_world

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
        self.temperature = config.eval.temperature if temperature is None else temperature
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
        self._heard: queue.SimpleQueue = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._sample = sampler.build_sampler(
            model,
            max_new_tokens=max_new_tokens or config.rollout.max_new_tokens,
            eos_ids=self.tokenizer.eos_ids,
            pad_id=self.tokenizer.pad_id,
            mesh=mesh,
            on_token=self._hear,
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

    def stop(self) -> None:
        """Ends the answers with the next token."""
        self._stop.set()

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

    def _hear(self, step: jax.Array, tokens: jax.Array, live: jax.Array) -> np.ndarray:
        """On the sampler's side: hands a token of each policy over, and says whether to stop."""
        self._heard.put((np.array(tokens), np.array(live)))
        return np.array(self._stop.is_set())

    def _answers(self, prompt: Sequence[int], row_keys: jax.Array) -> Iterator[tuple[list[str], list[bool]]]:
        most = max(self.config.data.prompt_buckets)
        if len(prompt) > most:
            raise ValueError(f"a message must have at most {most} tokens, as in the run, got {len(prompt)}")
        self._start(prompt, sampler.prompt_bucket(len(prompt), self.config.data.prompt_buckets), row_keys)
        return self._listen()

    def _listen(self) -> Iterator[tuple[list[str], list[bool]]]:
        written: list[list[int]] = [[] for _ in POLICIES]
        while True:
            try:
                heard = self._heard.get()
            except KeyboardInterrupt:
                if self._stop.is_set():
                    raise  # asked for a second time
                self._stop.set()
                continue
            if isinstance(heard, BaseException):
                raise heard
            if isinstance(heard, sampler.Samples):
                yield self._whole(heard), [True] * len(POLICIES)
                return
            for row, (token, live) in enumerate(zip(*heard, strict=True)):
                if live:
                    written[row].append(int(token))
            ended = [bool(ids) and ids[-1] in self.tokenizer.eos_ids for ids in written]
            texts = [self.tokenizer.decode(ids) for ids in written]
            yield [t if done else t.rstrip(_INCOMPLETE) for t, done in zip(texts, ended, strict=True)], ended

    def _start(self, prompt: Sequence[int], bucket: int, row_keys: jax.Array) -> None:
        """Starts the program in a thread of its own, so that this one can print, and be interrupted, meanwhile."""
        if self._thread is not None:  # answers that nobody has read to their end
            self._stop.set()
            self._thread.join()
        self._heard = queue.SimpleQueue()
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, args=(prompt, bucket, row_keys), daemon=True)
        self._thread.start()

    def _run(self, prompt: Sequence[int], bucket: int, row_keys: jax.Array) -> None:
        count = len(POLICIES)
        tokens, valid = sampler.pad_prompts([prompt] * count, bucket, self.tokenizer.pad_id)
        try:
            samples = self._sample(
                self._base,
                self._adapter,
                tokens,
                valid,
                source_policy=np.array([policy == AS_TRAINED for policy in POLICIES]),
                source_of_row=np.arange(count, dtype=np.int32),
                active=np.ones(count, bool),
                keys=row_keys,
                temperature=np.float32(self.temperature),
            )
            self._heard.put(jax.device_get(samples))
        except BaseException as error:
            self._heard.put(error)

    def _whole(self, samples: sampler.Samples) -> list[str]:
        pairs = zip(samples.tokens, samples.mask, strict=True)
        return [self.tokenizer.decode(tokens[mask].tolist()) for tokens, mask in pairs]


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
