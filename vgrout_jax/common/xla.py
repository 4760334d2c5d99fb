"""How the large programs are traced, and compiled for the device that they run on."""

import gc
from typing import Any


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
