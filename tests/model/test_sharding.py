"""The sharding table, and that eight devices compute what one does."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from vgrout_jax.config import MeshConfig
from vgrout_jax.model import qwen3, sharding


def abstract_mesh(data: int, fsdp: int, tensor: int) -> AbstractMesh:
    return AbstractMesh((data, fsdp, tensor), sharding.MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def test_every_parameter_of_the_4b_model_is_split_where_the_mesh_allows():
    config = qwen3.Qwen3Config(151936, 2560, 9728, 36, 32, 8, 128)
    shardings = sharding.parameter_shardings(abstract_mesh(1, 4, 2), config)
    assert shardings["embed"].spec == PartitionSpec("tensor", "fsdp")
    layers = shardings["layers"]
    assert layers["q_proj"].spec == PartitionSpec(None, "fsdp", "tensor")
    assert layers["k_proj"].spec == PartitionSpec(None, "fsdp", "tensor")
    assert layers["o_proj"].spec == PartitionSpec(None, "tensor", "fsdp")
    assert layers["down_proj"].spec == PartitionSpec(None, "tensor", "fsdp")
    assert layers["input_norm"].spec == PartitionSpec(None, None)
    split = [s for s in jax.tree.leaves(shardings) if any(axis is not None for axis in s.spec)]
    assert len(split) == 8  # the embedding and the seven maps


def test_axis_that_does_not_divide_is_replicated():
    mesh = abstract_mesh(1, 3, 2)
    assert sharding.sharding_of(mesh, ("embed", "heads"), (64, 96)).spec == PartitionSpec(None, "tensor")
    assert sharding.sharding_of(mesh, ("batch",), (9,)).spec == PartitionSpec(("data", "fsdp"))
    assert sharding.sharding_of(mesh, ("batch",), (8,)).spec == PartitionSpec(None)


def test_mesh_must_use_every_device():
    with pytest.raises(ValueError, match=r"mesh.data \* mesh.fsdp \* mesh.tensor must be the number of devices"):
        sharding.make_mesh(MeshConfig(data=3, fsdp=5, tensor=7))


def run_on_eight_devices(shape: str) -> None:
    root = Path(__file__).resolve().parents[2]
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "tests.eight_devices", shape]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "equal" in done.stdout


@pytest.mark.slow
def test_eight_devices_equal_one():
    run_on_eight_devices("2,2,2")


@pytest.mark.long
@pytest.mark.parametrize("shape", ["8,1,1", "1,8,1", "1,1,8", "4,1,2", "1,2,4"])
def test_other_meshes_equal_one_device(shape):
    run_on_eight_devices(shape)
