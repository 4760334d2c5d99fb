"""Shared fixtures: runtime shape checks, key-reuse checks and the folder of shared data.

Most of the suite's time is XLA's compiler. It is told not to spend effort on code that runs once, and what one run of
the program has compiled the next one reads from a cache, which all processes of a session share. Where a test needs
the compiler's usual effort, as users have it, it starts a process without these flags.
"""

import atexit
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

if "PYTEST_XDIST_WORKER" not in os.environ and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled = tempfile.mkdtemp(prefix="vgrout-tests-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters "  # the older ones compile 3 times faster
    + os.environ.get("XLA_FLAGS", "")
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
