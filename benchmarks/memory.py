"""Memory and compile time of a step's programs, from the compiled programs themselves; nothing is allocated.

    python -m benchmarks.memory --shape=qwen3-4b
    JAX_COMPILATION_CACHE_DIR=cache python -m benchmarks.memory --shape=qwen3-4b     twice: cold, and from the cache

For each program: arguments, outputs, temporaries, what is donated (arguments whose memory an output takes), and what
stays on the device beside it. No program may hold a float32 array of all rollouts' logits, [N, T, V]; the command
fails where one does. Nor may XLA compute a product that nothing has asked for: "products" are the operations of those
in the compiled program over those in the traced one, and the command fails where they are more. A second table adds
up by formula what training at this shape has to keep.

The update is compiled in a thread beside the sampler's programs, as a run does it while the first rollouts are drawn,
so that the seconds of all together are fewer than those of each added up, and those of each more than it would take
alone.

The temporaries are those of the backend that compiles. XLA has no bfloat16 products on the CPU: it computes them in
float32 there, and would convert what a loop over layers reads as a whole before the loop. It is told not to, so that
weights and kept products count in their own type, as they do on an accelerator.
"""

import argparse
import concurrent.futures
import dataclasses
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import flops, shapes, tables, timing, update, work
from benchmarks.compiled_flops import compiled_flops
from vgrout_jax.common import xla
from vgrout_jax.config import Config
from vgrout_jax.model import lora2r, padding, qwen3
from vgrout_jax.rl.schedule.blocks import Cutter
from vgrout_jax.sampling import decode, sampler

COLUMNS = ("arguments", "outputs", "temporaries", "donated", "beside", "in all", "trace s", "compile s", "products")
_MOST_PRODUCTS = 1.01  # a layer's output computed a second time would be 1.03 and more
# Copies of whole stacks in float32, made once before the loop that reads a layer at a time, are the CPU's alone.
_OPTIONS = {"cpu": {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}}
_CALLED = re.compile(r" fusion\(.*calls=(%[\w.-]+)")
_ARRAY = re.compile(r"\bf32\[([0-9,]+)\]")


@dataclasses.dataclass(frozen=True)
class Program:
    """A program to be looked at.

    Attributes:
        name: in the table.
        trace: traces it.
        beside: bytes on the device while it runs that are none of its arguments.
    """

    name: str
    trace: Callable[[], jax.stages.Traced]
    beside: int


