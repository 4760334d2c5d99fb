"""The whole step, generation and update: seconds of each phase, routeV over none, and the floors of both.

    taskset -c 0 python -m benchmarks.step --shape=cpu           one thread: CPU seconds a step
    python -m benchmarks.step --shape=qwen3-4b --repeats=1 --warm=short      on an accelerator

`taskset -c 0` leaves the process one core, and XLA as many threads. Weights and prompts are random. The update trains
on the completions that generation has drawn: with --mean-tokens so many ids of the vocabulary end a completion that
their mean length is about that, and without it every completion has all of --new-tokens. Grading is no part of it,
nor is the direction, which is extracted every fifth step.

Each repeat samples the same tokens with the same policy. Warming up is a whole step that is not timed, or, with
--warm=short, compilation and a batch of which no row is to be sampled; programs that are needed later on compile in
the timed step then. Seconds of compilation are counted apart in any case, and wall seconds are without them. The
floors are those of benchmarks/work.py, over the tokens that are no padding; generation is the prefill, of which no
logits are needed, and the decode loop, which reads every row's own cache.
"""

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import roofline, shapes, tables, timing, update, work
from vgrout_jax.model import lora2r, sharding
from vgrout_jax.rl.state import Batch
from vgrout_jax.sampling import sampler

COLUMNS = ("cpu_s", "wall_s", "compiling_s", "flop_floor_s", "over_flop_floor", "byte_floor_s", "over_byte_floor")
MORE = ("over_products", "over_unshared", "tokens_s", "mfu", "mfu_unshared")


class Arm:
    """One arm's programs and inputs, ready to run steps."""

    def __init__(self, shape: shapes.Shape, arm: str, *, kl: bool):
        self.shape, self.name, self.kl = shape, arm, kl
        self.inputs = shapes.step_inputs(shape, shapes.configuration(shape, arm, kl=kl))
        self.prompts = shapes.sources(shape, both=arm != "none")
        self.step = update.step_of(shape, arm, kl=kl)
        self.sample = sampler.build_sampler(
            shape.model,
            max_new_tokens=shape.new_tokens,
            eos_ids=shapes.ending_ids(shape),
            pad_id=0,
            top_p=shape.top_p,
            mesh=shapes.mesh(),
        )

    def generate(self, *, active: bool = True) -> sampler.Samples:
        """A completion of every row, or of none."""
        prompts, frozen = self.prompts, self.inputs.frozen
        return self.sample(
            frozen.base,
            lora2r.Adapter(frozen.init, self.inputs.state.deltas),
            prompts.tokens,
            prompts.valid,
            source_policy=prompts.policy,
            source_of_row=prompts.of_row,
            active=np.full(self.shape.rows, active),
            keys=prompts.keys,
            temperature=float(self.shape.temperature),
        )

    def batch(self, samples: sampler.Samples) -> Batch:
        """The batch that an update trains on."""
        drawn = (np.asarray(leaf) for leaf in (samples.tokens, samples.mask, samples.policy_logprobs))
        return shapes.batch_of(self.shape, self.prompts, *drawn)

    def state(self) -> Any:
        """A copy of the state, which a step takes the memory of."""
        return jax.block_until_ready(jax.tree.map(jnp.copy, self.inputs.state))

    def compile(self) -> None:
        """Compiles the step without running it, and what a batch needs of which no row is sampled."""
        self.generate(active=False)
        self.step = self.step.lower(*self.inputs.arguments()).compile()

    def update(self, state: Any, batch: Batch) -> Any:
        """Places the batch, steps and fetches the metrics, as training does."""
        placed = jax.device_put(batch, sharding.batch_shardings(shapes.mesh(), batch))
        _, metrics = self.step(state, self.inputs.frozen, self.inputs.routing, placed, self.inputs.key)
        return jax.device_get(metrics)


def measure(
    arm: Arm, compilations: timing.Compilations, roof: roofline.Roof, *, repeats: int, warm: str
) -> dict[str, Any]:
    """Seconds and floors of an arm's phases: prefill and decoding together, the update, and both.

    Args:
        arm: what to run.
        compilations, roof: what to measure with.
        repeats: timed steps, of which the best of each phase is taken.
        warm: "full", a step that is not timed, or "short".
    """
    _, starting = compilations.measured(arm.compile if warm == "short" else lambda: _once(arm, compilations))
    generating, updating = [], []
    for _ in range(repeats):
        samples, metrics, costs = _once(arm, compilations)
        generating.append(costs[0])
        updating.append(costs[1])
    first, second = timing.best(generating), timing.best(updating)
    batch = arm.batch(samples)
    figures = {"kl": arm.kl, "compiling_s": starting.compiling, "loss": float(metrics.loss)}
    figures["generate"] = _generation(arm, batch, first, roof, passes=int(samples.steps))
    figures["update"] = update.figures(arm.shape, arm.name, second, roof, kl=arm.kl, batch=batch, metrics=metrics) | {
        "compiling_s": second.compiling
    }
    figures["step"] = _together(figures["generate"], figures["update"])
    return figures | _memory()


