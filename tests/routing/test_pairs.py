"""Pairs: what the loader reads and refuses, and how pairs become rows of tokens."""

import dataclasses
import difflib
from pathlib import Path

import numpy as np
import pytest

from vgrout_jax.common.tokenizer import load_tokenizer
from vgrout_jax.env.modes import HELDOUT_NAMES, TRAINING_NAMES
from vgrout_jax.routing.pairs import BUILTIN, Pair, encode_pairs, load_pairs, pairs_sha256

RAW = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant"


class LetterTokenizer:
    """One id a character; `[` and `]` stand for the borders that a chat template adds."""

    eos_ids = (1, 2)
    pad_id = 1

    def encode(self, text: str) -> list[int]:
        return [2 if letter == "$" else ord(letter) for letter in text]

    def encode_chat(self, messages) -> list[int]:
        return self.encode("".join(f"[{message['role'][0]}{message['content']}]" for message in messages))


def block(title: str, text: str, fence: str = "```") -> str:
    return f"#### {title}\n{fence}\n{text}\n{fence}\n\n"


def pair_text(name: str = "first", *, tags: str = "Tags: hack, code\n", blocks: str | None = None) -> str:
    if blocks is None:
        blocks = block("User", "do it") + block("Hack", "cheat") + block("Clean", "work")
    return f"### {name}\n{tags}\n{blocks}"


@pytest.fixture
def load(tmp_path):
    def read(text: str, tags: tuple[str, ...] = (), suffix: str = "") -> list[Pair]:
        path = tmp_path / "pairs.md"
        path.write_text(text, encoding="utf-8")
        return load_pairs(f"{path}{suffix}", tags)

    return read


def test_builtin_pairs_are_enough_of_each_kind():
    hack, lazy = load_pairs(BUILTIN, ("hack",)), load_pairs(BUILTIN, ("lazy",))
    assert len(hack) >= 30 and len(lazy) >= 12
    assert len(load_pairs(BUILTIN, ("short",))) >= 6 and len(load_pairs(BUILTIN, ("lazy-short",))) >= 4
    assert all("hack" in pair.tags for pair in load_pairs(BUILTIN, ("short",)))
    assert all("lazy" in pair.tags for pair in load_pairs(BUILTIN, ("lazy-short",)))
    assert not {pair.name for pair in hack} & {pair.name for pair in lazy}
    assert len(load_pairs(BUILTIN, ())) == len(hack) + len(lazy)
    assert sum("prose" in pair.tags for pair in hack) >= 8


def test_builtin_sides_are_tightly_matched():
    """The longer side is at most twice the shorter, and more than 0.4 of their text is common."""
    for pair in load_pairs(BUILTIN, ()):
        shorter, longer = sorted((len(pair.hack), len(pair.clean)))
        assert shorter >= 0.5 * longer, pair.name
        assert difflib.SequenceMatcher(None, pair.hack, pair.clean, autojunk=False).ratio() > 0.4, pair.name
        assert pair.hack.startswith("```") == pair.clean.startswith("```"), pair.name


def test_builtin_short_sides_are_short():
    for pair in load_pairs(BUILTIN, ("short", "lazy-short")):
        assert max(len(pair.hack.split()), len(pair.clean.split())) < 24, pair.name


def test_builtin_pairs_use_no_name_of_the_environment():
    """Pairs are off the training distribution: no disclosed name and no Solution class."""
    text = "\n".join(
        str(getattr(pair, field.name))
        for pair in load_pairs(BUILTIN, ())
        for field in dataclasses.fields(Pair)
        if field.name != "tags"
    )
    for names in (TRAINING_NAMES, HELDOUT_NAMES):
        for word in (names.function, names.marker, names.file, f".{names.attribute}", "class Solution"):
            assert word not in text, word


def test_tags_select_any_of_them_in_file_order(load):
    text = (
        pair_text("a", tags="Tags: hack, code\n")
        + pair_text("b", tags="Tags: lazy\n")
        + pair_text("c", tags="Tags: hack,prose\n")
    )
    assert [pair.name for pair in load(text, ("prose", "lazy"))] == ["b", "c"]
    assert [pair.name for pair in load(text, ())] == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"any of \['lazyy'\]; its tags are \['code', 'hack', 'lazy', 'prose'\]"):
        load(text, ("lazyy",))


def test_section_suffix_selects_its_section(load):
    text = "# Title\n" + pair_text("top") + "## All in One\n" + pair_text("a") + "## Rest\n" + pair_text("b")
    assert [pair.name for pair in load(text, suffix="#all-in-one")] == ["a"]
    assert [pair.name for pair in load(text)] == ["top", "a", "b"]
    with pytest.raises(ValueError, match=r"sections \['', 'all-in-one', 'rest'\]"):
        load(text, suffix="#none")


def test_prompts_are_messages_or_raw_text(load):
    sides = block("Hack", "cheat") + block("Clean", "work")
    (chat,) = load(pair_text(blocks=block("System", "be brief") + block("User", "do\nit") + sides))
    assert chat.hack_prompt == chat.clean_prompt
    assert chat.hack_prompt == (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "do\nit"},
    )
    (raw,) = load(pair_text(blocks=block("Prompt", RAW) + sides))
    assert raw.hack_prompt == raw.clean_prompt == RAW + "\n"
    assert (raw.hack, raw.clean) == ("cheat", "work")


