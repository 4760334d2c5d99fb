"""The adapter artefact: what training changed, in bfloat16, and what is needed to trust it.

    PATH/factors/       Orbax: dA and dB of every module, bfloat16
    PATH/metadata.json  config, step, code version, adapter shape, samples of A0 and B0, checksums

A0 and B0 are not stored: they are regenerated from the seed, and samples of them are compared on load, so
that a generator that has changed is an error and not a silent drift (docs/method.md section 15).
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgrout_jax.common import files
from vgrout_jax.model import lora2r

FORMAT = 1  # of the artefact; raised when a reader of the old one would misread the new one
SAMPLES = 8  # values of each layer's A0 and B0 of a module
SAMPLE_TOLERANCE = 1e-6  # absolute; what may differ between the mathematics libraries of two CPU types
_REMEDY = "copy or save it again"

Tree = dict[str, dict[str, np.ndarray]]  # {"a": module -> [L, 2r, d_in], "b": module -> [L, d_out, 2r]}


def save_adapter(
    path: str | Path, deltas: lora2r.Factors, init: lora2r.Factors, metadata: Mapping[str, Any], *, seed: int
) -> None:
    """Writes the artefact in one move; one that is already there is replaced once the new one is whole.

    Args:
        path: folder to create.
        deltas: dA and dB, any float dtype, sharded or not; stored in bfloat16.
        init: A0 and B0, of which samples are recorded.
        metadata: JSON values that are returned on load: the full config, the step and what else identifies
            the run. The code version is added.
        seed: `adapter.seed`, from which `init` was drawn.

    Raises:
        ValueError: if `deltas` and `init` differ in shape, a value is not finite, or the folder cannot be
            written.
    """
    initial = _host_tree(init, jnp.float32)
    stored = _host_tree(deltas, jnp.bfloat16)
    if _shape_of(stored) != _shape_of(initial):
        raise ValueError("deltas and init must have the same shapes; build both for the same model and rank")
    for name, leaf in _named_leaves(stored):
        if not np.isfinite(leaf.astype(np.float32)).all():
            raise ValueError(f"deltas must be finite, got NaN or infinity in the {name}; nothing was saved")
    record = {**_describe(stored, initial, seed), "metadata": dict(metadata)}
    path = Path(path).absolute()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write_factors(temporary / "factors", stored)
        files.write_json(temporary / "metadata.json", record)
        _replace_folder(temporary, path)
    except OSError as error:
        raise ValueError(f"adapter {path} cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_adapter(
    path: str | Path, *, init: lora2r.Factors | None = None, ablated: bool = False
) -> tuple[lora2r.Factors, dict[str, Any]]:
    """Reads an artefact and checks it against the initial values that it belongs to.

    Args:
        path: folder written by `save_adapter`.
        init: A0 and B0 of the model that the adapter will be used with; None: regenerated from the metadata.
        ablated: return the deployed adapter, the quarantine's differences set to zero.

    Returns:
        (deltas, record): dA and dB in float32, and the record in metadata.json, whose field `metadata` is what
        was given to `save_adapter`.

    Raises:
        ValueError: if the artefact is missing or damaged, its rank or the model's shape is another, or the
            samples of A0 and B0 are not those of `init`.
    """
    path = Path(path).absolute()
    record = read_record(path)
    initial = _host_tree(regenerate_init(record) if init is None else init, jnp.float32)
    _check_shape(path, record["adapter"], _shape_of(initial))
    _check_samples(path, record["init_samples"], initial)
    stored = _read_factors(path, initial)
    for name, leaf in _named_leaves(stored):
        if _digest(leaf) != record["sha256"].get(name):
            raise ValueError(f"adapter {path} is damaged: the {name} has another checksum; {_REMEDY}")
    deltas = lora2r.Factors(**jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), stored))
    return (lora2r.ablate(deltas) if ablated else deltas), record


def read_record(path: str | Path) -> dict[str, Any]:
    """The artefact's metadata.json: format, code_version, adapter, init_samples, sha256, metadata.

    Raises:
        ValueError: if there is no artefact at `path`, or its metadata is damaged or of another format.
    """
    file = Path(path) / "metadata.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"adapter must be a folder written by a run, but {file} is missing") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"adapter {path} is damaged: metadata.json cannot be read; {_REMEDY}") from error
    missing = {"format", "adapter", "init_samples", "sha256", "metadata"} - set(record)
    if missing:
        raise ValueError(f"adapter {path} is damaged: metadata.json lacks {', '.join(sorted(missing))}; {_REMEDY}")
    if record["format"] != FORMAT:
        raise ValueError(f"adapter {path} has format {record['format']}, this version reads {FORMAT}")
    return record


def regenerate_init(record: Mapping[str, Any]) -> lora2r.Factors:
    """A0 and B0 of an artefact, drawn anew from the seed and the shapes in its record."""
    adapter = record["adapter"]
    shapes = {name: (int(d_in), int(d_out)) for name, (d_in, d_out) in adapter["modules"].items()}
    return lora2r.init_factors(shapes, adapter["layers"], adapter["rank"], seed=adapter["seed"])


def code_version() -> dict[str, str | None]:
    """The package's version, and the git commit if it runs from a checkout (`+changes` if edited)."""
    package = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(package), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # An installed copy may lie inside some other repository (a virtual environment in a checkout).
    tracked = git("ls-files", "--error-unmatch", "weights/checkpoint.py")
    commit = git("rev-parse", "HEAD") if tracked else None
    if commit and git("status", "--porcelain", "--untracked-files=no", "."):
        commit += "+changes"
    try:
        version = importlib.metadata.version("vgrout_jax")
    except importlib.metadata.PackageNotFoundError:
        version = None
    return {"package": version, "commit": commit}


