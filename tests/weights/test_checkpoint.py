"""The adapter artefact: exactness, size, and an error for everything that is not what it was."""

import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vgrout_jax.model import lora2r
from vgrout_jax.weights import checkpoint

SHAPES = {"q_proj": (24, 32), "down_proj": (40, 24)}
LAYERS, RANK, SEED = 3, 4, 7


@pytest.fixture(scope="module")
def init():
    return lora2r.init_factors(SHAPES, LAYERS, RANK, seed=SEED)


def random_deltas(init, seed=0, scale=1e-3):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * random.normal(size=leaf.shape), jnp.float32), init)


@pytest.fixture
def saved(tmp_path, init):
    deltas = random_deltas(init)
    path = tmp_path / "adapter"
    checkpoint.save_adapter(path, deltas, init, {"step": 12, "config": {"arm": "routeV"}}, seed=SEED)
    return path, deltas


def edit_record(path, change):
    record = json.loads((path / "metadata.json").read_text())
    change(record)
    (path / "metadata.json").write_text(json.dumps(record))


def assert_equal(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_round_trip_rounds_each_difference_to_bfloat16(saved):
    path, deltas = saved
    loaded, record = checkpoint.load_adapter(path)
    for got, want in zip(jax.tree.leaves(loaded), jax.tree.leaves(deltas), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=2**-8, atol=0)  # half a step of 8 significant bits
    assert record["metadata"] == {"step": 12, "config": {"arm": "routeV"}}
    assert record["adapter"]["rank"] == RANK and record["adapter"]["seed"] == SEED


def test_values_that_bfloat16_holds_return_bit_for_bit(tmp_path, init):
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), random_deltas(init))
    checkpoint.save_adapter(tmp_path / "a", rounded, init, {}, seed=SEED)
    loaded, _ = checkpoint.load_adapter(tmp_path / "a")
    assert_equal(loaded, rounded)


def test_both_blocks_are_kept_and_an_ablated_load_drops_the_quarantine_alone(saved):
    path, _ = saved
    full, _ = checkpoint.load_adapter(path)
    ablated, _ = checkpoint.load_adapter(path, ablated=True)
    for name in SHAPES:
        assert np.abs(full.a[name][:, RANK:]).min() > 0 and np.abs(full.b[name][..., RANK:]).min() > 0
        np.testing.assert_array_equal(ablated.a[name][:, :RANK], full.a[name][:, :RANK])
        np.testing.assert_array_equal(ablated.b[name][..., :RANK], full.b[name][..., :RANK])
        assert not np.any(ablated.a[name][:, RANK:]) and not np.any(ablated.b[name][..., RANK:])


def test_size_on_disk_is_two_bytes_a_trained_number(tmp_path):
    large = lora2r.init_factors({"q_proj": (2048, 2048)}, 4, 16, seed=0)
    checkpoint.save_adapter(tmp_path / "a", random_deltas(large), large, {}, seed=0)
    trained = sum(leaf.size for leaf in jax.tree.leaves(large))
    written = sum(file.stat().st_size for file in (tmp_path / "a").rglob("*") if file.is_file())
    assert 1.5 * trained < written < 2.1 * trained + 10_000
    raw = ocp.PyTreeCheckpointer().restore(tmp_path / "a" / "factors")
    assert {name: leaf.dtype for name, leaf in jax.tree_util.tree_leaves_with_path(raw)} == {
        name: jnp.bfloat16 for name, _ in jax.tree_util.tree_leaves_with_path(raw)
    }


def test_sharded_arrays_are_saved_whole(tmp_path, init):
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    deltas = random_deltas(init)
    sharded = jax.device_put(deltas, NamedSharding(mesh, PartitionSpec(None, None, "data")))
    for name, value in (("host", deltas), ("sharded", sharded)):
        checkpoint.save_adapter(tmp_path / name, value, init, {}, seed=SEED)
    assert_equal(checkpoint.load_adapter(tmp_path / "sharded")[0], checkpoint.load_adapter(tmp_path / "host")[0])


def test_init_given_or_regenerated_is_the_same(saved, init):
    path, _ = saved
    assert_equal(checkpoint.load_adapter(path, init=init)[0], checkpoint.load_adapter(path)[0])
    assert_equal(checkpoint.regenerate_init(checkpoint.read_record(path)), init)


