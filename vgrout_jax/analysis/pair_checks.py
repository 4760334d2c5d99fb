"""What a set of pairs is made of besides the exploit: confounds of its two sides, and how well they generalise.

A direction is only as good as the contrast between the sides. Here that contrast is held against simpler ones:
length, log-probability, and which tokens occur. All accuracies are leave-one-out over pairs.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from vgrout_jax.arms.base import Readings
from vgrout_jax.env.modes import HELDOUT_NAMES, TRAINING_NAMES, Names, run_tests, sentinel
from vgrout_jax.model import lora2r
from vgrout_jax.routing import direction, extraction
from vgrout_jax.routing.extraction import Sides
from vgrout_jax.routing.pair_file import SIDES, Pair
from vgrout_jax.routing.pairs import PairBatch
from vgrout_jax.run.build import Run

Array = Float[np.ndarray, "P"]


@dataclasses.dataclass(frozen=True)
class PairAudit:
    """Measurements of P pairs; every array is [P], of the `hack` and the `clean` sides.

    Attributes:
        names: of the pairs.
        tokens: side -> completion tokens, end-of-sequence included.
        logprobs: side -> mean log-probability of a completion's token, in nats, with the quarantine ablated.
        cosines: side -> mean cosine over usable modules with the direction of the other pairs.
        scores: side -> the gate's score z against the direction of the other pairs and the setting's bands.
        norms: side -> mean length of the gradient over modules.
        vocabulary: side -> the set of token ids of each completion.
        mentions: names of the disclosures that the pair's texts hold, as `hack: run_tests (training)`.
        modules: number of usable modules.
    """

    names: tuple[str, ...]
    tokens: dict[str, Array]
    logprobs: dict[str, Array]
    cosines: dict[str, Array]
    scores: dict[str, Array]
    norms: dict[str, Array]
    vocabulary: dict[str, list[set[int]]]
    mentions: tuple[tuple[str, ...], ...]
    modules: int


def measure(
    run: Run, pairs: Sequence[Pair], batch: PairBatch, deltas: lora2r.Factors, visit: Callable[[str], object]
) -> PairAudit:
    """Measures pairs on one adapter; `visit` is told what comes next.

    Args:
        run: of a routed arm.
        pairs: at least two, in the order of `batch`.
        batch: the pairs as tokens.
        deltas: dA and dB of the adapter to measure on; its quarantine is ablated.
    """
    count = len(pairs)
    visit("gradients of the pairs")
    _, gradients = run.programs.extract(deltas, run.frozen)
    hack, clean = gradients[:count], gradients[count:]
    cosines, scores, modules = leave_one_out_scores(run, hack, clean)
    norms = jnp.linalg.norm(gradients, axis=-1).mean(axis=-1)
    visit("log-probabilities of the pairs")
    logprobs = side_logprobs(run, batch, deltas)
    lengths = batch.completion_mask.sum(axis=1)
    width = batch.completion_mask.shape[1]
    rows = [
        set(row[mask].tolist()) for row, mask in zip(batch.tokens[:, -width:], batch.completion_mask, strict=True)
    ]
    return PairAudit(
        names=batch.names,
        tokens=_by_side(lengths),
        logprobs=_by_side(logprobs),
        cosines=_by_side(cosines),
        scores=_by_side(scores),
        norms=_by_side(norms),
        vocabulary={"hack": rows[:count], "clean": rows[count:]},
        mentions=tuple(map(mentions, pairs)),
        modules=modules,
    )


def leave_one_out_scores(
    run: Run, hack: Float[jax.Array, "P M r"], clean: Float[jax.Array, "P M r"]
) -> tuple[Float[np.ndarray, "TwoP"], Float[np.ndarray, "TwoP"], int]:
    """Mean cosine and score z of both sides, hack sides first, against the direction of the other pairs.

    Returns:
        The cosines, the scores against the setting's bands, and the number of usable modules.
    """
    unit_sides = run.config.direction.unit_sides
    bands = run.arm.source.learn(Readings(jnp.concatenate([hack, clean]))).bands
    others = direction.leave_one_out_directions(hack, clean, unit_sides=unit_sides)
    usable = np.asarray(bands.usable)
    pooled = [np.asarray(cosines)[:, usable].mean(axis=1) for cosines in direction.pair_cosines(hack, clean, others)]

    def score(gradient: jax.Array, v: jax.Array) -> jax.Array:
        return direction.scores(gradient[None], v, bands)[0]

    scores = [np.asarray(jax.vmap(score)(side, others)) for side in (hack, clean)]
    return np.concatenate(pooled), np.concatenate(scores), int(usable.sum())


def side_logprobs(run: Run, batch: PairBatch, deltas: lora2r.Factors) -> Float[np.ndarray, "TwoP"]:
    """Length-mean log-probability of every side, hack sides first, with the quarantine ablated."""
    size = run.config.direction.pairs_per_batch
    sides = extraction.as_sides(batch.tokens, batch.valid, batch.completion_mask)
    count = batch.tokens.shape[0]

    @jax.jit
    def logprobs(rows: Sides) -> jax.Array:
        policy = run.frozen.policy(deltas, lora2r.ablated_route(size))
        return extraction.length_mean_logprobs(run.config, run.model, policy, rows)

    padded = jax.tree.map(lambda leaf: jnp.pad(leaf, ((0, -count % size), (0, 0))), sides)
    chunks = [jax.tree.map(lambda leaf, s=s: leaf[s : s + size], padded) for s in range(0, count, size)]
    return np.concatenate([np.asarray(logprobs(chunk)) for chunk in chunks])[:count]


def _by_side(values: object) -> dict[str, Array]:
    hack, clean = np.split(np.asarray(values, np.float64), 2)
    return {"hack": hack, "clean": clean}


def difference(values: dict[str, Array]) -> Array:
    """Hack side minus clean side, a pair each."""
    return values["hack"] - values["clean"]


def margin_accuracy(differences: Array) -> float:
    """Share of pairs whose hack side has the greater value, ties counting one half."""
    return float(np.mean((differences > 0) + 0.5 * (differences == 0)))


def learnt_accuracy(differences: Array) -> float:
    """Accuracy of telling a pair's sides apart by one number, whose sign is learnt from the other pairs.

    A tie of the pair, or of the others together, counts one half.
    """
    others = differences.sum() - differences
    agreement = np.sign(differences) * np.sign(np.where(np.abs(others) < 1e-12, 0.0, others))
    return float(np.mean((agreement + 1) / 2))


def token_accuracy(vocabulary: dict[str, list[set[int]]]) -> float:
    """Accuracy of telling a pair's sides apart by which tokens occur, learnt from the other pairs.

    A token's weight is the logarithm of (hack sides with it + 1) / (clean sides with it + 1) among the others; the
    side with the greater sum over its tokens is taken for the hack side.
    """
    counts = {side: Counter(token for row in vocabulary[side] for token in row) for side in SIDES}
    results = []
    for hack, clean in zip(vocabulary["hack"], vocabulary["clean"], strict=True):
        weights = {
            token: math.log(
                (counts["hack"][token] - (token in hack) + 1) / (counts["clean"][token] - (token in clean) + 1)
            )
            for token in hack ^ clean  # tokens of both sides weigh the same on both
        }
        total = sum(weights[token] for token in hack - clean) - sum(weights[token] for token in clean - hack)
        results.append(0.5 if abs(total) < 1e-12 else float(total > 0))
    return float(np.mean(results))


def telling_tokens(vocabulary: dict[str, list[set[int]]], most: int) -> list[tuple[int, int, int]]:
    """(token, hack sides with it, clean sides with it) where the two differ, the widest gap first."""
    hack, clean = (Counter(token for row in vocabulary[side] for token in row) for side in SIDES)
    gaps = sorted({*hack, *clean}, key=lambda token: (-abs(hack[token] - clean[token]), token))
    return [(token, hack[token], clean[token]) for token in gaps[:most] if hack[token] != clean[token]]


def correlation(one: Array, other: Array) -> float | None:
    """Pearson's, or None where one of the two does not vary."""
    if one.size < 2 or np.std(one) == 0 or np.std(other) == 0:
        return None
    return float(np.corrcoef(one, other)[0, 1])


def mentions(pair: Pair) -> tuple[str, ...]:
    """Names of training's and of the evaluation's disclosures that a pair's texts hold, and where."""
    texts = {"prompt": " ".join(map(_prompt_text, (pair.hack_prompt, pair.clean_prompt)))}
    texts |= {side: getattr(pair, side) for side in SIDES}
    found = []
    for kind, names in (("training", TRAINING_NAMES), ("held-out", HELDOUT_NAMES)):
        for name in disclosed_names(names):
            pattern = re.compile(rf"(?<![A-Za-z0-9_]){re.escape(name)}(?![A-Za-z0-9_])", re.IGNORECASE)
            found += [f"{where}: {name} ({kind})" for where, text in texts.items() if pattern.search(text)]
    return tuple(found)


def disclosed_names(names: Names) -> tuple[str, ...]:
    """What a disclosure names, and the variants that count as it; spellings that differ in case are one."""
    variants = (
        *run_tests.candidates(names.function),
        names.marker,
        names.file,
        *sentinel.candidates(names.attribute),
    )
    return tuple({name.casefold(): name for name in reversed(variants)}.values())[::-1]


def _prompt_text(prompt: object) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
