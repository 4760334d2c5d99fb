"""Checkpoints out: what is written is read back bit for bit, by the project and by transformers."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import tiny
from vgrout_jax.common.tokenizer import SMOKE_PATH, load_tokenizer
from vgrout_jax.model import head, qwen3
from vgrout_jax.model.parameters import abstract_parameters
from vgrout_jax.weights import hub, store
from vgrout_jax.weights.safetensors import INDEX

REPOSITORY = Path(__file__).resolve().parents[2]


def shape(**changes) -> qwen3.Qwen3Config:
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 56, "num_layers": 3, "num_heads": 4}
    return qwen3.Qwen3Config(**{**sizes, "num_kv_heads": 2, "head_dim": 12, "rope_theta": 5e5, **changes})


def random_parameters(model: qwen3.Qwen3Config, seed: int = 0) -> dict:
    """Norms that are not ones, so that one left out or misplaced shows."""
    generator = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = generator.standard_normal(leaf.shape, np.float32)
        if leaf.ndim == 1 or leaf.shape[0] == model.num_layers and leaf.ndim == 2:
            return (1 + 0.3 * noise).astype(leaf.dtype)
        width = leaf.shape[-1] if leaf.shape[0] == model.vocab_size else leaf.shape[-2]
        return (noise * width**-0.5).astype(leaf.dtype)

    return jax.tree.map(draw, abstract_parameters(model))


def save(folder: Path, parameters: dict, model: qwen3.Qwen3Config, **options) -> Path:
    settings = {"dtype": model.dtype, "tokenizer_files": (), "eos_ids": (3, 5), "pad_id": 5}
    return store.save_checkpoint(folder, parameters, model, **{**settings, **options})


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "separate_head"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shard_bytes", [10**9, 9000], ids=["one_file", "shards"])
def test_round_trip_is_bit_equal(tmp_path, monkeypatch, tied, dtype, shard_bytes):
    monkeypatch.setattr(store, "_BLOCK_BYTES", 1000)  # several blocks a tensor, the last one shorter
    model = shape(tie_embeddings=tied, dtype=dtype, norm_epsilon=1e-5)
    parameters = random_parameters(model)
    folder = save(tmp_path / "model", jax.tree.map(jnp.asarray, parameters), model, shard_bytes=shard_bytes)
    assert hub.load_config(folder, dtype=dtype) == model
    loaded = hub.load_parameters(folder, model)
    jax.tree.map(np.testing.assert_array_equal, loaded, parameters)
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    assert (files == ["model.safetensors"]) == (shard_bytes == 10**9)
    index = [INDEX] if len(files) > 1 else []
    assert sorted(os.listdir(folder)) == sorted(["config.json", "generation_config.json", *files, *index])
    assert os.listdir(tmp_path) == ["model"]


def test_transformers_loads_it_without_help_and_computes_the_same(tmp_path):
    """The oracle is transformers' own Qwen3, loaded by the automatic classes from the folder alone."""
    tokenizer = load_tokenizer(None)
    model = shape(vocab_size=-(-tokenizer.vocab_size // 64) * 64, tie_embeddings=False)
    parameters = jax.tree.map(jnp.asarray, random_parameters(model))
    folder = save(
        tmp_path / "model",
        parameters,
        model,
        tokenizer_files=store.find_tokenizer_files(SMOKE_PATH),
        eos_ids=tokenizer.eos_ids,
        pad_id=tokenizer.pad_id,
        shard_bytes=50_000,
    )
    theirs, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert theirs.dtype == torch.float32
    assert theirs.generation_config.eos_token_id == list(tokenizer.eos_ids)
    tokens = jnp.array([tokenizer.encode("Return a + b. It should pass all tests.")])
    hidden = qwen3.Qwen3(model).apply(
        {"params": parameters}, tokens, qwen3.causal_attention(jnp.ones(tokens.shape, bool), model)
    )
    with torch.no_grad():
        expected = theirs(torch.tensor(np.array(tokens, np.int64))).logits.numpy()
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(np.asarray(head.unembed(parameters, hidden)), expected, atol=1e-4)
    again = load_tokenizer(str(folder))
    assert (again.sha256, again.eos_ids, again.pad_id) == (tokenizer.sha256, tokenizer.eos_ids, tokenizer.pad_id)
    chat = [{"role": "user", "content": "Return a + b."}]
    ids = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        chat, add_generation_prompt=True, enable_thinking=False, return_dict=False
    )
    assert list(ids) == tokenizer.encode_chat(chat)


@pytest.mark.parametrize("shard_bytes", [1, 3000, 7000, 10**6])
def test_no_shard_is_larger_than_asked_unless_one_tensor_is(tmp_path, shard_bytes):
    model = shape()
    folder = save(tmp_path / "model", random_parameters(model), model, shard_bytes=shard_bytes)
    names = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as handle:
            sizes = [handle.get_tensor(name).nbytes for name in handle.keys()]  # noqa: SIM118
            names += handle.keys()
        assert len(sizes) == 1 or sum(sizes) <= shard_bytes
    assert sorted(names) == sorted(piece.name for piece in store.pieces(model))


def test_the_type_of_the_file_is_that_asked_for_and_rounded_once(tmp_path):
    model = shape()
    parameters = random_parameters(model)
    folder = save(tmp_path / "model", parameters, model, dtype="bfloat16")
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16
    loaded = hub.load_parameters(folder, model)
    expected = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(np.float32), parameters)
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_changes_are_made_before_the_cast(tmp_path):
    """One plus 2^-9 thrice is 1 in bfloat16 if every sum is rounded, and more if the sum is."""
    model = shape(dtype=jnp.bfloat16)
    parameters = jax.tree.map(np.ones_like, random_parameters(model))
    seen = {}

    def add(piece: store.Piece, value: np.ndarray) -> np.ndarray:
        seen[piece.name] = value.shape
        return value.astype(np.float32) + np.float32(3 * 2**-9) if piece.layer == 1 else value

    folder = save(tmp_path / "model", parameters, model, change=add)
    loaded = hub.load_parameters(folder, model)["layers"]["up_proj"].astype(jnp.float32)
    assert (loaded[0] == 1).all() and (loaded[1] == 1 + 2**-7).all()
    assert seen["model.layers.2.mlp.up_proj.weight"] == (56, 32)  # as published, [out, in]


