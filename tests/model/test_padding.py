"""The lengths that prompts and completions are padded to."""

import numpy as np
import pytest

from vgrout_jax.model import padding


def test_prompts_go_to_the_smallest_bucket_that_holds_them():
    assert [padding.prompt_bucket(length, (64, 16, 32)) for length in (1, 16, 17, 64)] == [16, 16, 32, 64]
    with pytest.raises(ValueError, match=r"data\.prompt_buckets.*65 tokens.*\(16, 64\).*max_prompt_tokens"):
        padding.prompt_bucket(65, (16, 64))


def test_prompts_are_padded_on_the_left():
    tokens, valid = padding.pad_prompts([[4, 5], [6, 7, 8]], 4, 9)
    np.testing.assert_array_equal(tokens, [[9, 9, 4, 5], [9, 6, 7, 8]])
    np.testing.assert_array_equal(valid, [[False, False, True, True], [False, True, True, True]])
    assert tokens.dtype == np.int32
    for prompt in ([], [1, 2, 3, 4, 5]):
        with pytest.raises(ValueError, match=rf"data\.prompt_buckets: prompt 1 .* got {len(prompt)};"):
            padding.pad_prompts([[1], prompt], 4, 9)


@pytest.mark.parametrize(
    ("most", "lengths"),
    [(1, [1]), (32, [32]), (128, [128]), (129, [128, 129]), (200, [128, 200]), (512, [128, 256, 512])]
    + [(1000, [250, 500, 1000]), (1023, [256, 512, 1023]), (1536, [384, 768, 1536])],
)
def test_completion_lengths_are_few_rise_and_end_with_the_limit(most, lengths):
    assert padding.completion_lengths(most) == lengths
