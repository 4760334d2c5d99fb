"""The optimiser step: work, memory and time of an arm, against the floors that its passes set (benchmarks/work.py).

    taskset -c 0 python -m benchmarks.update --shape=cpu     time and work on one thread, routeV over none
    python -m benchmarks.update --shape=qwen3-4b --look      of the compiled program alone; nothing allocated
    python -m benchmarks.update --shape=qwen3-4b --prompts=2 one eighth of the step's rollouts, on an accelerator

A step is one forward and backward pass (none), or two (routeV: the probe's and the masked one) and a forward of the
rows whose sampling policy is trained otherwise, unless they were sampled at temperature 1, where the sampler's own
log-probabilities serve; with KL one forward of the base comes on top. The operations of the program are counted over
every padded position and for half of the rows run again, where it must be ready for that; what was measured is held
against the tokens that are no padding and the rows that had to be run again.

Model FLOP utilisation (Chowdhery et al. 2022, arXiv 2204.02311, appendix B) counts 4 operations a weight and token
for each forward and backward pass, 2 for a forward alone, and the adapter's own (6 with its gradient), over the
roofline's rate: `mfu_unshared` the tokens of all rollouts, as is usual, whatever an implementation saves, and `mfu` a
prompt once a group where a pass can share it. `over_flop_floor` is the time over that of the products with weights,
`over_products` over that of all products, attention's and the adapter's among them, and `over_unshared` over the
first where every prompt is read once a rollout instead.
"""

import argparse
import dataclasses
import time
from typing import Any

import jax
import numpy as np

from benchmarks import flops, roofline, shapes, tables, timing, work
from vgrout_jax.arms.compose import make_arm
from vgrout_jax.config import Config
from vgrout_jax.rl.optim import make_optimizer
from vgrout_jax.rl.state import Batch
from vgrout_jax.rl.step import Step, StepMetrics, build_step
from vgrout_jax.routing import gate

LOOK_COLUMNS = ("flops", "over_floor", "trace_s", "compile_s", "arguments_gb", "temporaries_gb", "donated_gb")
TIME_COLUMNS = (
    "cpu_s",
    "wall_s",
    "flop_floor_s",
    "over_flop_floor",
    "over_products",
    "over_unshared",
    "byte_floor_s",
    "over_byte_floor",
    "mfu",
    "mfu_unshared",
    "tokens_s",
)


def step_of(shape: shapes.Shape, arm: str, *, kl: bool) -> Step:
    """The arm's jitted step."""
    return step_with(shape, shapes.configuration(shape, arm, kl=kl))


def step_with(shape: shapes.Shape, config: Config, device: jax.Device | None = None) -> Step:
    """The jitted step of a configuration; `device` None: on the one that JAX computes on."""
    return build_step(
        config,
        shape.model,
        make_optimizer(config.optim, config.train.steps),
        shapes.mesh(device),
        arm=make_arm(config),
    )


def look(shape: shapes.Shape, arm: str, *, kl: bool, arguments: tuple[Any, ...] | None = None) -> dict[str, Any]:
    """The compiled program's work and memory, from shapes alone or from `arguments`; the program as "compiled"."""
    step = step_of(shape, arm, kl=kl)
    if arguments is None:
        arguments = shapes.abstract_inputs(shape, shapes.configuration(shape, arm, kl=kl)).arguments()
    started = time.perf_counter()
    lowered = step.lower(*arguments)
    traced = time.perf_counter()
    compiled = lowered.compile()
    ended = time.perf_counter()
    memory = compiled.memory_analysis()
    counted, floor = flops.matmul_flops(step, *arguments), work.update_flops(shape, arm, kl=kl)
    return {
        "compiled": compiled,
        "flops": float(counted),
        "floor": floor,
        "over_floor": counted / floor,
        "trace_s": traced - started,
        "compile_s": ended - traced,
        "arguments_gb": memory.argument_size_in_bytes / 1e9,
        "temporaries_gb": memory.temp_size_in_bytes / 1e9,
        "donated_gb": memory.alias_size_in_bytes / 1e9,
    }


def measure(
    shape: shapes.Shape, arm: str, compiled: Any, inputs: shapes.Inputs, *, kl: bool, **how: Any
) -> dict[str, float]:
    """Seconds of a step and what they are held against, the best of several repeats after one that warms up.

    Args:
        shape, arm, kl: what `compiled` was made for.
        compiled: the program; it takes the memory of the state that it is given.
        inputs: of the step; the state is gone afterwards.
        how: compilations, roof, repeats, and the folder of a profile or None.
    """
    state, *rest = inputs.arguments()
    (state, metrics), _ = how["compilations"].measured(lambda: compiled(state, *rest))
    costs = []
    for _ in range(how["repeats"]):
        (state, metrics), cost = how["compilations"].measured(lambda state=state: compiled(state, *rest))
        costs.append(cost)
    if how["profile"]:
        with jax.profiler.trace(how["profile"]):
            state, metrics = jax.block_until_ready(compiled(state, *rest))
    return figures(shape, arm, timing.best(costs), how["roof"], kl=kl, batch=inputs.batch, metrics=metrics)