def test_extra_files_and_fields_have_the_last_word(tmp_path):
    model = shape()
    extra = {"README.md": "card\n", "generation_config.json": "{}\n"}
    fields = {"max_position_embeddings": 77, "bos_token_id": 1}
    folder = save(tmp_path / "model", random_parameters(model), model, extra_files=extra, config_fields=fields)
    assert (folder / "README.md").read_text() == "card\n"
    assert (folder / "generation_config.json").read_text() == "{}\n"
    written = json.loads((folder / "config.json").read_text())
    assert (written["max_position_embeddings"], written["bos_token_id"], written["eos_token_id"]) == (77, 1, 3)


def wrong_shape(parameters: dict) -> None:
    parameters["layers"]["k_proj"] = parameters["layers"]["k_proj"][:, :, :-1]


def missing_leaf(parameters: dict) -> None:
    del parameters["layers"]["q_norm"]


def surplus_leaf(parameters: dict) -> None:
    parameters["lm_head"] = parameters["embed"].T


def not_finite(parameters: dict) -> None:
    parameters["layers"]["down_proj"][2, 4, 5] = np.nan


def too_large(parameters: dict) -> None:
    parameters["layers"]["o_proj"][1, 0, 0] = 1e6


@pytest.mark.parametrize(
    "damage,options,message",
    [
        (wrong_shape, {}, "parameters['layers']['k_proj'] must be (3, 32, 24) for this model, got (3, 32, 23)"),
        (missing_leaf, {}, "parameters['layers']['q_norm'] must be (3, 12) for this model, got absent"),
        (surplus_leaf, {}, "parameters['lm_head'] must be absent for this model, got (32, 96)"),
        (not_finite, {}, "tensor model.layers.2.mlp.down_proj.weight must be finite in float32"),
        (too_large, {"dtype": "float16"}, "tensor model.layers.1.self_attn.o_proj.weight must be finite in float16"),
        (None, {"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, got int8"),
        (None, {"shard_bytes": 0}, "shard_bytes must be >= 1, got 0"),
        (None, {"eos_ids": ()}, "eos_ids must hold at least one"),
        (None, {"tokenizer_files": ["nowhere/tokenizer.json"]}, "but nowhere/tokenizer.json is missing"),
    ],
)
def test_what_cannot_be_saved_is_one_line_and_leaves_nothing(tmp_path, damage, options, message):
    model = shape()
    parameters = random_parameters(model)
    if damage:
        damage(parameters)
    with pytest.raises(ValueError) as caught:
        save(tmp_path / "model", parameters, model, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_nothing_that_exists_is_replaced(tmp_path):
    model = shape()
    for target in ("file", "folder"):
        (tmp_path / "file").write_text("mine")
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match="already exists"):
            save(tmp_path / target, random_parameters(model), model)
    assert (tmp_path / "file").read_text() == "mine" and not any((tmp_path / "folder").iterdir())


def test_the_folder_appears_in_one_move(tmp_path):
    """The very folder that was written into, not a copy that could be interrupted half-way."""
    with store.staged_folder(tmp_path / "deep" / "out") as staged:
        (staged / "ours").write_text("x")
        written = staged.stat().st_ino
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out").stat().st_ino == written
    assert os.listdir(tmp_path / "deep") == ["out"]


def test_a_folder_that_appears_meanwhile_is_left_alone(tmp_path):
    with pytest.raises(ValueError, match="already exists"), store.staged_folder(tmp_path / "out") as staged:
        (staged / "ours").write_text("x")
        (tmp_path / "out").mkdir()
    assert os.listdir(tmp_path) == ["out"] and not os.listdir(tmp_path / "out")


def test_a_killed_save_leaves_nothing_that_loads(tmp_path):
    """The process is killed at the last tensor; whatever is left, no folder in it has weights and a configuration."""
    program = """
        import os, signal, sys
        from tests.weights import test_store
        def die(piece, value):
            if piece.name == "model.norm.weight":
                os.kill(os.getpid(), signal.SIGKILL)
            return value
        model = test_store.shape()
        test_store.save(sys.argv[1], test_store.random_parameters(model), model, change=die, shard_bytes=9000)
    """
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "model")]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=300)
    assert done.returncode == -9
    [left] = tmp_path.iterdir()
    assert left.name.startswith(".") and any(left.glob("*.safetensors"))
    with pytest.raises(ValueError):
        hub.load_config(left)
    with pytest.raises((OSError, ValueError)):
        AutoModelForCausalLM.from_pretrained(left)


