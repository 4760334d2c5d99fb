"""The tokenizer of a run: a Hugging Face fast tokenizer behind the few calls that the project makes.

`transformers` is imported on the first load, and PyTorch is never needed.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, SupportsIndex

from vgrout_jax.common.packaged import packaged

SMOKE_PATH = packaged("smoke_tokenizer")
# Either one ends a turn of Qwen3 (docs/method.md section 1), though its tokenizer names only the first.
TURN_ENDS = ("<|im_end|>", "<|endoftext|>")
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
# What the backend's JSON says beyond how a text becomes ids.
_NOT_CONTENT = ("version", "truncation", "padding")


@dataclasses.dataclass(frozen=True)
class ChatTokenizer:
    """Text to token ids and back.

    Attributes:
      backend: the transformers tokenizer.
      eos_ids: ids that end a completion; the first is the one that the tokenizer itself calls EOS.
      pad_id: fills padding; may be one of `eos_ids`.
      vocab_size: number of ids, added tokens included. A model may have more rows than that.
      sha256: of the backend's JSON; equal hashes give equal ids for every text.
    """

    backend: Any
    eos_ids: tuple[int, ...]
    pad_id: int
    vocab_size: int
    sha256: str

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Nothing is added; special tokens that the text spells out become their ids."""
        return list(self.backend(text, add_special_tokens=False)["input_ids"])

    def encode_chat(self, messages: Sequence[Mapping[str, str]], *, thinking: bool = False) -> list[int]:
        """The ids of a conversation up to where the assistant's answer begins.

        Args:
          messages: `{"role": ..., "content": ...}` each, in order.
          thinking: whether the template lets the model think before it answers (`enable_thinking`).

        Raises:
          ValueError: the tokenizer has no chat template, or there are no messages.
        """
        if not self.backend.chat_template:
            raise ValueError(f"model.path must name a chat model, got {self.backend.name_or_path}: no chat template")
        ids = self.backend.apply_chat_template(
            [dict(message) for message in messages],
            add_generation_prompt=True,
            enable_thinking=thinking,
            return_dict=False,
        )
        return list(ids)

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """The text of some ids, without special tokens.

        Bytes that are no UTF-8 become U+FFFD, and ids beyond `vocab_size`, which a model with a padded
        vocabulary can sample, become nothing.
        """
        plain = [int(token) for token in ids]
        return self.backend.decode(plain, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def load_tokenizer(path: Optional[str] = None) -> ChatTokenizer:
    """The tokenizer of a model folder or hub name; None: the package's own small one, without a download.

    Raises:
      ValueError: nothing loadable stands there, or it is no fast tokenizer or has no end-of-sequence token.
    """
    source = str(SMOKE_PATH) if path is None else path
    if _is_folder(source):
        _check_folder(Path(source))
    # Without PyTorch transformers advises on import to install it, and none of it is needed here.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if path is None:
        from transformers import PreTrainedTokenizerFast as Backend
    else:  # picks the class; the import alone imports PyTorch where it is installed, which takes seconds
        from transformers import AutoTokenizer as Backend
    try:
        backend = Backend.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"model.path must name a model with a tokenizer, got {source}: {reason}") from error
    if getattr(backend, "backend_tokenizer", None) is None:
        raise ValueError(f"model.path must have a fast tokenizer (tokenizer.json), got {source}")
    eos_ids = _eos_ids(backend, _generation_eos(source))
    if not eos_ids:
        raise ValueError(f"model.path must have a tokenizer with an end-of-sequence token, got {source}")
    pad_id = eos_ids[0] if backend.pad_token_id is None else backend.pad_token_id
    return ChatTokenizer(backend, eos_ids, pad_id, len(backend), _sha256(backend.backend_tokenizer.to_str()))


def _is_folder(source: str) -> bool:
    """Whether a model's path is meant as a folder; a hub name is `name` or `owner/name`, no folder here."""
    return Path(source).exists() or not _HUB_NAME.fullmatch(source)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"model.path must be a model's folder or a hub name, got {folder}: no such folder")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ValueError(f"model.path must hold a tokenizer, got {folder}: no tokenizer.json in it")


def _eos_ids(backend: Any, generation: Sequence[int]) -> tuple[int, ...]:
    """The tokenizer's own EOS, the generation settings' ones, and the turn ends that it knows as special."""
    special = set(backend.all_special_tokens) | {
        token.content for token in backend.added_tokens_decoder.values() if token.special
    }
    ends = [backend.convert_tokens_to_ids(token) for token in TURN_ENDS if token in special]
    own = [] if backend.eos_token_id is None else [backend.eos_token_id]
    return tuple(dict.fromkeys([*own, *generation, *ends]))


def _generation_eos(source: str) -> list[int]:
    """`eos_token_id` of the model's generation_config.json; empty where there is none."""
    from transformers.utils import cached_file

    file = cached_file(source, "generation_config.json", _raise_exceptions_for_missing_entries=False)
    ids = json.loads(Path(file).read_text(encoding="utf-8")).get("eos_token_id") if file else None
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)


def _sha256(backend_json: str) -> str:
    content = {key: value for key, value in json.loads(backend_json).items() if key not in _NOT_CONTENT}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