def figures(
    shape: shapes.Shape,
    arm: str,
    cost: timing.Cost,
    roof: roofline.Roof,
    *,
    kl: bool,
    batch: Batch,
    metrics: StepMetrics,
) -> dict[str, float]:
    """An update's seconds, floors and utilisation, for the tokens of its batch."""
    lengths = work.valid_tokens(shape, batch.valid, batch.completion_mask)
    tokens, passes = lengths.tokens(), {"kl": kl, "again": share_again(shape, arm, batch, metrics)}
    seconds = roof.seconds(cost)
    least = work.update_work(shape, arm, tokens=tokens, **passes)
    useful, useful_unshared = (
        work.update_flops(shape, arm, tokens=each, adapter=True, **passes) for each in (tokens, tokens.alone)
    )
    products = work.update_products(shape, arm, lengths=lengths, **passes) / roof.flops
    unshared = work.update_flops(shape, arm, tokens=tokens.alone, **passes) / roof.flops
    return {
        "cpu_s": cost.cpu,
        "wall_s": cost.running,
        **least.figures(roof, seconds),
        "over_products": seconds / products,
        "over_unshared": seconds / unshared,
        "mfu": useful / (seconds * roof.flops),
        "mfu_unshared": useful_unshared / (seconds * roof.flops),
        "tokens_s": tokens.read / cost.running,
        "tokens": tokens.read,
        "padding": 1.0 - tokens.read / work.every_position(shape).tokens().read,
        "run_again": passes["again"],
    }


def share_again(shape: shapes.Shape, arm: str, batch: Batch, metrics: StepMetrics) -> float:
    """Share of the tokens in rows whose sampling policy is neither the one that trains nor the probe's."""
    if arm == "none" or shape.sampler_serves:
        return 0.0
    sampled, live = np.asarray(batch.quarantine_sampled), np.asarray(metrics.decision.live)
    differs = live & (sampled != (np.asarray(metrics.decision.labels) != gate.CLEAN))
    probed = np.zeros_like(live) if arm == "absorb" else ~sampled & (np.asarray(metrics.decision.advantages) != 0)
    tokens = np.asarray(batch.valid).sum(axis=1)
    return float(tokens[differs & ~probed].sum() / tokens.sum())


def ratios(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """routeV over none, of what both have."""
    if not {"none", "routeV"} <= results.keys():
        return {}
    names = [name for name in ("flops", "cpu_s", "wall_s") if name in results["none"]]
    return {name: results["routeV"][name] / results["none"][name] for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shapes.add_arguments(parser)
    parser.add_argument("--look", action="store_true", help="compile and look at the program; run nothing")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", help="write a trace of one more step to this folder; one arm")
    options = parser.parse_args()
    shape, kl, results = shapes.chosen(parser, options), not options.no_kl, {}
    compilations = timing.Compilations()
    roof = None if options.look else roofline.measure(compilations, shape.model.dtype)
    summary = {"shape": options.shape, "sizes": shapes.sizes(shape), "kl": kl}
    summary["roofline"] = roof and dataclasses.asdict(roof)
    for arm in options.arms.split(","):
        config = shapes.configuration(shape, arm, kl=kl)
        inputs = None if options.look else shapes.step_inputs(shape, config)
        results[arm] = look(shape, arm, kl=kl, arguments=inputs and inputs.arguments())
        compiled = results[arm].pop("compiled")
        if inputs is not None:
            how = {"compilations": compilations, "roof": roof, "repeats": options.repeats}
            how["profile"] = options.profile
            results[arm] |= measure(shape, arm, compiled, inputs, kl=kl, **how)
        tables.write(options.json, {**summary, "arms": results, "routeV_over_none": ratios(results)})
    show(options.shape, results, roof)


def show(name: str, results: dict[str, dict[str, Any]], roof: roofline.Roof | None) -> None:
    """Prints the tables."""
    rows = [[arm, *[found[column] for column in LOOK_COLUMNS]] for arm, found in results.items()]
    tables.show(f"update, shape {name}, compiled program, every position", ("arm", *LOOK_COLUMNS), rows)
    if roof is not None:
        print(f"\n{roof.line()}")
        rows = [[arm, *[found[column] for column in TIME_COLUMNS]] for arm, found in results.items()]
        tables.show(f"update, shape {name}, measured, tokens without padding", ("arm", *TIME_COLUMNS), rows)
    if both := ratios(results):
        print("\nrouteV over none: " + ", ".join(f"{key} {value:.2f}" for key, value in both.items()))


if __name__ == "__main__":
    main()
