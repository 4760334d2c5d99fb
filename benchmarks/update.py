"""The optimiser step: work, memory and time of an arm, against the floor that its forward and backward passes set.

    python benchmarks/update.py --shape=cpu                time and work, routeV over none
    python benchmarks/update.py --shape=qwen3-4b --look    work and memory of the compiled program; nothing allocated

The floor counts 2 operations a weight and token for a forward and as many for a backward pass to the activations;
the frozen weights need no gradient of their own. none: one of each, and with KL one forward of the base. routeV: two
of each (the probe's and the masked one), one forward for half of the rows, whose sampling policy is not the probe's,
and the base's. Attention, the adapter and its gradients come on top, as does what a rematerialised layer does twice.
"""

import argparse
import json
import math
import time

import flops
import jax
import numpy as np
import shapes

from vgrout_jax.model import qwen3
from vgrout_jax.rl.optim import make_optimizer
from vgrout_jax.rl.step import build_step


def weights(model: qwen3.Qwen3Config) -> int:
    """Weights that a token is multiplied with: the layers' maps, and the head."""
    return model.num_layers * sum(math.prod(pair) for pair in model.module_shapes().values()) + (
        model.vocab_size * model.hidden_size
    )


def floor(shape: shapes.Shape, arm: str, *, kl: bool) -> int:
    """Operations that the arm's passes cannot do without, every position counted."""
    model, rows = shape.model, shape.rows
    layer = (
        2 * rows * (shape.prompt_tokens + shape.new_tokens) * (weights(model) - model.vocab_size * model.hidden_size)
    )
    head = 2 * rows * shape.new_tokens * model.vocab_size * model.hidden_size
    forward = layer + head
    passes = {"none": 2.0, "absorb": 2.0}.get(arm, 4.5)
    return int((passes + kl) * forward)


def look(shape: shapes.Shape, arm: str, *, kl: bool) -> dict[str, float]:
    """The compiled program's work and memory, from shapes alone."""
    config = shapes.configuration(shape, arm, kl=kl)
    step = build_step(config, shape.model, make_optimizer(config.optim, config.train.steps), shapes.mesh())
    arguments = shapes.abstract_inputs(shape, config).arguments()
    started = time.perf_counter()
    lowered = step.lower(*arguments)
    traced = time.perf_counter()
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    return {
        "flops": flops.matmul_flops(step, *arguments),
        "floor": floor(shape, arm, kl=kl),
        "trace_s": traced - started,
        "compile_s": time.perf_counter() - traced,
        "arguments_gb": memory.argument_size_in_bytes / 1e9,
        "temporaries_gb": memory.temp_size_in_bytes / 1e9,
        "donated_gb": memory.alias_size_in_bytes / 1e9,
    }


def measure(shape: shapes.Shape, arm: str, *, kl: bool, repeats: int) -> dict[str, float]:
    """CPU and wall seconds of a step, the best of `repeats` after one that compiles."""
    config = shapes.configuration(shape, arm, kl=kl)
    step = build_step(config, shape.model, make_optimizer(config.optim, config.train.steps), shapes.mesh())
    state, *rest = shapes.step_inputs(shape, config).arguments()
    state, _ = jax.block_until_ready(step(state, *rest))
    cpu, wall = [], []
    for _ in range(repeats):
        before = time.process_time(), time.perf_counter()
        state, _ = jax.block_until_ready(step(state, *rest))
        cpu.append(time.process_time() - before[0])
        wall.append(time.perf_counter() - before[1])
    return {"cpu_s": min(cpu), "wall_s": min(wall)}


def matmul_rate(size: int = 1024, repeats: int = 10) -> float:
    """Operations per CPU second of a float32 matrix product, the best of several."""
    left = jax.numpy.asarray(np.random.default_rng(0).standard_normal((size, size)), jax.numpy.float32)
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(left))
    best = math.inf
    for _ in range(repeats):
        before = time.process_time()
        jax.block_until_ready(product(left))
        best = min(best, time.process_time() - before)
    return 2 * size**3 / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=shapes.SHAPES, default="tiny")
    parser.add_argument("--arms", default="none,routeV")
    parser.add_argument("--no-kl", action="store_true", help="beta 0: no forward of the base model")
    parser.add_argument("--look", action="store_true", help="compile and look at the program; run nothing")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    shape, kl, results = shapes.SHAPES[options.shape], not options.no_kl, {}
    rate = None if options.look else matmul_rate()
    for arm in options.arms.split(","):
        found = look(shape, arm, kl=kl)
        if not options.look:
            found |= measure(shape, arm, kl=kl, repeats=options.repeats)
            found["floor_s"] = found["floor"] / rate
            found["over_floor"] = found["cpu_s"] / found["floor_s"]
        results[arm] = found
        print(arm, "  ".join(f"{name} {value:.4g}" for name, value in found.items()), flush=True)
    if {"none", "routeV"} <= results.keys():
        for name in ("flops", "cpu_s", "wall_s"):
            if name in results["none"]:
                print(f"routeV over none, {name}: {results['routeV'][name] / results['none'][name]:.2f}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"shape": options.shape, "kl": kl, "matmul_rate": rate, "arms": results}, file, indent=1)


if __name__ == "__main__":
    main()