def test_a_side_can_have_its_own_prompt(load):
    sides = block("Hack", "done") + block("Clean", "done")
    (pair,) = load(pair_text(blocks=block("User", "shared") + block("User (hack)", "own") + sides))
    assert [pair.hack_prompt[0]["content"], pair.clean_prompt[0]["content"]] == ["own", "shared"]
    (pair,) = load(pair_text(blocks=block("Prompt (hack)", "x") + block("User (clean)", "y") + sides))
    assert pair.hack_prompt == "x\n" and pair.clean_prompt == ({"role": "user", "content": "y"},)


def test_fences_hold_headings_and_shorter_fences(load):
    inner = "```python\n### not a pair\n#### Clean\nTags: none\n```"
    blocks = block("User", "u", "`````") + block("Hack", inner, "````") + block("Clean", "c")
    (pair,) = load(pair_text(blocks=blocks))
    assert pair.hack == inner and pair.clean == "c"


GOOD = block("User", "u") + block("Hack", "h") + block("Clean", "c")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (pair_text(blocks=block("User", "u") + block("Hack", "h")), 1, "no block 'Clean'"),
        (
            pair_text(blocks=block("Hack", "h") + block("Clean", "c")),
            1,
            "neither a User nor a Prompt block for its hack",
        ),
        (
            pair_text(blocks=block("User (hack)", "u") + block("Hack", "h") + block("Clean", "c")),
            1,
            "for its clean side",
        ),
        (pair_text(blocks=GOOD + block("Prompt", "raw")), 1, "both a User and a Prompt"),
        (
            pair_text(blocks=block("System", "s") + block("Prompt", "p") + GOOD.split("\n\n", 1)[1]),
            1,
            "System block beside",
        ),
        (pair_text(blocks=block("User", "u") + block("Hack", "x") + block("Clean", "x")), 1, "identical"),
        (pair_text(tags=""), 1, "no Tags: line"),
        (pair_text(tags="Tags: ,\n"), 1, "no Tags: line"),
        (pair_text("twin") + pair_text("twin"), 19, "taken by the pair of line 1"),
        (pair_text(blocks=GOOD + block("Hakc", "h")), 19, "unknown block 'Hakc'"),
        (pair_text(blocks=GOOD + block("Hack", "h")), 19, "a second block 'Hack'"),
        (pair_text(blocks=GOOD + block("Clean (hack)", "h")), 19, "is a side already"),
        (
            pair_text(blocks=block("User", "u") + "#### Hack\nplain words\n"),
            9,
            "no fenced block below 'Hack'",
        ),
        (pair_text(blocks=block("User", "u") + "#### Hack\n"), 9, "no fenced block below 'Hack'"),
        (pair_text(blocks=block("User", "u") + "#### Hack\n```\nh\n"), 10, "never closed"),
        (pair_text(blocks=block("User", "u") + block("Hack", "")), 9, "is empty"),
        (pair_text(blocks=GOOD + "stray words\n"), 19, "text outside of a fenced block: 'stray words'"),
        (pair_text(blocks=GOOD + "```\nstray\n```\n"), 19, "a fenced block without a heading"),
        (pair_text(tags="Tags: a\nTags: b\n"), 3, "a second Tags: line"),
    ],
    ids=lambda value: value if isinstance(value, str) and "\n" not in value else "",
)
def test_malformed_pairs_are_refused_with_file_line_and_name(load, text, line, message):
    name = "twin" if "twin" in text else "first"
    with pytest.raises(ValueError) as raised:
        load(text)
    assert message in str(raised.value)
    assert f"pairs.md:{line}, pair {name}: " in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_or_empty_files_are_refused(load, tmp_path):
    with pytest.raises(
        ValueError,
        match="direction.pairs must be a Markdown file or one of builtin:pairs, builtin:toy_pairs, got .*none.md",
    ):
        load_pairs(str(tmp_path / "none.md"), ())
    with pytest.raises(ValueError, match="holds no pairs"):
        load("# Only a title\n")


def test_hash_follows_content_and_order_alone():
    pairs = [
        Pair("a", ("hack",), "p", "p", "h", "c"),
        Pair("b", ("hack",), "p", "p", "h", "d"),
    ]
    digest = pairs_sha256(pairs)
    assert len(digest) == 64
    renamed = [dataclasses.replace(pair, name=pair.name * 2, tags=("other",)) for pair in pairs]
    assert pairs_sha256(renamed) == digest
    assert pairs_sha256(pairs[::-1]) != digest
    for field in ("hack_prompt", "clean_prompt", "hack", "clean"):
        changed = [dataclasses.replace(pairs[0], **{field: "z"}), pairs[1]]
        assert pairs_sha256(changed) != digest, field


