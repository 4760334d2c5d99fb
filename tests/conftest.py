"""Shared fixtures: runtime shape checks, key-reuse checks and the folder of shared data.

Most of the suite's time is XLA's compiler. It is told not to spend effort on code that runs once; end-to-end
tests run the program in a process of its own, as users do, with the compiler's usual effort.
"""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true " + os.environ.get("XLA_FLAGS", "")
)

import jax
import pytest

if importlib.util.find_spec("beartype") and importlib.util.find_spec("jaxtyping"):
    from jaxtyping import install_import_hook

    import tests.typecheck  # noqa: F401  the hook finds it by name

    install_import_hook("vgrout_jax", "tests.typecheck.check")

jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs() -> Iterator[None]:
    """A module's programs are of no use to the next one, and would add up to gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real problems, completions and pairs; tests that need it are skipped where it is absent."""
    root = Path(os.environ.get("VGROUT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (root / "data").is_dir():
        pytest.skip(f"no shared data at {root} (set VGROUT_SHARED to the folder that holds data/)")
    return root / "data"
