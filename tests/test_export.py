"""Exports against the JAX policies, with transformers and PEFT as they are."""

import functools
import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from tests import served
from tests.model.tiny import change_config
from vgrout_jax import export
from vgrout_jax.model import lora2r
from vgrout_jax.run.reader import read_workdir
from vgrout_jax.serving.exports import Merge, hub, jnp
from vgrout_jax.weights import peft as own_peft
from vgrout_jax.weights import store

REPOSITORY = Path(__file__).resolve().parents[1]
POLICIES = export.POLICIES
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return served.base_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def run(tmp_path_factory, base) -> Path:
    """A finished float32 run on a random model in a folder, both blocks trained."""
    return served.finished_run(tmp_path_factory.mktemp("run") / "run", served.smoke(model={"path": str(base)}))


@pytest.fixture(scope="module")
def logits(run):
    """(policy, or None for the base model) -> its logits on `served.sequences()`, each computed once."""
    return functools.cache(lambda policy: served.Policy(run, config_of(run), policy).logits(served.sequences()))


@pytest.fixture(scope="module")
def greedy(run):
    """policy -> its most probable answer to `served.prompt_tokens()`."""
    return functools.cache(
        lambda policy: served.Policy(run, config_of(run), policy).greedy(served.prompt_tokens(), NEW_TOKENS)
    )


def config_of(run: Path):
    return read_workdir(run).config


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("format", export.FORMATS)
def test_the_export_computes_what_the_policy_computes(run, logits, greedy, tmp_path, format, policy):
    """Logits to 1e-4 where the adapter moves them by more than 1, and equal greedy continuations."""
    served.export_run(run, tmp_path / "out", format, f"--policy={policy}")
    theirs = served.LOADERS[format](tmp_path / "out")
    np.testing.assert_allclose(served.torch_logits(theirs, served.sequences()), logits(policy), atol=1e-4)
    for other in {None, *POLICIES} - {policy}:
        assert np.abs(logits(other) - logits(policy)).max() > 1
    assert len(set(greedy(policy))) > 3 and greedy(policy) != greedy(
        next(name for name in POLICIES if name != policy)
    )
    assert served.torch_greedy(theirs, served.prompt_tokens(), NEW_TOKENS) == greedy(policy)


# Greatest difference of a logit, in units of the logits' standard deviation, that bfloat16 leaves: JAX and PyTorch
# round activations in different places, and a merged model rounds the sum of weight and change.
BFLOAT16_BOUND = {"peft": 0.15, "merged": 0.2}


@pytest.mark.parametrize("format", export.FORMATS)
def test_bfloat16_exports_agree_to_the_stated_bound(base, tmp_path, format):
    config = served.smoke(model={"path": str(base), "dtype": "bfloat16"})
    run = served.finished_run(tmp_path / "run", config)
    served.export_run(run, tmp_path / "out", format)
    [file] = (tmp_path / "out").glob("*.safetensors")
    with safe_open(file, framework="numpy") as handle:
        assert {handle.get_slice(name).get_dtype() for name in handle.keys()} == {"BF16"}  # noqa: SIM118
    theirs = served.LOADERS[format](tmp_path / "out", dtype=torch.bfloat16)
    tokens = served.sequences()
    expected = served.Policy(run, config, "deployed").logits(tokens)
    error = np.abs(served.torch_logits(theirs, tokens) - expected).max() / expected.std()
    print(f"bfloat16 {format}: {error:.3f} standard deviations")
    assert error < BFLOAT16_BOUND[format]
    without = served.Policy(run, config, None).logits(tokens)
    assert np.abs(without - expected).max() / expected.std() > 1


def test_the_export_of_a_random_model_brings_its_base(tmp_path):
    """A run on random weights has no base that others could name."""
    config = served.smoke()
    run = served.finished_run(tmp_path / "run", config)
    ours = served.Policy(run, config, "deployed")
    tokens, prompt = served.sequences(), served.prompt_tokens()
    logits, continuation = ours.logits(tokens), ours.greedy(prompt, NEW_TOKENS)
    for format in export.FORMATS:
        served.export_run(run, tmp_path / format, format)
        theirs = served.LOADERS[format](tmp_path / format)
        np.testing.assert_allclose(served.torch_logits(theirs, tokens), logits, atol=1e-4)
        assert served.torch_greedy(theirs, prompt, NEW_TOKENS) == continuation
    stated = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert stated["base_model_name_or_path"] == str(tmp_path / "peft" / "base")