@pytest.mark.parametrize("factor", ["A", "B"])
def test_a_changed_generator_is_an_error_that_names_the_module(saved, init, factor):
    """One number of one layer's factor moved by more than the tolerance, at its end and so among the samples."""
    path, _ = saved

    def moved(distance):
        copy = jax.tree.map(jnp.array, init)
        leaves = copy.a if factor == "A" else copy.b
        leaves["down_proj"] = leaves["down_proj"].at[1, -1, -1].add(distance)
        return copy

    with pytest.raises(ValueError, match=f"initial {factor} of down_proj of layer 1 .* generator of A0/B0"):
        checkpoint.load_adapter(path, init=moved(3e-6))
    checkpoint.load_adapter(path, init=moved(4e-7))  # within what CPU types may differ by


def test_the_generator_is_checked_without_an_init_too(saved, monkeypatch):
    path, _ = saved
    original = lora2r._normals
    monkeypatch.setattr(lora2r, "_normals", lambda seed, name, shape: original(seed, name + "'", shape))
    with pytest.raises(ValueError, match="initial A of .*_proj .* generator of A0/B0 has changed"):
        checkpoint.load_adapter(path)


def test_another_seed_is_an_error(saved):
    path, _ = saved
    other = lora2r.init_factors(SHAPES, LAYERS, RANK, seed=SEED + 1)
    with pytest.raises(ValueError, match="adapter.seed differs"):
        checkpoint.load_adapter(path, init=other)


def test_a_tampered_sample_is_an_error(saved):
    path, _ = saved

    def change(record):
        record["init_samples"]["B of q_proj"][2][5] += 1e-4

    edit_record(path, change)
    with pytest.raises(ValueError, match="initial B of q_proj of layer 2"):
        checkpoint.load_adapter(path)


def loads_exactly_or_fails(path, want):
    """Whether the load fails; if it does not, every value must be right (Orbax keeps some files twice)."""
    try:
        assert_equal(checkpoint.load_adapter(path)[0], want)
    except ValueError as error:
        assert "is damaged" in str(error) and "\n" not in str(error)
        return True
    return False


# A read that fails leaves callbacks of Orbax for an event loop that is closed by then.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "zero"])
def test_damage_to_any_array_file_is_never_loaded(saved, damage):
    path, _ = saved
    want, _ = checkpoint.load_adapter(path)
    files = [file for file in (path / "factors").rglob("*") if file.is_file()]
    failures = 0
    for file in files:
        whole = file.read_bytes()
        middle = len(whole) // 2
        file.write_bytes(
            {
                "cut": whole[:-10],
                "empty": b"",
                "flip": whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :],
                "zero": bytes(len(whole)),
            }[damage]
        )
        failures += loads_exactly_or_fails(path, want)
        file.write_bytes(whole)
    assert failures > 0
    assert not loads_exactly_or_fails(path, want)  # put back, it is whole again


def test_missing_arrays_are_an_error(saved):
    path, _ = saved
    shutil.rmtree(path / "factors")
    with pytest.raises(ValueError, match="is damaged: factors/ cannot be read"):
        checkpoint.load_adapter(path)


def test_arrays_of_another_adapter_are_an_error(saved, tmp_path, init):
    path, _ = saved
    checkpoint.save_adapter(tmp_path / "other", random_deltas(init, seed=1), init, {}, seed=SEED)
    shutil.rmtree(path / "factors")
    shutil.copytree(tmp_path / "other" / "factors", path / "factors")
    with pytest.raises(ValueError, match="the A of .*_proj has another checksum"):
        checkpoint.load_adapter(path)


def test_damaged_metadata_is_an_error(saved):
    path, _ = saved
    edit_record(path, lambda record: record.pop("sha256"))
    with pytest.raises(ValueError, match="metadata.json lacks sha256"):
        checkpoint.load_adapter(path)
    edit_record(path, lambda record: record.update(sha256={}, format=99))
    with pytest.raises(ValueError, match="has format 99"):
        checkpoint.load_adapter(path)
    (path / "metadata.json").write_text('{"format": 1, "ada')
    with pytest.raises(ValueError, match="metadata.json cannot be read"):
        checkpoint.load_adapter(path)


