"""What the device can do at most: matrix products and memory bandwidth, measured in the same run, or published.

    python -m benchmarks.roofline --dtype=float32

On the CPU a rate is per CPU second of all threads together, so that other programs change it little and one thread
is held against one thread (`taskset -c 0` leaves a process one core). On an accelerator it is per second of wall
time, and where the device is a known one its published peak is what benchmarks are held against: the dense bfloat16
rate for bfloat16, and the bandwidth. A float32 product has no such entry, since it may run in other formats; the
rate that was measured takes its place.
"""

import argparse
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import tables, timing

# Part of the device's name -> dense bfloat16 operations and bytes per second, from the vendor's data sheets.
PUBLISHED = {
    "H200": (989e12, 4.8e12),
    "H100 80GB HBM3": (989e12, 3.35e12),
    "A100-SXM4-80GB": (312e12, 2.04e12),
}


@dataclasses.dataclass(frozen=True)
class Roof:
    """The rates that figures are held against.

    Attributes:
        flops: operations per second.
        bandwidth: bytes per second, read and written together.
        source: "published" or "measured".
        clock: "cpu" or "wall", whose seconds they are per.
        measured_flops, measured_bandwidth: of this run, whatever the source.
        dtype: of the matrix products.
    """

    flops: float
    bandwidth: float
    source: str
    clock: str
    measured_flops: float
    measured_bandwidth: float
    dtype: str

    def seconds(self, cost: timing.Cost) -> float:
        """The seconds of a cost that these rates speak of: of the CPU, or of wall time without compilation."""
        return cost.cpu if self.clock == "cpu" else cost.running

    def line(self) -> str:
        measured = f"{self.measured_flops / 1e12:.3g} TFLOP/s, {self.measured_bandwidth / 1e9:,.3g} GB/s"
        against = f"{self.flops / 1e12:.3g} TFLOP/s, {self.bandwidth / 1e9:,.3g} GB/s"
        return f"roofline of {self.dtype}, per {self.clock} second: {against} ({self.source}); measured: {measured}"


def published(kind: str) -> tuple[float, float] | None:
    """The published peaks of a device by its name, None for one that is not known."""
    return next((peaks for name, peaks in PUBLISHED.items() if name in kind), None)


def measure(compilations: timing.Compilations, dtype: Any = jnp.float32) -> Roof:
    """Measures the device that JAX computes on."""
    device = jax.devices()[0]
    small = device.platform == "cpu"
    clock = "cpu" if small else "wall"
    flops = _matmul_rate(compilations, clock, dtype, 1024 if small else 8192)
    bandwidth = _copy_rate(compilations, clock, 2**26 if small else 2**30)
    known = None if small else published(device.device_kind)
    name = jnp.dtype(dtype).name
    if known is None:
        return Roof(flops, bandwidth, "measured", clock, flops, bandwidth, name)
    peak = known[0] if name == "bfloat16" else flops
    return Roof(peak, known[1], "published", clock, flops, bandwidth, name)


def _matmul_rate(compilations: timing.Compilations, clock: str, dtype: Any, size: int) -> float:
    """Operations per second of a square product of random numbers; on zeros some devices run faster."""
    left = jax.random.normal(jax.random.key(0), (size, size), dtype)
    return 2 * size**3 / _least(compilations, clock, jax.jit(lambda a: a @ a), left)


def _copy_rate(compilations: timing.Compilations, clock: str, count: int) -> float:
    """Bytes per second of reading and writing an array that fits no cache."""
    array = jax.random.normal(jax.random.key(0), (count,), jnp.float32)
    return 2 * array.nbytes / _least(compilations, clock, jax.jit(lambda a: a + 1.0), array)


def _least(compilations: timing.Compilations, clock: str, function: Any, argument: Any, repeats: int = 10) -> float:
    """The least seconds of several calls, each of enough work that its start does not count."""
    jax.block_until_ready(function(argument))
    least, calls = math.inf, 8 if clock == "wall" else 1
    for _ in range(repeats):
        _, cost = compilations.measured(lambda: [function(argument) for _ in range(calls)])
        least = min(least, (cost.cpu if clock == "cpu" else cost.wall) / calls)
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    roof = measure(timing.Compilations(), jnp.dtype(options.dtype))
    print(roof.line())
    tables.write(options.json, {"roofline": dataclasses.asdict(roof)})


if __name__ == "__main__":
    main()