def test_peft_reads_every_tensor_with_scaling_one(run, tmp_path):
    served.export_run(run, tmp_path / "out", "peft", "--policy=as_trained")
    model = served.load_adapter(tmp_path / "out")
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    in_use = {name.replace(".default", ""): value for name, value in model.named_parameters() if "lora_" in name}
    assert set(stored) == set(in_use) and len(stored) == 2 * 7 * 2
    for name, value in stored.items():
        np.testing.assert_array_equal(in_use[name].detach().numpy(), value)
    layers = [module for module in model.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    scalings = [module.scaling["default"] for module in layers]
    assert scalings == [1.0] * 14


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("format", export.FORMATS)
@pytest.mark.parametrize("named", [True, False], ids=["named_base", "random_base"])
def test_a_trained_quarantine_leaves_no_trace_in_the_deployed_files(base, tmp_path, format, named):
    """Every file is the same bit for bit, whether the quarantine was trained, otherwise trained, or not at all."""
    config = served.smoke(model={"path": str(base)} if named else {})
    init = served.init_of(config)
    trained = served.random_deltas(init)
    quarantines = (lora2r.zero_deltas(trained), served.random_deltas(init, 1), served.random_deltas(init, 2, size=3))
    found = {"deployed": [], "as_trained": []}
    for number, quarantine in enumerate((trained, *quarantines)):
        deltas = served.quarantine_of(trained, quarantine)
        run = served.finished_run(tmp_path / f"run{number}", config, deltas, init=init)
        for policy, exports in found.items():
            served.export_run(run, tmp_path / "out", format, f"--policy={policy}")
            exports.append(files_of(tmp_path / "out"))
            shutil.rmtree(tmp_path / "out")
    assert all(files == found["deployed"][0] for files in found["deployed"][1:])
    [weights] = [name for name in found["as_trained"][0] if re.match(r"(adapter_)?model\.safetensors", name)]
    assert len({files[weights] for files in found["as_trained"]}) == 4  # the same files do tell policies apart


@pytest.mark.parametrize("policy,rank", [("deployed", 8), ("as_trained", 16), ("deployed", 3), ("as_trained", 5)])
def test_adapters_keep_to_what_vllm_states(run, tmp_path, policy, rank):
    """vLLM: module names that it knows in Qwen3, a rank within --max-lora-rank, no bias, DoRA or saved modules.

    Its PEFTHelper takes these fields from adapter_config.json; a weight's name must be a target module's, lora_A or
    lora_B, behind base_model.model. Any other tensor is an error there.
    """
    smaller = [f"--rank={rank}"] if rank in (3, 5) else []
    served.export_run(run, tmp_path / "out", "peft", f"--policy={policy}", *smaller)
    stated = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert stated["r"] == rank and stated["lora_alpha"] / stated["r"] == 1
    assert isinstance(stated["target_modules"], list)
    attention, mlp = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}
    assert set(stated["target_modules"]) == attention | mlp
    assert stated["bias"] == "none" and stated["modules_to_save"] is None
    assert not stated["use_dora"] and not stated["use_rslora"]
    name = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.(self_attn|mlp)\.(\w+)\.lora_([AB])\.weight")
    for tensor, value in load_file(tmp_path / "out" / "adapter_model.safetensors").items():
        layer, part, module, letter = name.fullmatch(tensor).groups()
        assert int(layer) < 2 and module in (attention if part == "self_attn" else mlp)
        assert value.shape[0 if letter == "A" else 1] == rank
    assert own_peft.vllm_rank(rank) in (8, 16)


@pytest.mark.parametrize(
    "rank,limit", [(1, 8), (8, 8), (9, 16), (64, 64), (65, 128), (300, 320), (512, 512), (513, None)]
)
def test_the_rank_limit_for_vllm(rank, limit):
    assert own_peft.vllm_rank(rank) == limit


@pytest.mark.parametrize("rank", [1, 5, 8])
def test_compression_reports_the_error_that_it_makes(run, logits, tmp_path, capsys, rank):
    """The oracle multiplies out every map of both exports, in float64."""
    served.export_run(run, tmp_path / "whole", "peft")
    served.export_run(run, tmp_path / "small", "peft", f"--rank={rank}")
    whole, small = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "small"))
    errors, norms = {}, {}
    for name in [name for name in whole if "lora_A" in name]:
        products = [
            tensors[name.replace("lora_A", "lora_B")].astype(np.float64) @ tensors[name] for tensors in (whole, small)
        ]
        errors[name], norms[name] = np.linalg.norm(products[1] - products[0]), np.linalg.norm(products[0])
    overall = np.sqrt(sum(np.square(list(errors.values()))) / sum(np.square(list(norms.values()))))
    relative = {name: errors[name] / norms[name] for name in errors}
    worst = max(relative, key=relative.get)
    said = capsys.readouterr().out
    assert said.count("relative error") == 1 and ("relative error" in (tmp_path / "small" / "README.md").read_text())
    found = re.search(r"relative error (\S+) over all maps, (\S+) at most \((\S+)\)", said)
    np.testing.assert_allclose([float(found[1]), float(found[2])], [overall, relative[worst]], rtol=0.01, atol=2e-6)
    if rank < 8:
        assert found[3] in worst and overall > 0.05
    error = np.abs(
        served.torch_logits(served.load_adapter(tmp_path / "small"), served.sequences()) - logits("deployed")
    ).max()
    assert (error < 1e-4) == (rank == 8)


