"""Completions of prompts under either policy, in compiled batches of fixed size. Host side of the sampler."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vgrout_jax.common.tokenizer import ChatTokenizer
from vgrout_jax.config import Config
from vgrout_jax.env.world import Prompt
from vgrout_jax.model import lora2r, padding, qwen3
from vgrout_jax.model.policy import Frozen
from vgrout_jax.sampling import sampler


@dataclasses.dataclass(frozen=True)
class Generator:
    """The run's compiled sampler and the batch shape it is called with, in training and in evaluation alike.

    Attributes:
        sample: of `sampler.build_sampler`, with training's truncation.
        sample_untruncated: the same without top-k and top-p, for evaluation.
        rows: N, rollouts of a call.
        sources: Q, distinct (prompt, policy) prefills of a call.
        tokenizer: of the policy.
        config: of the run.
        one_policy: the quarantine never trains, so that the policies with and without it are one, bit for bit.
    """

    sample: sampler.Sampler
    sample_untruncated: sampler.Sampler
    rows: int
    sources: int
    tokenizer: ChatTokenizer
    config: Config
    one_policy: bool = False

    def complete(
        self,
        frozen: Frozen,
        deltas: lora2r.Factors,
        prompts: Sequence[Prompt],
        keys: jax.Array,
        *,
        quarantine_on: Sequence[bool],
        active: Sequence[bool] | None = None,
        evaluation: bool = False,
        on_ended: Callable[[list[int], list[str]], object] | None = None,
    ) -> tuple[sampler.Samples, int]:
        """Samples one completion a row.

        Args:
            frozen, deltas: the policy.
            prompts: one a row; rows of the same prompt and policy share a prefill. At most `rows` of them.
            keys: [rows given] PRNG keys.
            quarantine_on: a row's policy: True as trained, False ablated.
            active: False: the row is not sampled.
            evaluation: sample at `eval.temperature` without truncation.
            on_ended: called with rows and their texts as soon as they are known to have ended, while others grow;
                once with every active row.

        Returns:
            Samples of the rows given, and the prompt bucket B.
        """
        count = len(prompts)
        active = [True] * count if active is None else list(active)
        if self.one_policy:
            quarantine_on = [False] * count
        sources, of_row = _sources(prompts, quarantine_on, active)
        if count > self.rows or len(sources) > self.sources:
            raise ValueError(f"{count} rows of {len(sources)} sources exceed {self.rows} of {self.sources}")
        texts = [prompt.tokens for prompt, _ in sources]
        texts += [texts[0]] * (self.sources - len(texts))
        bucket = self.bucket([prompt for prompt, _ in sources])
        tokens, valid = padding.pad_prompts(texts, bucket, self.tokenizer.pad_id)
        policies = np.zeros(self.sources, bool)
        policies[: len(sources)] = [on for _, on in sources]
        missing = self.rows - count
        # The rows that fill up the shape draw nothing that is kept, but no key may serve twice.
        keys = jnp.concatenate([keys, jax.random.split(jax.random.key(0), missing)]) if missing else keys
        temperature = self.config.eval.temperature if evaluation else self.config.rollout.temperature
        told = ~np.array(active)
        for samples in (self.sample_untruncated if evaluation else self.sample).stream(
            frozen.base,
            lora2r.Adapter(frozen.init, deltas),
            tokens,
            valid,
            source_policy=policies,
            source_of_row=np.array(of_row + [0] * missing, np.int32),
            active=np.array(active + [False] * missing),
            keys=keys,
            temperature=float(temperature),
        ):
            self._tell(on_ended, samples, told, samples.ended[:count])
        self._tell(on_ended, samples, told, np.ones(count, bool))
        return jax.tree.map(lambda leaf: leaf[:count] if np.ndim(leaf) else leaf, samples), bucket

    def bucket(self, prompts: Sequence[Prompt]) -> int:
        """The length that all prompts of a call are padded to, from those whose rows are sampled."""
        return padding.prompt_bucket(max(len(prompt.tokens) for prompt in prompts), self.config.data.prompt_buckets)

    def _tell(self, on_ended: Callable | None, samples: sampler.Samples, told: np.ndarray, ended: np.ndarray) -> None:
        """Hands over the rows that have ended and have not been handed over; notes that in `told`."""
        rows = np.flatnonzero(ended & ~told)
        if on_ended is not None and rows.size:
            told[rows] = True
            on_ended(rows.tolist(), self._decode(samples.tokens[rows], samples.mask[rows]))

    def texts(self, samples: sampler.Samples) -> list[str]:
        """The completions as text, special tokens left out."""
        return self._decode(samples.tokens, samples.mask)

    def _decode(self, tokens: np.ndarray, mask: np.ndarray) -> list[str]:
        return [self.tokenizer.decode(row[kept].tolist()) for row, kept in zip(tokens, mask, strict=True)]


def _sources(
    prompts: Sequence[Prompt], quarantine_on: Sequence[bool], active: Sequence[bool]
) -> tuple[list[tuple[Prompt, bool]], list[int]]:
    """The distinct (prompt, policy) of the rows to sample, and every row's place among them.

    A row that is not sampled needs no prefill: where all own rows are of the deployed policy, a teacher's row
    would ask for one that no place is kept for. Its place is 0.
    """
    sources: dict[tuple[int, bool], tuple[Prompt, bool]] = {}
    rows = [(prompt, bool(on)) for prompt, on in zip(prompts, quarantine_on, strict=True)]
    for (prompt, on), wanted in zip(rows, active, strict=True):
        if wanted:
            sources.setdefault((id(prompt), on), (prompt, on))
    places = {source: place for place, source in enumerate(sources)}
    return list(sources.values()), [places.get((id(prompt), on), 0) for prompt, on in rows]


def build_generator(
    config: Config,
    model: qwen3.Qwen3Config,
    tokenizer: ChatTokenizer,
    mesh: jax.sharding.Mesh,
    *,
    one_policy: bool = False,
) -> Generator:
    """The generator of a run; training and evaluation share one compiled program where truncation is off.

    `one_policy`: the quarantine never trains, so that the policies with and without it are one, bit for bit.
    """

    def build(top_k: int, top_p: float) -> sampler.Sampler:
        return sampler.build_sampler(
            model,
            max_new_tokens=config.rollout.max_new_tokens,
            eos_ids=tokenizer.eos_ids,
            pad_id=tokenizer.pad_id,
            top_k=top_k,
            top_p=top_p,
            mesh=mesh,
        )

    truncated = config.rollout.top_k > 0 or config.rollout.top_p < 1.0
    plain = build(0, 1.0)
    mixed = 0.0 < config.rollout.deployed_frac < 1.0 and not one_policy
    policies = 2 if mixed else 1
    return Generator(
        sample=build(config.rollout.top_k, config.rollout.top_p) if truncated else plain,
        sample_untruncated=plain,
        rows=config.rollout.prompts * config.rollout.group_size,
        sources=config.rollout.prompts * policies,
        tokenizer=tokenizer,
        config=config,
        one_policy=one_policy,
    )
