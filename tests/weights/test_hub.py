"""Published checkpoints in: what is read equals what was saved, from folders and hub names, in little memory."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.model import tiny
from vgrout_jax.config import MeshConfig
from vgrout_jax.model import qwen3, sharding
from vgrout_jax.model.parameters import is_parameter, parameter_table
from vgrout_jax.weights import hub
from vgrout_jax.weights import safetensors as shards

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return tiny.save_reference(tmp_path_factory.mktemp("published"), tiny.random_reference())


@pytest.fixture
def folder(published, tmp_path) -> Path:
    """A checkpoint of one's own to damage."""
    return Path(shutil.copytree(published, tmp_path / "model"))


def assert_equals_reference(parameters: dict, state: dict[str, torch.Tensor], config: qwen3.Qwen3Config) -> None:
    """Every loaded value is the published one, converted to the target dtype by PyTorch."""
    dtype = {jnp.float32: torch.float32, jnp.bfloat16: torch.bfloat16}[config.dtype]

    def expected(name: str) -> np.ndarray:
        return state[name].to(dtype).float().numpy()

    def check(leaf: jax.Array, value: np.ndarray) -> None:
        assert leaf.dtype == config.dtype
        np.testing.assert_array_equal(np.asarray(leaf, np.float32), value)

    check(parameters["embed"], expected("model.embed_tokens.weight"))
    check(parameters["final_norm"], expected("model.norm.weight"))
    assert ("lm_head" in parameters) == (not config.tie_embeddings)
    if not config.tie_embeddings:
        check(parameters["lm_head"], expected("lm_head.weight").T)
    norms = {"input_norm": "input_layernorm", "post_norm": "post_attention_layernorm"}
    norms |= {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
    for layer in range(config.num_layers):
        for name, leaf in parameters["layers"].items():
            if name in norms:
                check(leaf[layer], expected(f"model.layers.{layer}.{norms[name]}.weight"))
                continue
            part = "self_attn" if name in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
            check(leaf[layer], expected(f"model.layers.{layer}.{part}.{name}.weight").T)


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["to_float32", "to_bfloat16"])
def test_every_value_is_the_published_one(tmp_path, monkeypatch, saved, dtype):
    monkeypatch.setattr(shards, "_BLOCK_BYTES", 1000)  # several blocks a tensor, the last one shorter
    model = tiny.random_reference(tie_word_embeddings=False, num_hidden_layers=3).to(saved)
    folder = tiny.save_reference(tmp_path, model)
    config = hub.load_config(folder, dtype=dtype)
    assert_equals_reference(hub.load_parameters(folder, config), model.state_dict(), config)


