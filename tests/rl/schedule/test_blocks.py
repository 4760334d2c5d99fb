"""How completions are fitted into chunks."""

import jax.numpy as jnp
import numpy as np
import pytest

from vgrout_jax.rl.schedule import blocks


def fitted(lengths, **sizes):
    return np.asarray(blocks.fit(jnp.array(lengths), **sizes)).tolist()


def test_the_longest_come_first_each_in_the_first_chunk_with_room():
    # 7 and 3 fill a chunk of 10; 6 and 4 the next; 2 opens a third
    assert fitted([3, 6, 0, 7, 4, 2], positions=10, slots=3, chunks=4) == [[3, 0, 6], [1, 4, 6], [5, 6, 6], [6, 6, 6]]


def test_a_chunk_has_no_more_sequences_than_slots():
    assert fitted([1, 1, 1], positions=10, slots=2, chunks=2) == [[0, 1], [2, 3]]


@pytest.mark.parametrize("seed", range(5))
def test_every_sequence_stands_somewhere_once_and_no_chunk_is_over_full(seed):
    generator = np.random.default_rng(seed)
    longest, positions, slots = 30, 70, 5
    lengths = np.minimum(generator.geometric(0.08, 40), longest) * (generator.random(40) > 0.2)
    if seed == 0:
        lengths[:] = longest  # the most chunks that any lengths need
    chunks = -(-40 // min(positions // longest, slots))
    found = blocks.fit(jnp.asarray(lengths), positions=positions, slots=slots, chunks=chunks)
    placed = np.asarray(found)[np.asarray(found) < 40]
    assert sorted(placed) == np.flatnonzero(lengths).tolist()
    padded = np.append(lengths, 0)[np.asarray(found)]
    assert (padded.sum(axis=1) <= positions).all()
    assert (np.diff((padded > 0).astype(int), axis=1) <= 0).all()  # no gap before a sequence