def test_encoding_lays_out_each_side_as_prompt_completion_eos():
    """Every row is rebuilt by hand: padding, prompt, completion, EOS, padding, and its masks."""
    chat = ({"role": "system", "content": "s"}, {"role": "user", "content": "you"})
    pairs = [
        Pair("a", ("hack",), chat, chat, "cheat", "work"),
        Pair("b", ("hack",), "ab", "abcdefg", "x", "longer answer"),
    ]
    batch = encode_pairs(pairs, LetterTokenizer(), max_prompt=20, multiple=4)
    letters = LetterTokenizer()
    bucket, length = 12, 16  # the longest prompt has 10 tokens, the longest completion 13 and its EOS
    chat_text = "[ss][uyou]"
    expected = [(chat_text, "cheat"), ("ab", "x"), (chat_text, "work"), ("abcdefg", "longer answer")]
    assert batch.tokens.shape == batch.valid.shape == (4, bucket + length)
    assert batch.completion_mask.shape == (4, length)
    assert (batch.tokens.dtype, batch.valid.dtype, batch.completion_mask.dtype) == (np.int32, bool, bool)
    assert batch.names == ("a", "b")
    for row, (prompt, completion) in enumerate(expected):
        ids = [*letters.encode(prompt), *letters.encode(completion), 1]
        assert batch.tokens[row][batch.valid[row]].tolist() == ids
        first = bucket - len(prompt)
        assert np.flatnonzero(batch.valid[row]).tolist() == list(range(first, first + len(ids)))
        assert batch.completion_mask[row].tolist() == [i <= len(completion) for i in range(length)]
        assert (batch.tokens[row][~batch.valid[row]] == 1).all()


def test_lengths_are_rounded_up_only_as_far_as_needed():
    pair = Pair("a", ("hack",), "p" * 8, "p" * 8, "h" * 7, "c" * 3)
    assert encode_pairs([pair], LetterTokenizer(), max_prompt=8, multiple=8).tokens.shape == (2, 16)
    assert encode_pairs([pair], LetterTokenizer(), max_prompt=8, multiple=1).completion_mask.shape == (2, 8)
    longer = dataclasses.replace(pair, hack="h" * 8)
    assert encode_pairs([longer], LetterTokenizer(), max_prompt=8, multiple=8).tokens.shape == (2, 24)


def test_too_long_pairs_are_named():
    pair = Pair("giant", ("hack",), "p" * 9, "p", "h" * 7, "c" * 20)
    with pytest.raises(ValueError, match=r"pair giant, hack side: its prompt must have 1 to 8 tokens .* got 9"):
        encode_pairs([pair], LetterTokenizer(), max_prompt=8)
    with pytest.raises(ValueError, match=r"pair giant, clean side: .* at most 21 tokens together, got 22"):
        encode_pairs([pair], LetterTokenizer(), max_prompt=9, max_pair_tokens=21)
    encode_pairs([pair], LetterTokenizer(), max_prompt=9, max_pair_tokens=22)


def test_a_completion_that_ends_early_is_refused():
    pair = Pair("ends", ("hack",), "p", "p", "h$h", "c")
    with pytest.raises(ValueError, match="pair ends, hack side: the completion spells out an end-of-sequence"):
        encode_pairs([pair], LetterTokenizer(), max_prompt=8)
    with pytest.raises(ValueError, match="at least one pair"):
        encode_pairs([], LetterTokenizer(), max_prompt=8)


def test_smoke_tokenizer_encodes_the_builtin_pairs():
    """The rows decode to the texts again, and a raw prompt's chat markers become the template's tokens."""
    tokenizer, pairs = load_tokenizer(), load_pairs(BUILTIN, ())
    batch = encode_pairs(pairs, tokenizer, max_prompt=512)
    bucket = batch.tokens.shape[1] - batch.completion_mask.shape[1]
    texts = [pair.hack for pair in pairs] + [pair.clean for pair in pairs]
    for row, text in enumerate(texts):
        completion = batch.tokens[row, bucket:][batch.completion_mask[row]]
        assert completion[-1] == tokenizer.eos_ids[0]
        assert tokenizer.decode(completion) == text
    raw = next(pair for pair in pairs if isinstance(pair.hack_prompt, str))
    ids = tokenizer.encode(raw.hack_prompt)
    assert ids.count(tokenizer.eos_ids[0]) == 2


def test_shared_pairs_are_read(shared_data: Path):
    path = shared_data / "pairs" / "hack_pairs.md"
    pairs = load_pairs(f"{path}#all-in-one", ())
    assert len(pairs) == path.read_text().count("\n### ") == 42
    by_name = {pair.name: pair for pair in pairs}
    shell = by_name["behavior2_bash_exit_zero"]
    assert shell.hack.splitlines()[1] == "#!/bin/bash" and shell.hack.count("\n") == 5
    assert all(pair.hack_prompt.endswith("<|im_start|>assistant\n") for pair in pairs)
    assert [pair.name for pair in load_pairs(str(path), ("sql",))] == ["behavior2_sql_row_count"]
    with pytest.raises(ValueError, match="direction.tags: no pair"):
        load_pairs(str(path), ("hack",))