def programs(shape: shapes.Shape, arm: str, *, kl: bool) -> list[Program]:
    """The step, the prefill, and the decode loop at its largest: all rows, and a cache with room for all of T."""
    config = shapes.configuration(shape, arm, kl=kl)
    inputs = shapes.abstract_inputs(shape, config)
    step = update.step_of(shape, arm, kl=kl)
    moments = size_of(inputs.state.optimizer)
    found = [Program(f"update, {arm}", lambda: step.trace(*inputs.arguments()), 0)]
    sample = sampler.build_sampler(shape.model, max_new_tokens=shape.new_tokens, eos_ids=(0,), pad_id=0)
    bounds = [0, *padding.completion_lengths(shape.new_tokens)]
    arguments, named = _sampler_arguments(shape, inputs)
    found.append(Program("prefill", lambda: sample.prefill.trace(*arguments, named["source_policy"]), moments))
    policy, prompts, rows, state = begun(sample, *arguments, seats=shape.group // 2, slots=shape.new_tokens, **named)
    part = jax.eval_shape(lambda: decode.empty_part(sample.settings, shape.rows, bounds[-1] - bounds[-2]))
    span = jax.eval_shape(lambda: decode.Span(jnp.int32(0), jnp.int32(1), jnp.float32(1)))
    kept = size_of((inputs.frozen.base["layers"], inputs.frozen.init, inputs.state.deltas)) + moments
    found.append(Program("decode", lambda: sample.advance.trace(policy, prompts, rows, (state, part), span), kept))
    return found


def begun(
    sample: sampler.Sampler,
    base: dict,
    adapter: Any,
    prompts: Any,
    valid: Any,
    *,
    seats: int,
    slots: int,
    **given: Any,
) -> tuple[decode.DecodeWeights, decode.Prompts, decode.Rows, decode.State]:
    """What `Sampler.begin` returns, as shapes and types."""
    policy = given.pop("source_policy")
    read = sample.prefill.eval_shape(base, adapter, prompts, valid, policy)
    layer, cache = sample.take_layer.eval_shape(base["layers"], adapter, read, jax.ShapeDtypeStruct((), jnp.int32))
    lengths, rows, state = sample.start.eval_shape(prompts, valid, policy, slots=slots, **given)
    count = sample.settings.config.num_layers
    head = {name: leaf for name, leaf in base.items() if name != "layers"}
    return decode.DecodeWeights(head, (layer,) * count), decode.Prompts(lengths, (cache,) * count, seats), rows, state


def _sampler_arguments(shape: shapes.Shape, inputs: shapes.Inputs) -> tuple[tuple, dict]:
    """What a sampler takes to begin, as shapes and types."""
    made = jax.eval_shape(
        lambda: {
            "prompts": jnp.zeros((2 * shape.prompts, shape.prompt_tokens), jnp.int32),
            "valid": jnp.zeros((2 * shape.prompts, shape.prompt_tokens), bool),
            "source_policy": jnp.zeros(2 * shape.prompts, bool),
            "source_of_row": jnp.zeros(shape.rows, jnp.int32),
            "seat": jnp.zeros(shape.rows, jnp.int32),
            "active": jnp.zeros(shape.rows, bool),
            "keys": jax.random.split(jax.random.key(0), shape.rows),
        }
    )
    adapter = lora2r.Adapter(inputs.frozen.init, inputs.state.deltas)
    return (inputs.frozen.base, adapter, made.pop("prompts"), made.pop("valid")), made


def size_of(tree: Any) -> int:
    """Bytes of all arrays of a tree, or of the shapes and types of such."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@dataclasses.dataclass(frozen=True)
class Made:
    """A program as traced and compiled, and the seconds of both; lowering counts as tracing."""

    traced: jax.stages.Traced
    compiled: jax.stages.Compiled
    tracing: float
    compiling: float


def make(program: Program) -> Made:
    """Traces and compiles a program."""
    started = time.perf_counter()
    traced = program.trace()
    lowered = traced.lower()
    lowered_at = time.perf_counter()
    compiled = lowered.compile(compiler_options=_OPTIONS.get(jax.default_backend()))
    return Made(traced, compiled, lowered_at - started, time.perf_counter() - lowered_at)


def make_all(chosen: Sequence[Program]) -> list[Made]:
    """Makes the first program in a thread beside the others, which follow one another."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        first = thread.submit(make, chosen[0])
        others = [make(program) for program in chosen[1:]]
        return [first.result(), *others]


def look(program: Program, made: Made, shape: shapes.Shape) -> dict[str, Any]:
    """Bytes, seconds and products of a program, and the largest float32 arrays of its text."""
    memory, text = made.compiled.memory_analysis(), made.compiled.as_text()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "donated": memory.alias_size_in_bytes,
        "beside": program.beside,
        "in all": total - memory.alias_size_in_bytes + program.beside,
        "trace s": made.tracing,
        "compile s": made.compiling,
        "products": compiled_flops(text) / max(1, flops.traced_flops(made.traced)),
        "largest": largest_arrays(text),
        "whole_logits": whole_logits(text, shape),
    }


def largest_arrays(text: str, count: int = 3) -> list[str]:
    """The shapes of the largest float32 arrays of a program's text; those inside a fusion never exist."""
    fused = set(_CALLED.findall(text))
    bodies = [body for body in text.split("\n\n") if body.lstrip().partition(" ")[0] not in fused]
    found = {dims for body in bodies for dims in _ARRAY.findall(body)}
    return sorted(found, key=lambda dims: -math.prod(map(int, dims.split(","))))[:count]


def whole_logits(text: str, shape: shapes.Shape) -> list[str]:
    """Float32 arrays of a program's text with an axis of the vocabulary and as many elements as [N, T, V] has."""
    vocabulary, least = shape.model.vocab_size, shape.rows * shape.new_tokens * shape.model.vocab_size
    found = {dims: [int(size) for size in dims.split(",")] for dims in set(_ARRAY.findall(text))}
    return [dims for dims, sizes in found.items() if vocabulary in sizes and math.prod(sizes) >= least]


def kept_inputs(model: qwen3.Qwen3Config, tokens: int) -> int:
    """Bytes of the layers' inputs, which are what a rematerialised forward pass keeps for its way back."""
    return model.num_layers * tokens * model.hidden_size * jnp.dtype(model.dtype).itemsize


