"""The few shapes that prompts and completions are padded to: every shape is a program to compile."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

_SHORTEST = 128  # tokens; the program of a shorter length does not earn its compilation back


def completion_lengths(max_new_tokens: int) -> list[int]:
    """A quarter of T, half of it and T, or fewer where these are short: what completions are padded to.

    Most completions end long before T, and both decoding and the update cost what the padded length does.
    """
    lengths = [max(-(-max_new_tokens // 4), _SHORTEST)]
    while lengths[-1] < max_new_tokens:
        lengths.append(2 * lengths[-1])
    return [*lengths[:-1], max_new_tokens]


def prompt_bucket(length: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds a prompt of `length` tokens.

    Raises:
        ValueError: if none does.
    """
    fitting = [bucket for bucket in buckets if bucket >= length]
    if not fitting:
        raise ValueError(
            f"data.prompt_buckets must hold a bucket of at least the prompt's {length} tokens, got "
            f"{tuple(buckets)}; raise data.max_prompt_tokens and add a bucket, or drop the problem"
        )
    return min(fitting)


def pad_prompts(
    prompts: Sequence[Sequence[int]], bucket: int, pad_id: int
) -> tuple[Int[np.ndarray, "Q B"], Bool[np.ndarray, "Q B"]]:
    """Token ids left-padded to `bucket`, int32, and where they are valid.

    Raises:
        ValueError: if a prompt is empty or longer than the bucket.
    """
    tokens = np.full((len(prompts), bucket), pad_id, np.int32)
    valid = np.zeros((len(prompts), bucket), bool)
    for index, prompt in enumerate(prompts):
        if not 1 <= len(prompt) <= bucket:
            raise ValueError(
                f"data.prompt_buckets: prompt {index} must have 1 to {bucket} tokens, its bucket's size, got "
                f"{len(prompt)}; choose the bucket by the longest prompt (at most data.max_prompt_tokens)"
            )
        tokens[index, -len(prompt) :] = prompt
        valid[index, -len(prompt) :] = True
    return tokens, valid
