"""Makes the package's small tokenizer: `python -m vgrout_jax.data.make_tokenizer [FOLDER]`.

A byte-level BPE without pre-tokenization, trained on what a smoke run reads: merges run across words, so that
fixed phrases become single tokens and a whole prompt fits a bucket of 32. Every byte has a token, so any text
survives the round trip. The output is a function of the smoke texts and of the `tokenizers` version alone.
"""

import itertools
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from vgrout_jax.env.modes import HELDOUT_NAMES, MODES, TRAINING_NAMES, load_hints, render
from vgrout_jax.env.problems import builtin_file, load_problems, read_jsonl
from vgrout_jax.env.toy_tokens import SPECIAL_TOKENS, write_files
from vgrout_jax.tokenizer import SMOKE_PATH

VOCAB_SIZE = 768


def smoke_prompts() -> Iterator[tuple[dict[str, str], ...]]:
    """The messages of every built-in problem under every mode, with training and with held-out names."""
    hints = load_hints(None)
    for problem, mode, names in itertools.product(
        load_problems(["builtin:smoke"]), MODES, (TRAINING_NAMES, HELDOUT_NAMES)
    ):
        yield render(problem, mode, names, hints)


def smoke_completions() -> Iterator[str]:
    """The completions of the built-in teacher pool."""
    for _, row in read_jsonl(builtin_file("smoke_teacher.jsonl")):
        yield row["completion"]


def corpus() -> list[str]:
    """What the merges are learnt from: each prompt as the chat template renders it, and each completion.

    Counted once, since prompts and completions repeat each other and would soon be a token or two each.
    """
    texts = set(smoke_completions())
    for messages in smoke_prompts():
        turns = [f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages]
        texts.add("".join(turns) + "<|im_start|>assistant\n<think>\n\n</think>\n\n")
    border = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
    # Special tokens cut a text before any merge, so no merge may be learnt across one.
    return [piece for text in sorted(texts) for piece in border.split(text) if piece]


def train(texts: list[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` ids: the special tokens, the 256 bytes, then merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write(folder: Path) -> None:
    """Trains and writes `tokenizer.json` and `tokenizer_config.json`."""
    # Counting in parallel would leave the order of equal counts to chance.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    write_files(folder, train(corpus(), VOCAB_SIZE))


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else SMOKE_PATH)
