"""Shared fixtures: runtime shape checks, key-reuse checks and the folder of shared data."""

import importlib.util
import os
from pathlib import Path

import jax
import pytest

if importlib.util.find_spec("beartype") and importlib.util.find_spec("jaxtyping"):
    from jaxtyping import install_import_hook

    install_import_hook("vgrout_jax", "beartype.beartype")

jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real problems, completions and pairs; tests that need it are skipped where it is absent."""
    root = Path(os.environ.get("VGROUT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (root / "data").is_dir():
        pytest.skip(f"no shared data at {root} (set VGROUT_SHARED to the folder that holds data/)")
    return root / "data"