def test_a_missing_artefact_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("absent", "file"):
        with pytest.raises(ValueError, match="adapter must be a folder written by a run"):
            checkpoint.load_adapter(tmp_path / name)


@pytest.mark.parametrize(
    ("shapes", "layers", "rank", "message"),
    [
        (SHAPES, LAYERS, 8, "adapter.rank must be 4, as in the artefact .*, got 8"),
        (SHAPES, 5, RANK, "it has 3 layers, this model 5"),
        (
            {**SHAPES, "q_proj": (24, 48)},
            LAYERS,
            RANK,
            r"q_proj \[d_in, d_out\] is \[24, 32\] there, \[24, 48\]",
        ),
        ({"q_proj": (24, 32)}, LAYERS, RANK, r"down_proj \[d_in, d_out\] is \[40, 24\] there, None"),
    ],
)
def test_another_rank_or_model_is_an_error_that_names_the_field(saved, shapes, layers, rank, message):
    path, _ = saved
    with pytest.raises(ValueError, match=message):
        checkpoint.load_adapter(path, init=lora2r.init_factors(shapes, layers, rank, seed=SEED))


def test_deltas_that_are_not_finite_are_not_saved(tmp_path, init):
    deltas = random_deltas(init)
    deltas.b["q_proj"] = deltas.b["q_proj"].at[1, 2, 3].set(jnp.inf)
    with pytest.raises(ValueError, match="NaN or infinity in the B of q_proj"):
        checkpoint.save_adapter(tmp_path / "a", deltas, init, {}, seed=SEED)
    assert os.listdir(tmp_path) == []


def test_deltas_of_another_shape_are_not_saved(tmp_path, init):
    other = lora2r.init_factors(SHAPES, LAYERS, 2 * RANK, seed=SEED)
    with pytest.raises(ValueError, match="same shapes"):
        checkpoint.save_adapter(tmp_path / "a", random_deltas(other), init, {}, seed=SEED)


def test_a_save_that_fails_leaves_the_previous_artefact_and_no_remains(saved, init, monkeypatch):
    path, _ = saved
    before, _ = checkpoint.load_adapter(path)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.files, "write_json", fail)  # after the arrays are on disk
    with pytest.raises(ValueError, match="cannot be written .No space left on device"):
        checkpoint.save_adapter(path, random_deltas(init, seed=1), init, {}, seed=SEED)
    assert os.listdir(path.parent) == ["adapter"]
    assert_equal(checkpoint.load_adapter(path)[0], before)


def test_a_move_that_fails_puts_the_previous_artefact_back(saved, init, monkeypatch):
    path, _ = saved
    before, _ = checkpoint.load_adapter(path)
    rename = Path.rename

    def fail(source, target):
        if source.name.endswith(".tmp") and target == path:
            raise OSError(5, "Input/output error")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ValueError, match="cannot be written .Input/output error"):
        checkpoint.save_adapter(path, random_deltas(init, seed=1), init, {}, seed=SEED)
    assert os.listdir(path.parent) == ["adapter"]
    assert_equal(checkpoint.load_adapter(path)[0], before)


def test_a_second_save_replaces_the_first(saved, init):
    path, _ = saved
    checkpoint.save_adapter(path, random_deltas(init, seed=1), init, {"step": 13}, seed=SEED)
    deltas, record = checkpoint.load_adapter(path)
    assert record["metadata"] == {"step": 13}
    np.testing.assert_allclose(deltas.a["q_proj"], random_deltas(init, seed=1).a["q_proj"], rtol=2**-8)
    assert os.listdir(path.parent) == ["adapter"]


def test_a_path_that_cannot_be_written_is_one_clear_line(tmp_path, init):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written") as caught:
        checkpoint.save_adapter(tmp_path / "file" / "adapter", random_deltas(init), init, {}, seed=SEED)
    assert "\n" not in str(caught.value)


def test_code_version_names_the_package_and_a_whole_commit():
    version = checkpoint.code_version()
    assert version["package"]
    if version["commit"] is not None:  # absent where the package does not run from a checkout
        assert len(version["commit"].removesuffix("+changes")) == 40
