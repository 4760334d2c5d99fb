"""Keys of the sampler: a rollout's key is made of what it is a rollout of, never of its place in a batch.

Token t of a rollout is drawn with fold_in(its key, t), so that a run repeats, arms are paired, and one row's
tokens depend on no other row.

Reference: docs/method.md sections 13 and 15.
"""

import enum
import hashlib
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, UInt32


class Stream(enum.IntEnum):
    """Uses of a seed that must not share their randomness."""

    TRAIN = 0
    EVAL = 1
    LABELS = 2


def stable_hash(text: str) -> int:
    """The first 32 bits of SHA-256: the same number for a name in every process and version."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def row_keys(seed: int, coordinates: UInt32[np.ndarray, "N C"]) -> jax.Array:
    """[N] PRNG keys, each by fold_in of its row's coordinates, one after the other, into key(seed)."""
    return _fold_rows(jax.random.key(seed), coordinates)


@jax.jit
def _fold_rows(root: jax.Array, coordinates: UInt32[Array, "N C"]) -> jax.Array:
    def fold(row: Array) -> jax.Array:
        key = root
        for index in range(coordinates.shape[1]):
            key = jax.random.fold_in(key, row[index])
        return key

    return jax.vmap(fold)(coordinates)


def training_keys(seed: int, step: int, problems: Sequence[str], replicas: Sequence[int]) -> jax.Array:
    """[N] keys of a step's rollouts, from (seed, stream, step, problem, replica): docs/method.md section 15.

    Args:
        seed: `seed`.
        step: of the optimiser.
        problems: each row's problem id.
        replicas: each row's number among the step's rollouts of that problem.
    """
    rows = [
        (Stream.TRAIN, step, stable_hash(problem), replica)
        for problem, replica in zip(problems, replicas, strict=True)
    ]
    return row_keys(seed, np.array(rows, np.uint32).reshape(-1, 4))


def evaluation_keys(
    seed: int, split: str, problems: Sequence[str], modes: Sequence[str], samples: Sequence[int]
) -> jax.Array:
    """[N] keys from (eval seed, split, problem, mode, sample), not from step or arm, so that arms are paired.

    Args:
        seed: `eval.seed`.
        split: name of the evaluated split.
        problems: each row's problem id.
        modes: each row's mode.
        samples: each row's number among the completions of its problem and mode.

    Reference: docs/method.md section 13.
    """
    rows = [
        (Stream.EVAL, stable_hash(split), stable_hash(problem), stable_hash(mode), sample)
        for problem, mode, sample in zip(problems, modes, samples, strict=True)
    ]
    return row_keys(seed, np.array(rows, np.uint32).reshape(-1, 5))


def label_key(seed: int, step: int) -> jax.Array:
    """The step's key of the placebo that permutes labels, from (seed, stream, step)."""
    return row_keys(seed, np.array([[Stream.LABELS, step]], np.uint32))[0]
