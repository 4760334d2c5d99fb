"""How the large programs are traced, and compiled for the device that they run on."""

import concurrent.futures
import gc
from collections.abc import Callable, Hashable
from typing import Any

import jax


def collect_rarely() -> None:
    """Has Python look for garbage once in 50,000 new objects, for a process that traces large programs.

    Tracing makes millions of objects, nearly all of which stay: looking through them again and again, as Python does
    by itself, is a tenth to a sixth of its time.
    """
    gc.set_threshold(50_000, 10, 10)


def is_nvidia(device: Any) -> bool:
    """Whether a device is a GPU that CUDA runs."""
    return device.platform == "gpu" and "cuda" in device.client.platform_version


def compiler_options(device: Any) -> dict[str, Any] | None:
    """Options of XLA for `jax.jit(compiler_options=...)`, None where its own are taken.

    On NVIDIA GPUs XLA writes kernels of its own for matrix products and tries dozens of each, and of every other
    fusion, before it chooses: minutes of compilation. The vendor's library does these products as fast.
    """
    if not is_nvidia(device):
        return None
    return {
        "xla_gpu_enable_triton_gemm": False,
        "xla_gpu_experimental_enable_fusion_autotuner": False,
        "xla_gpu_enable_dynamic_slice_fusion": False,
    }


class Ahead:
    """A jitted function whose programs can be compiled while other work runs.

    `begin` starts it in a thread; a call with arguments of those shapes waits for that, and other calls compile as
    they always do. The process ends when what was begun has ended, as it would if it had compiled by itself.
    """

    def __init__(self, function: Callable[..., Any]):
        """`function`: of `jax.jit`."""
        self._function = function
        self._begun: dict[Hashable, concurrent.futures.Future] = {}
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="compile")

    def begin(self, *arguments: Any) -> None:
        """Starts to compile for such arguments, arrays or `jax.ShapeDtypeStruct`s, unless it has before."""
        shapes = _shapes(arguments)
        if shapes not in self._begun:
            self._begun[shapes] = self._thread.submit(lambda: self._function.lower(*arguments).compile())

    def __call__(self, *arguments: Any) -> Any:
        """The function's result.

        Raises:
            Exception: what tracing or compiling for these arguments has raised.
        """
        begun = self._begun.get(_shapes(arguments))
        if begun is not None:
            begun.result()  # the compiled program is the function's own, which finds it by itself
        return self._function(*arguments)


def _shapes(arguments: tuple) -> Hashable:
    leaves, structure = jax.tree.flatten(arguments)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
