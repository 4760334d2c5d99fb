"""Shared fixtures: runtime shape checks, key-reuse checks and the folder of shared data.

Most of the suite's time is XLA's compiler. It is told not to spend effort on code that runs once, and what one run of
the program has compiled the next one reads from a cache, which all processes of a session share. Where a test needs
the compiler's usual effort, as users have it, it starts a process without these flags.
"""

import atexit
import gc
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
gc.set_threshold(100_000, 50, 50)  # tracing makes so many objects that a tenth of it would be the collector's


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that at the end no core waits for the last of them."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs() -> Iterator[None]:
    """A module's programs are of no use to the next one, and would add up to gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def one_program() -> Iterator[None]:
    """Runs of equal configurations share their programs, so that each is traced once; patched passes are others."""
    from vgrout_jax.rl.schedule.fast import FastScorer
    from vgrout_jax.run import build

    original, made = build._programs, {}

    def programs(config, *inputs, **more):
        key = (repr(config), FastScorer.each, FastScorer.total)
        if key not in made:
            made[key] = original(config, *inputs, **more)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_programs", programs)
        yield


@pytest.fixture(scope="module")
def frozen():
    """The tiny model."""
    from tests import tiny

    return tiny.frozen(tiny.model())


@pytest.fixture(scope="module")
def deltas(frozen):
    """Differences of the tiny model that have moved."""
    from tests import tiny

    return tiny.moved(frozen.init, 0.05)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real problems, completions and pairs; tests that need it are skipped where it is absent."""
    root = Path(os.environ.get("VGROUT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (root / "data").is_dir():
        pytest.skip(f"no shared data at {root} (set VGROUT_SHARED to the folder that holds data/)")
    return root / "data"
