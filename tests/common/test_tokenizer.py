"""The tokenizer: chat rendering, round trips, end tokens, hash, and that the smoke texts fit their bucket."""

import hashlib
import json
import shutil
import subprocess
import sys

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from vgrout_jax.common.tokenizer import SMOKE_PATH, ChatTokenizer, load_tokenizer
from vgrout_jax.data import make_tokenizer

MESSAGES = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Add 2 & 3 – or «π»?"})
RENDERED = (
    "<|im_start|>system\nBe brief.<|im_end|>\n"
    "<|im_start|>user\nAdd 2 & 3 – or «π»?<|im_end|>\n"
    "<|im_start|>assistant\n"
)
TEXTS = (
    "",
    "def f(a, b):\n\treturn a  +  b\n",
    "naïve Ünïcode 漢字 🙂‍↔️",
    "a\u0000b\r\n",
    " leading",
    "trailing \n\n",
)


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return load_tokenizer()


@pytest.fixture
def folder(tmp_path):
    """A model's folder with a copy of the small tokenizer, to be changed."""
    return shutil.copytree(SMOKE_PATH, tmp_path / "model")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_survives_the_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_byte_has_a_token(tokenizer):
    """All code points of one and two bytes and samples of three and four: no unknown token, nothing lost."""
    text = "".join(map(chr, [*range(0x800), *range(0x800, 0xD800, 97), *range(0x10000, 0x10FFFF, 9973)]))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_broken_utf8_and_foreign_ids_decode(tokenizer):
    """What a random policy samples: half a character, special tokens, ids that only a padded model has."""
    face = tokenizer.encode("🙂")
    assert len(face) > 1
    assert "\ufffd" in tokenizer.decode(face[:-1])
    letters = tokenizer.encode("ok")
    noisy = [
        tokenizer.eos_ids[0],
        *letters,
        tokenizer.vocab_size,
        tokenizer.vocab_size + 50,
        tokenizer.pad_id,
    ]
    assert tokenizer.decode(noisy) == "ok"


def test_chat_is_the_rendered_text_encoded(tokenizer):
    """Oracle: the ChatML text written out by hand."""
    assert tokenizer.encode_chat(MESSAGES, thinking=True) == tokenizer.encode(RENDERED)
    assert tokenizer.encode_chat(MESSAGES) == tokenizer.encode(RENDERED + "<think>\n\n</think>\n\n")
    assert all(type(token) is int for token in tokenizer.encode_chat(MESSAGES))


def test_special_tokens_of_a_text_become_their_ids(tokenizer):
    start, end = tokenizer.encode("<|im_start|>"), tokenizer.encode("<|im_end|>")
    assert len(start) == len(end) == 1 and end[0] == tokenizer.eos_ids[0]
    assert tokenizer.encode("x<|im_end|>") == [*tokenizer.encode("x"), *end]


def test_small_tokenizer_names_its_ends_and_padding(tokenizer):
    ids = [tokenizer.encode(token)[0] for token in ("<|im_end|>", "<|endoftext|>")]
    assert tokenizer.eos_ids == tuple(ids)
    assert tokenizer.pad_id == ids[1]
    assert tokenizer.vocab_size == make_tokenizer.VOCAB_SIZE


def test_a_folder_loads_like_the_built_in_one(tokenizer, folder):
    loaded = load_tokenizer(str(folder))
    assert loaded.encode_chat(MESSAGES) == tokenizer.encode_chat(MESSAGES)
    assert (loaded.sha256, loaded.eos_ids, loaded.pad_id) == (
        tokenizer.sha256,
        tokenizer.eos_ids,
        tokenizer.pad_id,
    )


@pytest.mark.parametrize(("setting", "extra"), [(7, (7,)), ([2, 9, 7], (9, 7)), (None, ())])
def test_generation_settings_add_ends(folder, setting, extra):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": setting}))
    assert load_tokenizer(str(folder)).eos_ids == (2, *extra, 0)


def test_padding_falls_back_to_the_first_end(folder):
    edit(folder / "tokenizer_config.json", pad_token=None)
    loaded = load_tokenizer(str(folder))
    assert loaded.pad_id == loaded.eos_ids[0]


def test_hash_follows_the_merges_and_not_the_template_or_padding(tokenizer, folder):
    edit(folder / "tokenizer_config.json", chat_template="{{ messages[0].content }}")
    changed = json.loads((folder / "tokenizer.json").read_text())
    changed["truncation"] = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None}
    changed["padding"] = {**padding, "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer.json").write_text(json.dumps(changed))
    assert load_tokenizer(str(folder)).sha256 == tokenizer.sha256
    merges = changed["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]
    (folder / "tokenizer.json").write_text(json.dumps(changed))
    assert load_tokenizer(str(folder)).sha256 != tokenizer.sha256
    assert len(tokenizer.sha256) == len(hashlib.sha256().hexdigest())


def test_unusable_paths_are_refused_in_one_line(tmp_path, folder):
    with pytest.raises(ValueError, match=r"^model.path must .*no such folder$"):
        load_tokenizer(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match=r"^model.path must hold a tokenizer, got .*: no tokenizer.json in it$"):
        load_tokenizer(str(tmp_path))
    edit(folder / "tokenizer_config.json", chat_template=None)
    with pytest.raises(ValueError, match="model.path must name a chat model, got .*no chat template"):
        load_tokenizer(str(folder)).encode_chat(MESSAGES)


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    plain = make_tokenizer.train(["hello hello"], 300)
    bare = json.loads(plain.to_str())
    bare["added_tokens"] = []
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(bare))).save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="model.path must have a tokenizer with an end-of-sequence token"):
        load_tokenizer(str(tmp_path))


def test_smoke_texts_fit_their_bucket(tokenizer):
    """32 tokens for every prompt, and 32 for every stored completion with its end."""
    prompts = [len(tokenizer.encode_chat(messages)) for messages in make_tokenizer.smoke_prompts()]
    completions = [len(tokenizer.encode(text)) + 1 for text in make_tokenizer.smoke_completions()]
    assert len(prompts) > 100 and len(completions) > 20
    assert max(prompts) <= 32
    assert 8 < max(completions) <= 32


def test_training_again_gives_the_same_files(tmp_path):
    make_tokenizer.write(tmp_path)
    names = ("tokenizer.json", "tokenizer_config.json")
    assert {path.name for path in SMOKE_PATH.iterdir()} == set(names)
    for name in names:
        same = (tmp_path / name).read_bytes() == (SMOKE_PATH / name).read_bytes()
        assert same, f"{name}: run python -m vgrout_jax.data.make_tokenizer"


def test_no_pytorch_and_no_network_are_needed():
    """Loading and chat rendering in a process where PyTorch cannot be imported, quietly."""
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from vgrout_jax.common.tokenizer import load_tokenizer\n"
        "print(len(load_tokenizer().encode_chat([{'role': 'user', 'content': 'hi'}])))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 4 and run.stderr == ""