def test_saving_shows_progress_on_a_terminal_alone(tmp_path, monkeypatch, capsys):
    model = tiny.model()
    save(tmp_path / "quiet", random_parameters(model), model)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    save(tmp_path / "loud", random_parameters(model), model)
    out, err = capsys.readouterr()
    assert "saving: 100%" in err and out == ""


@pytest.mark.slow
def test_saving_holds_no_second_copy(tmp_path):
    """Peak resident memory rises by a small part of the parameters' size while they are cast and transposed."""
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    program = """
        import sys, jax, jax.numpy as jnp
        from tests.weights import test_store
        from vgrout_jax.model import parameters as table
        def peak():
            status = open("/proc/self/status").read().split()
            return int(status[status.index("VmHWM:") + 1]) * 1024
        model = test_store.shape(
            vocab_size=32768, hidden_size=1024, intermediate_size=3072, num_layers=18, num_heads=8, head_dim=128
        )
        parameters = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), table.abstract_parameters(model))
        test_store.save(sys.argv[1] + "/small", test_store.random_parameters(test_store.shape()), test_store.shape())
        size, before = sum(leaf.nbytes for leaf in jax.tree.leaves(parameters)), peak()
        test_store.save(sys.argv[1] + "/model", parameters, model, dtype="bfloat16", shard_bytes=2 * 10**8)
        print(size, peak() - before)
    """
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    size, rise = map(int, done.stdout.split())
    print(f"rise of the peak / size of the parameters: {rise / size:.3f}")
    assert size > 9e8 and rise < 0.25 * size