def _once(
    arm: Arm, compilations: timing.Compilations
) -> tuple[sampler.Samples, Any, tuple[timing.Cost, timing.Cost]]:
    """A step: what it sampled, its metrics, and what either phase took."""
    samples, generating = compilations.measured(arm.generate)
    state = arm.state()
    metrics, updating = compilations.measured(lambda: arm.update(state, arm.batch(samples)))
    return samples, metrics, (generating, updating)


def _generation(arm: Arm, batch: Batch, cost: timing.Cost, roof: roofline.Roof, *, passes: int) -> dict[str, Any]:
    """Seconds and floors of sampling a batch; the larger of bytes and operations counts for either part of it."""
    shape, seconds = arm.shape, roof.seconds(cost)
    prompts = arm.prompts.valid.sum(axis=1)
    lengths = batch.completion_mask.sum(axis=1)
    prefill = work.prefill_work(shape.model, prompts)
    given = (shape.model, shape.rank, prompts, arm.prompts.of_row, lengths)
    decode, products = work.decode_work(*given), work.generation_products(*given) / roof.flops
    tokens = int(lengths.sum())
    return {
        "cpu_s": cost.cpu,
        "wall_s": cost.running,
        "compiling_s": cost.compiling,
        **(prefill + decode).figures(roof, seconds),
        "over_products": seconds / products,
        "prefill": prefill.figures(roof),
        "decode": decode.figures(roof),
        "tokens": tokens,
        "tokens_s": tokens / cost.running,
        "mean_length": float(lengths.mean()),
        "longest": int(lengths.max()),
        "passes": passes,
    }


def _together(generate: dict[str, Any], updated: dict[str, Any]) -> dict[str, Any]:
    """Both phases' sums; tokens per second are those drawn."""
    names = ("cpu_s", "wall_s", "compiling_s", "flop_floor_s", "byte_floor_s")
    total = {name: generate[name] + updated[name] for name in names}
    return total | {"tokens_s": generate["tokens"] / total["wall_s"]}


def _memory() -> dict[str, float]:
    """The most that the device has held so far, where it says so."""
    held = jax.devices()[0].memory_stats() or {}
    return {"peak_gb": held["peak_bytes_in_use"] / 1e9} if "peak_bytes_in_use" in held else {}


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """routeV over none, by phase."""
    if not {"none", "routeV"} <= results.keys():
        return {}
    both = [(phase, name) for phase in ("generate", "update", "step") for name in ("cpu_s", "wall_s")]
    return {f"{phase}_{name}": results["routeV"][phase][name] / results["none"][phase][name] for phase, name in both}


def show(name: str, results: dict[str, Any], roof: roofline.Roof) -> None:
    """Prints the tables."""
    print(f"\n{roof.line()}")
    for arm, found in results.items():
        rows = [[phase, *[found[phase].get(c) for c in COLUMNS + MORE]] for phase in ("generate", "update", "step")]
        tables.show(f"step of {arm}, shape {name}", ("phase", *COLUMNS, *MORE), rows)
        drawn = found["generate"]
        peak = f"; peak memory {found['peak_gb']:.4g} GB" if "peak_gb" in found else ""
        print(
            f"{drawn['tokens']:,} tokens drawn, mean {drawn['mean_length']:.0f} and longest {drawn['longest']} of a "
            f"completion; {found['update']['padding']:.0%} of the batch's positions are padding; "
            f"{found['update']['run_again']:.0%} of its tokens ran again; "
            f"compiled in {found['compiling_s']:.1f} s{peak}"
        )
    if both := ratios(results):
        print("\nrouteV over none: " + ", ".join(f"{key} {value:.2f}" for key, value in both.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shapes.add_arguments(parser)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--warm", choices=("full", "short"), default="full")
    parser.add_argument("--profile", help="write a trace of one more step to this folder; one arm")
    options = parser.parse_args()
    shape, compilations, results = shapes.chosen(parser, options), timing.Compilations(), {}
    if options.repeats < 1:
        parser.error(f"--repeats must be >= 1, got {options.repeats}")
    roof = roofline.measure(compilations, shape.model.dtype)
    summary = {"shape": options.shape, "sizes": shapes.sizes(shape), "roofline": dataclasses.asdict(roof)}
    for name in options.arms.split(","):
        arm = Arm(shape, name, kl=not options.no_kl)
        results[name] = measure(arm, compilations, roof, repeats=options.repeats, warm=options.warm)
        tables.write(options.json, {**summary, "arms": results, "routeV_over_none": ratios(results)})
        if options.profile:
            with jax.profiler.trace(options.profile):
                _once(arm, compilations)
        del arm  # the next one needs its memory
    show(options.shape, results, roof)


if __name__ == "__main__":
    main()
