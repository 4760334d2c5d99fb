"""Decoding: tokens per second at a mean context, against what reading weights and cache takes.

    python -m benchmarks.sampler --shape=qwen3-4b --rows=64,256 --context=900      on an accelerator
    taskset -c 0 python -m benchmarks.sampler --shape=cpu --rows=64 --context=540  one thread: CPU seconds

Every row's prompt is so long that --new-tokens more make the mean context what was asked for; both blocks of the
adapter are live. Eight rows continue one prompt. The decode loop is timed alone, after a call that compiles. The
floor reads all weights, the fused adapter, each prompt's cache and each row's own once a token (benchmarks/work.py).
"""

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import roofline, shapes, tables, timing, work
from vgrout_jax.model import lora2r
from vgrout_jax.sampling import decode, sampler

COLUMNS = ("rows", "tok/s", "cpu_s", "wall_s", "flop_floor_s", "byte_floor_s", "over_byte_floor", "compiling_s")


def measure(
    shape: shapes.Shape, roof: roofline.Roof, compilations: timing.Compilations, *, context: int, repeats: int
) -> dict[str, Any]:
    """Seconds of decoding `shape.new_tokens` tokens of every row, the best of `repeats`."""
    base, init, deltas = shapes.draw_weights(shape.model, shape.rank, 0)
    sample = sampler.build_sampler(
        shape.model, max_new_tokens=shape.new_tokens, eos_ids=(-1,), pad_id=0, mesh=shapes.mesh()
    )
    arguments, named = _sources(shape, context - shape.new_tokens // 2)
    span = decode.Span(jnp.int32(0), jnp.int32(shape.new_tokens), jnp.float32(1))

    def start() -> tuple[Any, ...]:
        policy, prompts, rows, state = sample.begin(
            base, lora2r.Adapter(init, deltas), *arguments, **named, slots=shape.new_tokens
        )
        part = sample.empty(shape.rows, shape.new_tokens)
        return jax.block_until_ready((policy, prompts, rows, (state, part), span))

    (_, part), first = compilations.measured(lambda: sample.advance(*start()))
    costs = []
    for _ in range(repeats):
        given = start()
        (_, part), cost = compilations.measured(lambda given=given: sample.advance(*given))
        costs.append(cost)
    best = timing.best(costs)
    if not bool(jnp.all(part.mask)):
        raise RuntimeError("a row has ended before its last token")
    lengths = arguments[1].sum(axis=1)
    new = np.full(shape.rows, shape.new_tokens)
    floor = work.decode_work(shape.model, shape.rank, lengths, named["source_of_row"], new)
    return {
        "rows": shape.rows,
        "tok/s": shape.rows * shape.new_tokens / best.running,
        "cpu_s": best.cpu,
        "wall_s": best.running,
        "compiling_s": first.compiling,
        **floor.figures(roof, roof.seconds(best)),
    }


def _sources(shape: shapes.Shape, length: int) -> tuple[tuple[np.ndarray, np.ndarray], dict[str, Any]]:
    """Prompts of `length` tokens in a bucket of a multiple of 64, half of them under either policy."""
    bucket, count = -(-length // 64) * 64, max(1, shape.rows // 8)
    valid = np.tile(np.arange(bucket) >= bucket - length, (count, 1))
    tokens = np.random.default_rng(0).integers(0, shape.model.vocab_size, valid.shape).astype(np.int32)
    source_of_row, active = (np.arange(shape.rows) % count).astype(np.int32), np.ones(shape.rows, bool)
    seat, seats = sampler.take_seats(source_of_row, active, count)
    named = {
        "source_policy": np.arange(count) % 2 == 0,
        "source_of_row": source_of_row,
        "active": active,
        "seat": seat,
        "seats": seats,
        "keys": jax.random.split(jax.random.key(0), shape.rows),
    }
    return (tokens, valid), named


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes.add_arguments(parser)
    parser.add_argument("--rows", default="64", help="batch sizes, separated by commas")
    parser.add_argument("--context", type=int, help="mean number of tokens read; default: the shape's prompt")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    given = shapes.chosen(parser, options)
    new_tokens = options.new_tokens or min(given.new_tokens, 128)
    context = options.context or given.prompt_tokens
    if context - new_tokens // 2 < 1:
        parser.error(f"--context must be > {new_tokens // 2}, half of the new tokens, got {context}")
    compilations = timing.Compilations()
    roof, found = roofline.measure(compilations, given.model.dtype), []
    for rows in map(int, options.rows.split(",")):
        shape = dataclasses.replace(given, prompts=rows, group=1, new_tokens=new_tokens)
        found.append(measure(shape, roof, compilations, context=context, repeats=options.repeats))
        tables.write(
            options.json,
            {"shape": options.shape, "context": context, "roofline": dataclasses.asdict(roof), "batches": found},
        )
    print(roof.line())
    tables.show(
        f"decoding, shape {options.shape}, mean context {context}, {new_tokens} tokens a row",
        COLUMNS,
        [[str(figures["rows"]), *[figures[name] for name in COLUMNS[1:]]] for figures in found],
    )


if __name__ == "__main__":
    main()