def _host_tree(factors: lora2r.Factors, dtype: Any) -> Tree:
    return jax.tree.map(lambda leaf: np.asarray(jax.device_get(leaf)).astype(dtype), {"a": factors.a, "b": factors.b})


def _describe(stored: Tree, initial: Tree, seed: int) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "code_version": code_version(),
        "adapter": {**_shape_of(stored), "seed": seed},
        "init_samples": {name: _samples(leaf) for name, leaf in _named_leaves(initial)},
        "sha256": {name: _digest(leaf) for name, leaf in _named_leaves(stored)},
    }


def _named_leaves(tree: Tree) -> Iterator[tuple[str, np.ndarray]]:
    for name in tree["a"]:
        yield f"A of {name}", tree["a"][name]
        yield f"B of {name}", tree["b"][name]


def _shape_of(tree: Tree) -> dict[str, Any]:
    """Rank, layers and module -> [d_in, d_out], as the metadata holds them."""
    first = next(iter(tree["a"].values()))
    modules = {name: [tree["a"][name].shape[-1], tree["b"][name].shape[-2]] for name in tree["a"]}
    return {"rank": first.shape[-2] // 2, "layers": first.shape[0], "modules": modules}


def _samples(leaf: np.ndarray) -> list[list[float]]:
    """For each layer `SAMPLES` values, evenly spread over the flattened factor, its ends included."""
    flat = leaf.reshape(leaf.shape[0], -1)
    places = np.linspace(0, flat.shape[1] - 1, SAMPLES).astype(int)
    return flat[:, places].tolist()


def _digest(leaf: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest()


def _check_shape(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if stored["rank"] != wanted["rank"]:
        raise ValueError(f"adapter.rank must be {stored['rank']}, as in the artefact {path}, got {wanted['rank']}")
    if stored["layers"] != wanted["layers"]:
        raise ValueError(
            f"adapter {path} belongs to another model (model.path): it has {stored['layers']} layers, "
            f"this model {wanted['layers']}"
        )
    for name in {**stored["modules"], **wanted["modules"]}:
        old, new = stored["modules"].get(name), wanted["modules"].get(name)
        if old != new:
            raise ValueError(
                f"adapter {path} belongs to another model (model.path): {name} [d_in, d_out] is {old} there, "
                f"{new} in this model"
            )


def _check_samples(path: Path, stored: Mapping[str, Any], initial: Tree) -> None:
    for name, leaf in _named_leaves(initial):
        now, then = np.array(_samples(leaf)), np.array(stored.get(name, []), np.float64)
        if now.shape == then.shape and np.all(np.abs(now - then) <= SAMPLE_TOLERANCE):
            continue
        layer = "" if now.shape != then.shape else f" of layer {int(np.abs(now - then).max(axis=1).argmax())}"
        raise ValueError(
            f"adapter {path}: the initial {name}{layer} is not the one it was trained with: adapter.seed "
            "differs or the generator of A0/B0 has changed (metadata.json holds seed and code version)"
        )


def _write_factors(folder: Path, stored: Tree) -> None:
    import orbax.checkpoint as ocp  # here, because the import takes about a second

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, stored)
        checkpointer.wait_until_finished()


def _read_factors(path: Path, initial: Tree) -> Tree:
    """dA and dB as bfloat16 NumPy arrays in the shapes of `initial`."""
    import orbax.checkpoint as ocp

    like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, jnp.bfloat16), initial)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(path / "factors", like)
    except Exception as error:  # Orbax and TensorStore raise a dozen kinds for files that are cut or gone
        raise ValueError(f"adapter {path} is damaged: factors/ cannot be read; {_REMEDY}") from error


def _replace_folder(new: Path, path: Path) -> None:
    """Moves `new` to `path`; what was there is deleted only when the new one is in place."""
    if not path.exists():
        new.rename(path)
        return
    previous = path.with_name(f".{path.name}.{os.getpid()}.previous")
    path.rename(previous)
    try:
        new.rename(path)
    except OSError:
        previous.rename(path)
        raise
    shutil.rmtree(previous)
