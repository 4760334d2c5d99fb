"""Where every array lives: one table from logical axes to the mesh (data, fsdp, tensor).

Batches are split over data and fsdp, weights over fsdp (their model-width axis) and tensor (heads,
feed-forward width, vocabulary). An axis that the mesh does not divide is replicated.
"""

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from vgrout_jax.config import MeshConfig
from vgrout_jax.model import lora2r, parameters, qwen3

MESH_AXES = ("data", "fsdp", "tensor")

LOGICAL_AXES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "adapter_in": "fsdp",
    "adapter_out": "fsdp",
    "layers": None,
    "rank": None,
}


def make_mesh(config: MeshConfig) -> Mesh:
    """The device mesh.

    Raises:
        ValueError: if the axes' product is not the number of devices, or the run spans several hosts.
    """
    if jax.process_count() > 1:
        raise ValueError(
            f"a run must be one process, got {jax.process_count()}: files and grading are not split over hosts yet; "
            "give each host a run of its own (docs/howto/cluster.md)"
        )
    shape = (config.data, config.fsdp, config.tensor)
    if np.prod(shape) != jax.device_count():
        raise ValueError(
            f"mesh.data * mesh.fsdp * mesh.tensor must be the number of devices, {jax.device_count()}, "
            f"got {' * '.join(map(str, shape))}; set the mesh.* fields"
        )
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def sharding_of(mesh: Mesh | AbstractMesh, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> NamedSharding:
    """The sharding of one array from its logical axes; axes that do not divide evenly are replicated."""

    def mesh_axis(name: str | None, size: int) -> str | tuple[str, ...] | None:
        target = LOGICAL_AXES[name] if name is not None else None
        if target is None:
            return None
        parts = np.prod([mesh.shape[axis] for axis in ((target,) if isinstance(target, str) else target)])
        return target if size % parts == 0 else None

    return NamedSharding(mesh, PartitionSpec(*map(mesh_axis, axes, shape)))


def batch_devices(mesh: Mesh | AbstractMesh) -> int:
    """Over how many devices the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(mesh: Mesh | AbstractMesh, config: qwen3.Qwen3Config) -> dict:
    """Shardings in the structure of the base parameters."""
    return jax.tree.map(
        lambda row: sharding_of(mesh, row.axes, row.shape),
        parameters.parameter_table(config),
        is_leaf=parameters.is_parameter,
    )


def factor_shardings(mesh: Mesh | AbstractMesh, factors: lora2r.Factors) -> lora2r.Factors:
    """Shardings in the structure of the adapter's factors."""

    def of(name: str, leaves: dict) -> dict:
        return {k: sharding_of(mesh, lora2r.FACTOR_AXES[name], leaf.shape) for k, leaf in leaves.items()}

    return lora2r.Factors(a=of("a", factors.a), b=of("b", factors.b))


def state_shardings(mesh: Mesh | AbstractMesh, state: object) -> object:
    """Shardings of a train state: differences and Adam moments as the factors, everything else replicated."""

    def of(path: tuple, leaf: jax.Array | np.ndarray | jax.ShapeDtypeStruct) -> NamedSharding:
        factor = next((key.name for key in path if getattr(key, "name", None) in lora2r.FACTOR_AXES), None)
        return replicated(mesh) if factor is None else sharding_of(mesh, lora2r.FACTOR_AXES[factor], leaf.shape)

    return jax.tree_util.tree_map_with_path(of, state)


def batch_shardings(mesh: Mesh | AbstractMesh, batch: object) -> object:
    """Shardings that split every leaf's first axis, the rollouts."""

    def of(leaf: jax.Array | np.ndarray | jax.ShapeDtypeStruct) -> NamedSharding:
        return sharding_of(mesh, ("batch",) + (None,) * (leaf.ndim - 1), leaf.shape)

    return jax.tree.map(of, batch)