def test_an_adapter_on_a_hub_model_needs_no_base(tmp_path, monkeypatch):
    """The adapter's own record has all shapes: nothing is downloaded, and the base is named."""
    small = served.smoke()
    init = served.init_of(small)
    config = served.smoke(model={"path": "Qwen/Qwen3-4B"})
    run = served.finished_run(tmp_path / "run", config, init=init)
    monkeypatch.setattr(hub, "model_folder", lambda path: pytest.fail(f"asked for {path}"))
    served.export_run(run, tmp_path / "out", "peft")
    stated = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert stated["base_model_name_or_path"] == "Qwen/Qwen3-4B"
    assert sorted(files_of(tmp_path / "out")) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    card = huggingface_hub.ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model == "Qwen/Qwen3-4B"


def test_the_merged_model_is_complete_without_its_base(base, tmp_path):
    """Tokenizer, chat template, positions and generation settings are the base's own."""
    shutil.copytree(base, tmp_path / "base")
    change_config(tmp_path / "base", max_position_embeddings=123, bos_token_id=7, rope_theta=..., torch_dtype=...)
    change_config(tmp_path / "base", rope_parameters={"rope_type": "default", "rope_theta": 5e5}, dtype="float32")
    generation = {"temperature": 0.6, "top_k": 20, "eos_token_id": 2}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "base" / "LICENSE").write_text("terms")
    config = served.smoke(model={"path": str(tmp_path / "base")})
    run = served.finished_run(tmp_path / "run", config)
    served.export_run(run, tmp_path / "out", "merged", "--dtype=bfloat16")
    shutil.rmtree(tmp_path / "base")
    model = served.load_merged(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert model.config.max_position_embeddings == 123 and model.config.bos_token_id == 7
    assert model.generation_config.temperature == 0.6 and model.generation_config.top_k == 20
    assert model.generation_config.eos_token_id == list(served.TOKENIZER.eos_ids)
    assert (tmp_path / "out" / "LICENSE").read_text() == "terms"
    chat = [{"role": "user", "content": "Return n doubled."}]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, enable_thinking=False, return_dict=False)
    assert list(ids) == served.TOKENIZER.encode_chat(chat)


def test_sums_are_made_in_float32_and_rounded_once(tmp_path):
    """In bfloat16 1 + 2^-9 + 2^-9 is 1 sum by sum, and 1 + 2^-8 rounds to even: three of them are 1 + 2^-7."""
    factors = lora2r.Factors(
        a={"q_proj": np.full((1, 3, 4), 2.0**-9, np.float32)}, b={"q_proj": np.ones((1, 5, 3), np.float32)}
    )
    merge = Merge(factors, "bfloat16")
    piece = store.Piece("q", (5, 4), ("layers", "q_proj"), 0, True)
    value = np.ones((5, 4), np.dtype(jnp.bfloat16))
    assert (merge.add(piece, value).astype(np.float32) == 1 + 2**-7).all()
    np.testing.assert_allclose(merge.rounding(), 1 / 3)  # 2^-9 of 3 * 2^-9
    embed = store.Piece("embed", (5, 4), ("embed",), None, False)
    assert merge.add(embed, value) is value


def test_the_card_tells_what_the_model_is(run, tmp_path):
    for policy, rates, other in (("deployed", "| 3.1 [", "| 50.0 ["), ("as_trained", "| 50.0 [", "| 3.1 [")):
        served.export_run(run, tmp_path / policy, "peft", f"--policy={policy}")
        card = huggingface_hub.ModelCard.load(tmp_path / policy / "README.md")
        assert card.data.library_name == "peft" and "gradient-routing" in card.data.tags
        text = card.text
        for part in ("| arm | routeV |", "builtin:smoke", "SHA-256 " + "0" * 64, "LoRA of rank", "arXiv 2410.04332"):
            assert part in text
        overall = next(line for line in text.splitlines() if line.startswith(f"| {policy.replace('_', ' ')} | 32 |"))
        assert rates in overall and other not in text.split("## Measured")[1].split("| run_tests")[0]
        assert ("do not deploy" in text) == (policy == "as_trained")
        assert str(tmp_path) not in text and str(config_of(run).model.path) not in text


@pytest.mark.slow
def test_a_model_of_100_million_parameters(tmp_path):
    sizes = {"vocab_size": 2048, "hidden_size": 768, "intermediate_size": 2304, "num_layers": 15}
    config = served.smoke(model={**sizes, "num_heads": 12, "num_kv_heads": 4, "head_dim": 64}, adapter={"rank": 8})
    init = served.init_of(config)
    run = served.finished_run(tmp_path / "run", config, served.random_deltas(init, size=0.01), init=init)
    ours = served.Policy(run, config, "deployed")
    tokens, prompt = served.sequences(2, 16), served.prompt_tokens()
    logits, continuation = ours.logits(tokens), ours.greedy(prompt, 12)
    assert np.abs(served.Policy(run, config, None).logits(tokens) - logits).max() > 0.1
    for format in export.FORMATS:
        served.export_run(run, tmp_path / "out", format)
        theirs = served.LOADERS[format](tmp_path / "out")
        own = [value.numel() for name, value in theirs.named_parameters() if "lora_" not in name]
        assert sum(own) > 100_000_000
        np.testing.assert_allclose(served.torch_logits(theirs, tokens), logits, atol=1e-4)
        assert served.torch_greedy(theirs, prompt, 12) == continuation
        shutil.rmtree(tmp_path / "out")
