"""Contrastive pairs: selecting them and laying them out as token arrays (docs/method.md section 5).

The file format stands in `pair_file.py`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Optional, Protocol, runtime_checkable

import numpy as np

from vgrout_jax.common.packaged import packaged
from vgrout_jax.routing.pair_file import SIDES, Pair, read_pair_file, section_slug

BUILTIN = "builtin:pairs"
BUILTIN_FILES = {BUILTIN: packaged("pairs.md"), "builtin:toy_pairs": packaged("toy_pairs.md")}


@runtime_checkable
class PairTokenizer(Protocol):
    """What the encoding needs of a tokenizer; `vgrout_jax.common.tokenizer.ChatTokenizer` has it."""

    eos_ids: tuple[int, ...]
    pad_id: int

    def encode(self, text: str) -> list[int]: ...

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]: ...


@dataclasses.dataclass(frozen=True)
class PairBatch:
    """P pairs as 2P padded sequences: row p is pair p's hack side, row P + p its clean side.

    Attributes:
      tokens: [2P, S] int32, S = B + T: prompt left-padded to B, completion with its end-of-sequence token
        right-padded to T.
      valid: [2P, S] bool, False on padding of either side.
      completion_mask: [2P, T] bool, the completion up to and including its end-of-sequence token.
      names: the P names, in row order.
    """

    tokens: np.ndarray
    valid: np.ndarray
    completion_mask: np.ndarray
    names: tuple[str, ...]


def load_pairs(source: str, tags: Sequence[str]) -> list[Pair]:
    """The pairs of `source` that carry any of `tags`, in the file's order.

    Args:
      source: a Markdown file, `builtin:pairs` or `builtin:toy_pairs`; with `#section` behind it, one second-level
        section alone.
      tags: a pair is used if it carries any of them; empty: all pairs.

    Returns:
      At least one pair.

    Raises:
      ValueError: there is no such file or section; a pair is malformed (the message names file, line and
        pair); two pairs share a name; no pair carries any of the tags.
    """
    address, _, section = source.partition("#")
    path = BUILTIN_FILES.get(address, Path(address))
    if not path.is_file():
        known = ", ".join(BUILTIN_FILES)
        raise ValueError(f"direction.pairs must be a Markdown file or one of {known}, got {source}: no file {path}")
    entries = read_pair_file(path)
    pairs = [pair for slug, pair in entries if not section or slug == section_slug(section)]
    if not pairs:
        known = sorted({slug for slug, _ in entries})
        raise ValueError(f"direction.pairs: {source} holds no pairs; {path} has pairs in sections {known}")
    selected = [pair for pair in pairs if not tags or set(tags) & set(pair.tags)]
    if not selected:
        known = sorted({tag for pair in pairs for tag in pair.tags})
        raise ValueError(f"direction.tags: no pair of {source} carries any of {list(tags)}; its tags are {known}")
    return selected


def pairs_sha256(pairs: Sequence[Pair]) -> str:
    """The SHA-256 of what extraction reads: prompts and completions in order, without names and tags."""
    content = [[pair.hack_prompt, pair.hack, pair.clean_prompt, pair.clean] for pair in pairs]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def encode_pairs(
    pairs: Sequence[Pair],
    tokenizer: PairTokenizer,
    *,
    max_prompt: int,
    max_pair_tokens: Optional[int] = None,
    multiple: int = 8,
) -> PairBatch:
    """The pairs as token arrays in the layout of docs/architecture.md.

    A completion ends with the tokenizer's first end-of-sequence id, as a rollout does. Prompt and completion
    are encoded apart, so that the border between them is a token border in both sides of a pair.

    Args:
      pairs: P pairs.
      tokenizer: encodes chat messages, and raw text with the special tokens that it spells out.
      max_prompt: most tokens of a prompt (`data.max_prompt_tokens`).
      max_pair_tokens: most tokens of one side, prompt and completion together; None: no such limit.
      multiple: the longest prompt and the longest completion are rounded up to it, giving B and T.

    Returns:
      A `PairBatch` of NumPy arrays with 2P rows.

    Raises:
      ValueError: no pairs, a side beyond a limit, or a completion that spells out an end-of-sequence token.
    """
    if not pairs:
        raise ValueError("encode_pairs needs at least one pair, got none")
    prompts, completions = [], []
    for side in SIDES:
        for pair in pairs:
            prompt, completion = _encode_side(pair, side, tokenizer)
            where = f"pair {pair.name}, {side} side"
            _check_lengths(where, len(prompt), len(completion), max_prompt=max_prompt, max_total=max_pair_tokens)
            prompts.append(prompt)
            completions.append(completion)
    return _pad_rows(prompts, completions, tokenizer.pad_id, multiple, tuple(pair.name for pair in pairs))


def _encode_side(pair: Pair, side: str, tokenizer: PairTokenizer) -> tuple[list[int], list[int]]:
    prompt, text = getattr(pair, f"{side}_prompt"), getattr(pair, side)
    prompt_ids = tokenizer.encode(prompt) if isinstance(prompt, str) else tokenizer.encode_chat(prompt)
    completion_ids = tokenizer.encode(text)
    if set(completion_ids) & set(tokenizer.eos_ids):
        raise ValueError(
            f"pair {pair.name}, {side} side: the completion spells out an end-of-sequence token; "
            f"remove it, the encoding appends one"
        )
    return prompt_ids, [*completion_ids, tokenizer.eos_ids[0]]


def _check_lengths(where: str, prompt: int, completion: int, *, max_prompt: int, max_total: Optional[int]) -> None:
    if not 0 < prompt <= max_prompt:
        raise ValueError(
            f"{where}: its prompt must have 1 to {max_prompt} tokens (data.max_prompt_tokens), got {prompt}"
        )
    if max_total is not None and prompt + completion > max_total:
        raise ValueError(
            f"{where}: prompt and completion must have at most {max_total} tokens together, "
            f"got {prompt + completion}; shorten it or select other pairs with direction.tags"
        )


def _pad_rows(
    prompts: list[list[int]], completions: list[list[int]], pad_id: int, multiple: int, names: tuple[str, ...]
) -> PairBatch:
    bucket = _round_up(max(map(len, prompts)), multiple)
    length = _round_up(max(map(len, completions)), multiple)
    tokens = np.full((len(prompts), bucket + length), pad_id, np.int32)
    valid = np.zeros(tokens.shape, bool)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        window = slice(bucket - len(prompt), bucket + len(completion))
        tokens[row, window] = prompt + completion
        valid[row, window] = True
    return PairBatch(tokens=tokens, valid=valid, completion_mask=valid[:, bucket:].copy(), names=names)


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
