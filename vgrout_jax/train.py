"""The training loop: evaluate, refresh the direction, collect rollouts, step, record; and what a run ends with."""

import contextlib
import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vgrout_jax import checkpoint, gradients, sharding
from vgrout_jax.build import Run, build_run
from vgrout_jax.config import Config
from vgrout_jax.env.grader import Grader
from vgrout_jax.env.grading import GradingFailed, open_grader
from vgrout_jax.evaluate import evaluate
from vgrout_jax.metrics import RunWriter
from vgrout_jax.model import keys, lora2r
from vgrout_jax.reporting import StepTable, final_table
from vgrout_jax.rl import diagnostics, guard, rollout
from vgrout_jax.rl.optim import learning_rate
from vgrout_jax.rl.state import TrainState, initial_state
from vgrout_jax.rl.step import StepMetrics
from vgrout_jax.routing import direction
from vgrout_jax.statistics import Evaluation

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Loop:
    """What the loop carries from step to step.

    Attributes:
        run: everything that is fixed.
        grader: of the answers.
        writer: of the workdir.
        table: on the terminal.
        state: of the optimiser.
        watch: the divergence guard.
        good: differences of the last step at which the guard saw nothing wrong, and its number of updates.
        routing: direction and bands, None for the pinned arms.
        direction_seconds: cost of the last extraction, spread over the steps that it serves.
        live_groups: groups with something to learn from, so far.
    """

    run: Run
    grader: Grader
    writer: RunWriter
    table: StepTable
    state: TrainState
    watch: guard.Guard
    good: tuple[lora2r.Factors, int] | None = None
    routing: direction.Routing | None = None
    direction_seconds: float | None = None
    live_groups: int = 0


def train(config: Config, workdir: Path) -> dict[str, Any]:
    """Runs one arm from start to end and returns what `summary.json` holds.

    Raises:
        ValueError, FileNotFoundError: a setting or file that cannot be used, before anything is trained.
        guard.Divergence, GradingFailed: the run was stopped; the adapter of the last good step is in the workdir.
    """
    with open_grader(config.grader) as grader:
        run = build_run(config)
        with (
            RunWriter(workdir, config, provenance=run.provenance) as writer,
            contextlib.closing(StepTable(config.train.steps)) as table,
        ):
            state = initial_state(run.frozen.init, run.optimizer, run.mesh)
            loop = Loop(run, grader, writer, table, state, guard.Guard(config.guard))
            try:
                for step in range(config.train.steps):
                    train_step(loop, step)
            except (guard.Divergence, GradingFailed):
                save(loop, loop.good)
                raise
            return finish(loop)


def train_step(loop: Loop, step: int) -> None:
    """One step of the loop, with what is due before it."""
    config, run, programs = loop.run.config, loop.run, loop.run.programs
    record: dict[str, Any] = {"time/evaluate": run_evaluation(loop, step) if evaluation_due(config, step) else None}
    record["time/direction"] = refresh_direction(loop, step)
    if programs.reference_logprob is not None:
        record["guard/reference_logprob"] = float(programs.reference_logprob(loop.state.deltas, run.frozen))
        if loop.watch.check_reference(step, record["guard/reference_logprob"]):
            # A copy, since the step takes the state's own memory; it is what a later divergence leaves behind.
            loop.good = jax.tree.map(jnp.copy, loop.state.deltas), step
    loop.table.status("generating and grading")
    rollouts = rollout.collect(
        config, run.world, programs.generator, loop.grader, frozen=run.frozen, deltas=loop.state.deltas, step=step
    )
    loop.table.status("updating")
    started = time.perf_counter()
    metrics = update(loop, rollouts, step)
    record["time/update"] = time.perf_counter() - started
    guard.check_finite(step, metrics)
    record |= diagnostics.step_record(config, rollouts, metrics, loop.routing)
    record["lr"] = float(learning_rate(config.optim, config.train.steps)(step))
    loop.live_groups += config.rollout.prompts - record["groups/skipped"]
    loop.writer.write_step(step, record)
    loop.writer.write_rollouts(step, diagnostics.rollout_records(rollouts, metrics))
    if metrics.probe is not None:
        gradients.save_step(loop.writer.workdir, step, metrics)
    loop.table.row(step, record)


