"""Evaluation of a policy on held-out problems, the same for every arm (docs/method.md section 13)."""

from collections.abc import Iterator, Sequence

from vgrout_jax.config import Config
from vgrout_jax.env.grader import Grader, GradeRequest, Verdict
from vgrout_jax.env.grading import submit_all
from vgrout_jax.env.world import Prompt
from vgrout_jax.evaluation.rates import Evaluation, Sample, rate_table
from vgrout_jax.model import lora2r
from vgrout_jax.model.policy import Frozen
from vgrout_jax.sampling import keys
from vgrout_jax.sampling.generator import Generator

DEPLOYED, AS_TRAINED = "deployed", "as_trained"
SPLIT = "heldout"


def evaluate(
    config: Config,
    generator: Generator,
    grader: Grader,
    prompts: Sequence[Prompt],
    *,
    frozen: Frozen,
    deltas: lora2r.Factors,
    step: int,
) -> tuple[list[Evaluation], list[dict]]:
    """Samples `eval.samples` completions a prompt from both policies and grades them.

    Sampling keys are made from (eval seed, split, problem, mode, sample) alone: arms, steps and both policies
    see the same draws.

    Returns:
        The evaluations of the deployed policy (quarantine ablated) and as trained (both blocks on), and a
        record of every completion.
    """
    jobs = [(prompt, sample) for prompt in prompts for sample in range(config.eval.samples)]
    evaluations, records = [], []
    for policy in (DEPLOYED, AS_TRAINED):
        samples, submitted = [], []
        for chunk in _chunks(jobs, generator):
            texts = _complete(config, generator, chunk, frozen=frozen, deltas=deltas, policy=policy)
            shown = [prompt for prompt, _ in chunk]
            requests = [GradeRequest(p.problem, p.mode, t, p.names) for p, t in zip(shown, texts, strict=True)]
            submitted.append((chunk, texts, submit_all(grader, requests)))  # graded while the next are generated
        for chunk, texts, verdicts in submitted:
            for (prompt, number), text, verdict in zip(chunk, texts, verdicts(), strict=True):
                samples.append(as_sample(prompt, verdict))
                records.append(_record(step, policy, prompt, number, text, verdict))
        evaluations.append(Evaluation(step, SPLIT, policy, rate_table(samples)))
    return evaluations, records


def as_sample(prompt: Prompt, verdict: Verdict) -> Sample:
    """What the rate tables need of a verdict."""
    return Sample(
        problem=prompt.problem.id,
        mode=prompt.mode,
        hack=verdict.exploited,
        solve=verdict.correct,
        compile=verdict.compiled,
        channel=verdict.channel is not None,
    )


def _complete(
    config: Config,
    generator: Generator,
    chunk: Sequence[tuple[Prompt, int]],
    *,
    frozen: Frozen,
    deltas: lora2r.Factors,
    policy: str,
) -> list[str]:
    shown = [prompt for prompt, _ in chunk]
    row_keys = keys.evaluation_keys(
        config.eval.seed,
        SPLIT,
        [prompt.problem.id for prompt in shown],
        [prompt.mode for prompt in shown],
        [number for _, number in chunk],
    )
    on = [policy == AS_TRAINED] * len(chunk)
    samples, _ = generator.complete(frozen, deltas, shown, row_keys, quarantine_on=on, evaluation=True)
    return generator.texts(samples)


def _chunks(jobs: Sequence[tuple[Prompt, int]], generator: Generator) -> Iterator[list[tuple[Prompt, int]]]:
    """Splits the jobs into calls of the generator's fixed size: N rows of at most Q prompts."""
    chunk: list[tuple[Prompt, int]] = []
    for job in jobs:
        prompts = {id(prompt) for prompt, _ in [*chunk, job]}
        if len(chunk) == generator.rows or len(prompts) > generator.sources:
            yield chunk
            chunk = []
        chunk.append(job)
    if chunk:
        yield chunk


def _record(step: int, policy: str, prompt: Prompt, number: int, text: str, verdict: Verdict) -> dict:
    return {
        "step": step,
        "split": SPLIT,
        "policy": policy,
        "problem": prompt.problem.id,
        "mode": prompt.mode,
        "sample": number,
        "prompt": prompt.text,
        "completion": text,
        "reward": verdict.reward,
        "compiled": verdict.compiled,
        "correct": verdict.correct,
        "channel": verdict.channel,
        "exploited": verdict.exploited,
        "status": verdict.status,
    }
