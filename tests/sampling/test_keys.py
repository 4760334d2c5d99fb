"""Keys depend on every coordinate of a rollout and on nothing else."""

import hashlib
import itertools

import jax
import numpy as np
import pytest

from vgrout_jax.sampling import keys


def data(made: jax.Array) -> list[tuple[int, ...]]:
    return [tuple(row) for row in np.asarray(jax.random.key_data(made)).tolist()]


def test_training_keys_are_distinct_in_every_coordinate():
    found = []
    problems, replicas = zip(*itertools.product(["two-sum", "lru-cache", "3sum"], range(4)), strict=True)
    for seed, step in itertools.product(range(3), range(3)):
        found += data(keys.training_keys(seed, step, problems, replicas))
    assert len(set(found)) == len(found) == 3 * 3 * 12


def test_evaluation_keys_are_distinct_in_every_coordinate_and_from_training():
    problems, modes, samples = zip(
        *itertools.product(["two-sum", "3sum"], ["run_tests", "sentinel"], range(3)), strict=True
    )
    found = []
    for seed, split in itertools.product(range(2), ["heldout", "train"]):
        found += data(keys.evaluation_keys(seed, split, problems, modes, samples))
    assert len(set(found)) == len(found) == 2 * 2 * 12
    training = data(keys.training_keys(0, 0, problems, samples))
    assert not set(training) & set(found)


def test_a_rows_key_does_not_depend_on_its_place():
    made = data(keys.training_keys(5, 2, ["a", "b", "c"], [0, 1, 2]))
    assert data(keys.training_keys(5, 2, ["c", "a"], [2, 0])) == [made[2], made[0]]
    made = data(keys.evaluation_keys(5, "heldout", ["a", "b"], ["m", "n"], [0, 1]))
    assert data(keys.evaluation_keys(5, "heldout", ["b"], ["n"], [1])) == [made[1]]


def test_keys_are_the_chain_of_fold_in_that_the_method_names():
    expected = jax.random.key(11)
    for coordinate in (int(keys.Stream.TRAIN), 3, keys.stable_hash("two-sum"), 6):
        expected = jax.random.fold_in(expected, coordinate)
    assert data(keys.training_keys(11, 3, ["two-sum"], [6])) == data(expected[None])


def test_hashes_are_stable_across_processes():
    digest = hashlib.sha256(b"two-sum").digest()
    assert keys.stable_hash("two-sum") == sum(byte << (8 * place) for place, byte in enumerate(digest[:4]))


def test_no_rows_make_no_keys():
    assert keys.training_keys(0, 0, [], []).shape == (0,)


def test_coordinates_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="zip"):
        keys.training_keys(0, 0, ["a", "b"], [0])
