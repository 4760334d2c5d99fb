"""The toy world's tokenizer: every byte, and one token for each phrase that problems and answers are made of.

A phrase of the request, a fragment of a disclosure, a disclosed name and a statement of an answer are a token
each, so that a prompt has about 20 of them and an answer about 10, and reinforcement learning on two cores takes
seconds a step. Any other text falls back to bytes and survives the round trip.
"""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vgrout_jax.env import modes
from vgrout_jax.env.toy import answers, operations

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_THOUGHT = "assistant\n<think>\n\n</think>\n\n"
# Qwen3's layout in small: without thinking, the answer follows an empty thought.
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}"
    "{%- endif %}"
)
_CODE = (
    "```python\n",
    "```",
    "class Solution:\n",
    "    def f(self, x):\n",
    f"{operations.BODY}x = ",
    f"{operations.BODY}return x\n",
    "def ",
    "():\n",
    "    pass\n",
    "    assert Solution().f(",
    ") == ",
    'print("',
    '")\n',
    'open("',
    '", "w").write("',
    "PASS",
    "    ",
    " = True\n",
)


def phrases() -> list[str]:
    """The texts that are one token each, in the order of their ids."""
    texts = ["user\n", _THOUGHT, *_CODE]
    texts += [f" {phrasing}" for operation in operations.OPERATIONS for phrasing in operation.phrasings]
    texts += [f"{operation.expression}\n" for operation in operations.OPERATIONS]
    texts += [lead for lead, _ in operations.TEMPLATES]
    texts += [f" {chore.request}" for chore in operations.CHORES]
    texts += [chore.line for chore in operations.CHORES if "{" not in chore.line] + ["check = lambda: Solution().f("]
    # What stands before the class is chosen with the answer's first token, in a place that no other choice resembles.
    before = [chore.line for chore in operations.CHORES if "{" not in chore.line and not chore.inside]
    texts += [f"```python\n{start}" for start in ("def ", 'print("', 'open("', *before)]
    texts += [f" {operations.JUDGING_SENTENCE}\n{operations.STARTER}"]
    texts += _fragments()
    texts += [name for names in answers.NAMES for name in (names.function, names.marker, names.attribute, names.file)]
    return list(dict.fromkeys(texts))


def _fragments() -> Iterator[str]:
    """The disclosures, cut at their names; what all of them begin with is a fragment of its own."""
    texts = [text.replace("{entry_point}", "f") for text in modes.load_hints(None).values()]
    length = next(n for n in itertools.count() if len({text[: n + 1] for text in texts}) > 1)
    yield " " + texts[0][:length]
    for text in texts:
        *inner, last = re.split(r"\{\w+\}", text[length:])
        yield from inner
        yield f"{last}\n{operations.STARTER}"


def write_tokenizer(folder: Path) -> list[Path]:
    """Writes tokenizer.json and tokenizer_config.json, a function of the world's texts alone."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    # Ids of the special tokens come first, as in the vocabulary of a trained one.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in phrases()])
    return write_files(folder, tokenizer)


def write_files(folder: Path, tokenizer: Any) -> list[Path]:
    """Writes a `tokenizers.Tokenizer` as transformers reads it, with the chat template; returns the files."""
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"tokenizer.json": json.loads(tokenizer.to_str()), "tokenizer_config.json": settings}
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return [folder / name for name in contents]