def update(loop: Loop, rollouts: rollout.Rollouts, step: int) -> StepMetrics:
    """Runs the jitted step, moves the loop's state, and fetches the metrics, all at once, after it."""
    run = loop.run
    batch = rollout.place(rollouts.batch, sharding.batch_shardings(run.mesh, rollouts.batch))
    key = jax.device_put(keys.label_key(run.config.seed, step), sharding.replicated(run.mesh))
    with jax.transfer_guard("disallow"):
        loop.state, metrics = run.programs.step(loop.state, run.frozen, loop.routing, batch, key)
    return jax.device_get(metrics)


def refresh_direction(loop: Loop, step: int) -> float | None:
    """Extracts the direction where it is due; returns the amortised seconds of the one in use."""
    config, run = loop.run.config, loop.run
    if run.programs.extract is None:
        return None
    random = config.placebo.kind == "direction"
    if step % config.gate.refresh_every == 0 and not (random and step > 0):
        loop.table.status("extracting the direction")
        started = time.perf_counter()
        fresh, sides = run.programs.extract(loop.state.deltas, run.frozen)
        direction.check_routing(fresh, placebo=config.placebo.kind)
        previous = loop.routing
        loop.routing = direction.refresh_routing(previous, fresh, placebo=config.placebo.kind) if previous else fresh
        served = config.train.steps if random else config.gate.refresh_every
        loop.direction_seconds = (time.perf_counter() - started) / served
        if config.log.gradients:
            gradients.save_direction(loop.writer.workdir, step, loop.routing, sides)
    return loop.direction_seconds


def evaluation_due(config: Config, step: int) -> bool:
    """Before the first step, and every `eval.every_steps` steps."""
    return step == 0 or (config.eval.every_steps > 0 and step % config.eval.every_steps == 0)


def run_evaluation(loop: Loop, step: int) -> float:
    """Evaluates the current adapter on a part of the held-out problems; returns the seconds it took."""
    started = time.perf_counter()
    prompts = loop.run.world.heldout_prompts(loop.run.config.eval.problems)
    evaluate_and_write(loop, prompts, loop.state.deltas, step)
    return time.perf_counter() - started


def evaluate_and_write(loop: Loop, prompts: list, deltas: lora2r.Factors, step: int) -> list[Evaluation]:
    """Evaluates one adapter under both policies and writes both lines."""
    loop.table.status("evaluating")
    run = loop.run
    evaluations, records = evaluate(
        run.config, run.programs.generator, loop.grader, prompts, frozen=run.frozen, deltas=deltas, step=step
    )
    for evaluation in evaluations:
        loop.writer.write_evaluation(evaluation)
    loop.writer.write_evaluation_completions(step, records)
    return evaluations


def save(loop: Loop, chosen: tuple[lora2r.Factors, int] | None = None) -> Path:
    """Writes the adapter artefact: of `chosen` differences and their number of updates, or of the current state."""
    config, path = loop.run.config, loop.writer.workdir / "adapter"
    deltas, step = chosen or (loop.state.deltas, int(loop.state.step))
    metadata = {"config": config.to_dict(), "step": step, **loop.run.provenance}
    checkpoint.save_adapter(path, deltas, loop.run.frozen.init, metadata, seed=config.adapter.seed)
    return path


def finish(loop: Loop) -> dict[str, Any]:
    """Saves the adapter, evaluates it as reloaded from its artefact, and writes and prints the result."""
    config, run = loop.run.config, loop.run
    deltas, _ = checkpoint.load_adapter(save(loop), init=run.frozen.init)
    deltas = jax.device_put(deltas, sharding.factor_shardings(run.mesh, deltas))
    evaluations = evaluate_and_write(loop, run.world.heldout_prompts(None), deltas, config.train.steps)
    summary = {
        "arm": config.arm,
        "scale": config.scale,
        "steps": config.train.steps,
        "live_groups": loop.live_groups,
        "groups": config.train.steps * config.rollout.prompts,
        "evaluations": [evaluation.to_record() for evaluation in evaluations],
    }
    loop.writer.write_summary(summary)
    loop.table.close()
    print()
    if loop.live_groups == 0:
        print("No group had anything to learn from: in every one all rewards were equal, so the adapter never moved.")
        print()
    print(final_table(evaluations, loop.writer.paths()))
    return summary