def test_sharded_checkpoint_equals_single_file(published, tmp_path):
    model = tiny.random_reference()
    folder = tiny.save_reference(tmp_path, model, max_shard_size="10KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    config = hub.load_config(folder)
    single = hub.load_parameters(published, config)
    jax.tree.map(np.testing.assert_array_equal, hub.load_parameters(folder, config), single)
    assert_equals_reference(single, model.state_dict(), config)


def test_loading_is_silent_without_a_terminal(published, capfd):
    hub.load_parameters(published, hub.load_config(published))
    assert capfd.readouterr() == ("", "")


def test_loading_shows_progress_on_a_terminal(published, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    hub.load_parameters(published, hub.load_config(published))
    out, err = capsys.readouterr()
    assert "weights: 100%" in err and out == ""


def test_loads_into_the_given_shardings(published):
    config = hub.load_config(published)
    mesh = sharding.make_mesh(MeshConfig())
    shardings = sharding.parameter_shardings(mesh, config)
    parameters = hub.load_parameters(published, config, shardings)
    plain = hub.load_parameters(published, config)
    jax.tree.map(np.testing.assert_array_equal, parameters, plain)
    assert jax.tree.all(jax.tree.map(lambda leaf, wanted: leaf.sharding == wanted, parameters, shardings))


def run_python(code: str, *arguments: str, devices: int = 1) -> str:
    """Output of a fresh interpreter, whose memory and devices are its own."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_loads_onto_eight_devices(published):
    output = run_python(
        """
        import sys, jax, numpy as np
        from vgrout_jax.config import MeshConfig
        from vgrout_jax.model import sharding
        from vgrout_jax.weights import hub
        config = hub.load_config(sys.argv[1])
        mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
        shardings = sharding.parameter_shardings(mesh, config)
        parameters = hub.load_parameters(sys.argv[1], config, shardings)
        plain = hub.load_parameters(sys.argv[1], config)
        jax.tree.map(np.testing.assert_array_equal, parameters, plain)
        print(parameters["layers"]["gate_proj"].addressable_shards[0].data.shape)
        """,
        str(published),
        devices=8,
    )
    assert output.strip() == "(2, 16, 28)"


def write_large_checkpoint(folder: Path) -> int:
    """A Qwen3 checkpoint of bfloat16 shards with the published proportions; returns its size in bytes."""
    fields = {"vocab_size": 65536, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 18}
    fields |= {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
    sizes = {**fields, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps({**sizes, "architectures": ["Qwen3ForCausalLM"]}))
    table = parameter_table(hub.load_config(folder))
    files: dict[str, dict[str, torch.Tensor]] = {}
    for row in jax.tree.leaves(table, is_leaf=is_parameter):
        stacked = "{layer}" in row.published
        shape = row.shape[1:] if stacked else row.shape
        for layer in range(row.shape[0] if stacked else 1):
            file = f"model-{layer // 5}.safetensors"
            value = torch.full(shape[::-1] if row.transposed else shape, 1.0 + layer, dtype=torch.bfloat16)
            files.setdefault(file, {})[row.published.format(layer=layer)] = value
    for file in sorted(files):
        save_file(files[file], folder / file)
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return sum((folder / file).stat().st_size for file in files)


@pytest.mark.slow
def test_peak_memory_of_loading(tmp_path):
    """The highest resident memory of a process that loads, interpreter and all, against the checkpoint's size.

    On the CPU the loaded model is itself host memory, so the bound leaves 0.3 for everything else.
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    if shutil.disk_usage(tmp_path).free < 6 * 2**30:
        pytest.skip("needs 6 GB of free disk space")
    size = write_large_checkpoint(tmp_path)
    assert size > 2e9
    program = """
        import sys, jax.numpy as jnp
        from vgrout_jax.config import MeshConfig
        from vgrout_jax.model import sharding
        from vgrout_jax.weights import hub
        config = hub.load_config(sys.argv[1], dtype=jnp.bfloat16)
        shardings = None
        if sys.argv[2] == "onto a mesh":
            shardings = sharding.parameter_shardings(sharding.make_mesh(MeshConfig()), config)
        parameters = hub.load_parameters(sys.argv[1], config, shardings)
        assert parameters["layers"]["down_proj"][17, 5, 7] == 18
        status = open("/proc/self/status").read().split()
        print(int(status[status.index("VmHWM:") + 1]) * 1024)
    """
    peaks = [int(run_python(program, str(tmp_path), how)) for how in ("plainly", "onto a mesh")]
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    print(f"peak memory / checkpoint size: {[round(peak / size, 3) for peak in peaks]}")
    assert all(size < peak < 1.3 * size for peak in peaks)


def test_config_layouts_before_and_after_transformers_5(folder):
    tiny.change_config(folder, rope_parameters={"rope_type": "default", "rope_theta": 5e6})
    new = hub.load_config(folder)
    tiny.change_config(folder, rope_parameters=..., rope_theta=5e6, rope_scaling=None, layer_types=...)
    assert new == hub.load_config(folder)
    assert new == qwen3.Qwen3Config(96, 32, 56, 2, 4, 2, 12, rope_theta=5e6, norm_epsilon=1e-6)
    tiny.change_config(folder, rope_scaling={"type": "default"})
    assert new == hub.load_config(folder)


def test_dtype_and_remat_are_the_caller_s(folder):
    config = hub.load_config(folder, dtype=jnp.bfloat16, remat="cheap")
    assert config.dtype == jnp.bfloat16 and config.remat == "cheap"
    assert hub.load_config(folder).remat == "nothing"


def test_tied_checkpoint_that_stores_the_head_too(folder):
    config = hub.load_config(folder)
    expected = hub.load_parameters(folder, config)
    embeddings = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    tiny.change_tensors(folder, lm_head__weight=embeddings.clone())
    actual = hub.load_parameters(folder, config)
    assert "lm_head" not in actual
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("path", ["/no/such/folder", "./none", "no-such-folder", "a/b/c"])
def test_a_path_that_is_no_hub_name_asks_no_network(monkeypatch, path):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(ValueError, match=r"model.path must be a folder or a hub name"):
        hub.load_config(path)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty hub cache, without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def fill_cache(cache: Path, published: Path, pattern: str = "*") -> Path:
    repository = cache / "models--someone--Tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True, exist_ok=True)
    for file in published.glob(pattern):
        shutil.copy(file, snapshot)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text("0" * 40)
    return snapshot


def test_hub_name_in_the_cache_needs_no_network(cache, published):
    snapshot = fill_cache(cache, published)
    assert hub.model_folder("someone/Tiny") == snapshot
    config = hub.load_config("someone/Tiny")
    jax.tree.map(
        np.testing.assert_array_equal,
        hub.load_parameters("someone/Tiny", config),
        hub.load_parameters(published, config),
    )


def test_unreachable_hub_is_one_line(cache):
    with pytest.raises(ValueError, match=r"someone/Tiny is neither .* cannot be downloaded") as error:
        hub.model_folder("someone/Tiny")
    assert "\n" not in str(error.value)


def test_half_filled_cache_is_completed_from_the_hub(cache, published, monkeypatch):
    snapshot, real, downloads = fill_cache(cache, published, "*.json"), huggingface_hub.snapshot_download, []

    def download(name, *, local_files_only=False, **options):
        if local_files_only:
            return real(name, local_files_only=True, **options)
        downloads.append((name, options["allow_patterns"]))
        return str(fill_cache(cache, published))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hub.model_folder("someone/Tiny") == snapshot
    assert hub.model_folder("someone/Tiny") == snapshot  # complete now, and not asked for again
    (name, patterns), *again = downloads
    assert name == "someone/Tiny" and not again
    assert {"*.json", "*.safetensors"} <= set(patterns)  # not the copies in other formats


def test_cache_that_lacks_a_shard_is_incomplete(cache, tmp_path, monkeypatch):
    folder = tiny.save_reference(tmp_path / "sharded", tiny.random_reference(), max_shard_size="10KB")
    snapshot = fill_cache(cache, folder)
    assert hub.model_folder("someone/Tiny") == snapshot
    next(snapshot.glob("*.safetensors")).unlink()
    with pytest.raises(ValueError, match=r"nor complete in the cache"):
        hub.model_folder("someone/Tiny")
