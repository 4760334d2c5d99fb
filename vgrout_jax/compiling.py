"""How the large programs are compiled for the device that they run on."""

from typing import Any


def compiler_options(device: Any) -> dict[str, Any] | None:
    """Options of XLA for `jax.jit(compiler_options=...)`, None where its own are taken.

    On NVIDIA GPUs XLA writes kernels of its own for matrix products and tries dozens of each, and of every other
    fusion, before it chooses: minutes of compilation. The vendor's library does these products as fast.
    """
    if device.platform != "gpu" or "rocm" in str(getattr(device.client, "platform_version", "")):
        return None
    return {"xla_gpu_enable_triton_gemm": False, "xla_gpu_experimental_enable_fusion_autotuner": False}