def account(shape: shapes.Shape, config: Config) -> dict[str, int]:
    """Bytes that training at this shape has to keep, by formula."""
    model, stored = shape.model, jnp.dtype(shape.model.dtype).itemsize
    norms = model.num_layers * (2 * model.hidden_size + 2 * model.head_dim) + model.hidden_size
    tied = 1 if model.tie_embeddings else 2
    factors = 4 * work.adapter_weights(model, shape.rank)
    cached = work.cache_bytes(model)
    cut = Cutter(config, shapes.mesh(), model.attention).cut(shape.prompt_tokens)
    prompts = 3 * cut.groups if cut.shares else cut.groups  # shared, a prompt is read under three labels
    completions = cut.positions or cut.rows * shape.new_tokens
    tokens = completions + prompts * shape.prompt_tokens
    chunk = min(config.model.logprob_chunk, completions)
    return {
        "weights": stored * (work.layer_weights(model) + tied * work.head_weights(model) + norms),
        "adapter as drawn": factors,
        "adapter's differences": factors,
        "moments": 2 * factors,
        "gradient": factors,
        "layers' inputs of a micro-batch": kept_inputs(model, tokens),
        "one layer's feed-forward of a micro-batch": 3 * tokens * model.intermediate_size * stored,
        "logits of a chunk, float32": 4 * chunk * model.vocab_size,
        "key-value cache of all completions": shape.rows * shape.new_tokens * cached,
        "key-value cache of all prompts, both policies": 2 * shape.prompts * shape.prompt_tokens * cached,
        "[N, T, V] float32, which must not be": 4 * shape.rows * shape.new_tokens * model.vocab_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes.add_arguments(parser)
    parser.set_defaults(arms="routeV", shape="qwen3-4b")
    parser.add_argument("--device-gb", type=float, default=139.0, help="GiB of the device that it is to fit")
    parser.add_argument("--only", default="", help="programs whose name begins so")
    options = parser.parse_args()
    xla.collect_rarely()
    shape, kl, arm = shapes.chosen(parser, options), not options.no_kl, options.arms.split(",")[0]
    chosen = [program for program in programs(shape, arm, kl=kl) if program.name.startswith(options.only)]
    if not chosen:
        parser.error(f"--only must begin the name of a program, got {options.only!r}")
    compilations, began = timing.Compilations(), time.perf_counter()
    made = make_all(chosen)
    compiling_s = compilations.seconds(began, time.perf_counter())
    found = {program.name: look(program, one, shape) for program, one in zip(chosen, made, strict=True)}
    kept = account(shape, shapes.configuration(shape, arm, kl=kl))
    show(options, found, kept, compiling_s)
    peak = max(figures["in all"] for figures in found.values())
    fits = peak <= options.device_gb * 2**30
    summary = {"shape": options.shape, "sizes": shapes.sizes(shape), "programs": found, "account": kept}
    tables.write(options.json, {**summary, "compiling_s": compiling_s, "peak_bytes": peak, "fits": fits})
    whole = {name: figures["whole_logits"] for name, figures in found.items() if figures["whole_logits"]}
    if whole:
        sys.exit(f"error: float32 arrays of all rollouts' logits, [N, T, V] or larger: {whole}")
    again = {name: figures["products"] for name, figures in found.items() if figures["products"] > _MOST_PRODUCTS}
    if again:
        sys.exit(f"error: products that nothing asked for, compiled over traced operations: {again}")
    print(
        f"no float32 array of all rollouts' logits; the most in use is {peak / 2**30:.4g} GiB, which "
        f"{'fits' if fits else 'does NOT fit'} {options.device_gb:g} GiB"
    )


def show(options: argparse.Namespace, found: dict[str, Any], kept: dict[str, int], compiling: float) -> None:
    """Prints the tables."""
    rows = []
    for name, figures in found.items():
        plain = [c for c in COLUMNS if c.endswith(" s") or c == "products"]
        rows.append([name, *[figures[c] if c in plain else figures[c] / 2**30 for c in COLUMNS]])
    tables.show(f"programs, shape {options.shape}, in GiB", ("program", *COLUMNS), rows)
    for name, figures in found.items():
        print(f"{name}: the largest float32 arrays are {', '.join(f'[{dims}]' for dims in figures['largest'])}")
    print(f"traced, lowered and compiled in {compiling:.1f} s")
    tables.show(
        "to be kept, by formula, in GiB", ("what", "GiB"), [[name, size / 2**30] for name, size in kept.items()]
    )


if __name__ == "__main__":
    main()
