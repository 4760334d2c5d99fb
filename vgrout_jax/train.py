"""The training loop: refresh the direction, evaluate, collect rollouts, step, record; and what a run ends with.

A run goes on where the workdir says that it was (docs/reliability.md).
"""

import contextlib
import dataclasses
import json
import logging
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vgrout_jax.config import Config
from vgrout_jax.config.validation import settled
from vgrout_jax.env.grader import Grader
from vgrout_jax.env.grading import GradingFailed, open_grader
from vgrout_jax.env.recall import Recall, read_rows
from vgrout_jax.evaluation.evaluate import evaluate
from vgrout_jax.evaluation.rates import Evaluation
from vgrout_jax.model import lora2r, sharding
from vgrout_jax.rl import collapse, divergence, rollout
from vgrout_jax.rl.optim import learning_rate
from vgrout_jax.rl.state import TrainState, initial_state
from vgrout_jax.rl.step import StepMetrics
from vgrout_jax.routing.pairs import load_pairs
from vgrout_jax.run import continuation, gradients, overlap, preemption, progress, snapshots, step_record
from vgrout_jax.run.build import Run, build_run, memory_shapes
from vgrout_jax.run.preemption import Preempted
from vgrout_jax.run.progress import Progress
from vgrout_jax.run.terminal import StepTable, final_table
from vgrout_jax.run.writer import RunWriter
from vgrout_jax.sampling import keys
from vgrout_jax.weights import checkpoint

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Loop:
    """What the loop works with.

    Attributes:
        run: everything that is fixed.
        grader: of the answers.
        writer: of the workdir.
        table: on the terminal.
        store: of resume states.
        signals: asks where a step may be given up.
        identity: what a resume state says of the run.
        progress: what the steps done have left; replaced by each step as a whole.
    """

    run: Run
    grader: Grader
    writer: RunWriter
    table: StepTable
    store: snapshots.Store
    signals: preemption.Watch
    identity: dict[str, Any]
    progress: Progress


def train(config: Config, workdir: Path) -> dict[str, Any]:
    """Runs one arm to its end, from the start or from where the workdir's run was interrupted.

    Returns:
        What `summary.json` holds.

    Raises:
        ValueError, FileNotFoundError: a setting, a file or a workdir that cannot be used, before anything is trained.
        guard.Divergence, GradingFailed: the run was stopped; the adapter of the last good step is in the workdir.
        Preempted: a signal asked the run to end; its state is in the workdir.
    """
    config = settled(config)
    try:
        with preemption.Watch() as signals, continuation.claim(workdir):
            found = continuation.look(workdir)
            continuation.check_continuable(found, config)
            if found.finished is not None and found.finished >= config.train.steps:
                print(f"{workdir} holds a finished run of {found.finished} steps; raise train.steps to go on with it")
                return json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
            with contextlib.ExitStack() as stack:
                loop = open_loop(config, found, signals, stack)
                return run_loop(loop)
    except Preempted as request:
        states = continuation.state_steps(workdir / continuation.STATES)
        kept = f"the state of step {states[-1]} is kept" if states else "no step was kept"
        message = f"interrupted by {request.name}: {kept}; --workdir={workdir} continues from there"
        raise Preempted(request.number, message) from request


def open_loop(
    config: Config, found: continuation.Found, signals: preemption.Watch, stack: contextlib.ExitStack
) -> Loop:
    """Builds the run, brings back what an earlier process has left, and opens the files; `stack` closes them."""
    workdir = found.workdir
    with signals.abandonable():
        snapshot = snapshots.newest(workdir / continuation.STATES)
        grader = stack.enter_context(open_grader(config.grader))
        run = build_run(config)
        overlap.check_world(run.world, load_pairs(config.direction.pairs, config.direction.tags))
        provenance = {**run.provenance, "world_sha256": overlap.world_sha256(run.world)}
        run = dataclasses.replace(run, provenance=provenance)
        identity = progress.identity_of(config, provenance, run.frozen)
        state = initial_state(run.frozen.init, run.optimizer, run.mesh)
        fresh = Progress(0, state, divergence.Guard(config.guard))
        memory = None if snapshot is None else memory_shapes(run, state.deltas)
        start = progress.begin(config, found, snapshot, identity, fresh, memory)
    if found.started:
        continuation.cut_back(workdir, start.step)
    store = stack.enter_context(
        contextlib.closing(snapshots.Store(workdir / continuation.STATES, keep=config.checkpoint.keep))
    )
    first = start.step if found.started else None
    writer = stack.enter_context(RunWriter(workdir, config, provenance=provenance, first_step=first))
    table = stack.enter_context(contextlib.closing(StepTable(config.train.steps - start.step)))
    return Loop(run, grader, writer, table, store, signals, identity, start)


def run_loop(loop: Loop) -> dict[str, Any]:
    """All steps that are left, and the end; whatever stops them leaves what can be kept."""
    steps, every = loop.run.config.train.steps, loop.run.config.checkpoint.every_steps
    try:
        while loop.progress.step < steps:
            with profiled(loop):
                train_step(loop)
            if loop.progress.step == steps or (every and loop.progress.step % every == 0):
                keep_state(loop)
        loop.store.wait()
        return finish(loop)
    except (Preempted, GradingFailed) as stop:
        # Both are raised between two steps' updates, where what is carried is whole.
        keep_state(loop)
        loop.store.close()
        if isinstance(stop, GradingFailed):
            save(loop, loop.progress.good)
        raise
    except divergence.Divergence:
        save(loop, loop.progress.good)
        raise
    except OSError as error:
        raise ValueError(f"workdir {loop.writer.workdir}: {error}") from error


def profiled(loop: Loop) -> contextlib.AbstractContextManager:
    """Traces host and devices during one of `profile.steps`; the first step's trace would show compilation."""
    if loop.progress.step not in loop.run.config.profile.steps:
        return contextlib.nullcontext()
    return jax.profiler.trace(loop.writer.workdir / "profile", create_perfetto_trace=True)


def keep_state(loop: Loop) -> None:
    """Starts to write the resume state, after the lines of all steps before it."""
    loop.writer.sync()
    loop.store.save(progress.to_snapshot(loop.progress, loop.identity))


def train_step(loop: Loop) -> None:
    """One step of the loop, with what is due before it."""
    config, before = loop.run.config, loop.progress
    step = before.step
    with loop.signals.abandonable():
        plan = rollout.plan_rows(config, loop.run.world, step)
        ready, record = prepare(loop, plan)
        loop.table.status("generating and grading")
        rollouts = collect(loop, plan)
        divergence.check_sampled(step, rollouts.batch.sampler_logprobs)
        loop.writer.write_verdicts(step, step_record.verdict_records(rollouts))
    loop.table.status("updating")
    started = time.perf_counter()
    state, metrics = update(loop, rollouts, ready)
    record["time/update"] = time.perf_counter() - started
    # The step has taken the memory of the state before; what it leaves is that state where it was refused.
    loop.progress = dataclasses.replace(before, state=state, good=ready.good)
    divergence.check_finite(step, metrics)
    record |= step_record.step_record(rollouts, metrics, loop.run.arm.source.describe(ready.memory))
    record["lr"] = float(learning_rate(config.optim, config.train.steps)(step))
    live = config.rollout.prompts - record["groups/skipped"]
    memory, warnings = collapse.observe_step(ready.collapse, step, rollouts.rows, live_groups=live)
    for text in warnings:
        logger.warning("%s", text)
    loop.writer.write_step(step, record)
    loop.writer.write_rollouts(step, step_record.rollout_records(rollouts, metrics))
    loop.writer.drop_verdicts(step)
    if metrics.probe is not None:
        with loop.writer.writing():
            gradients.save_step(loop.writer.workdir, step, metrics)
    loop.table.row(step, record)
    loop.progress = dataclasses.replace(
        ready, step=step + 1, state=state, live_groups=before.live_groups + live, collapse=memory
    )


def prepare(loop: Loop, plan: rollout.Plan) -> tuple[Progress, dict[str, Any]]:
    """What is due before a step: direction, evaluation, the guard's look; returns what is carried with it."""
    config, run, step = loop.run.config, loop.run, plan.step
    ready = refresh_direction(loop, loop.progress)
    begin_compiling(loop, ready, plan)
    record: dict[str, Any] = {"time/direction": ready.direction_seconds, "time/evaluate": None}
    if evaluation_due(config, step):
        ready, record["time/evaluate"] = run_evaluation(loop, ready)
    if run.programs.reference_logprob is not None:
        record["guard/reference_logprob"] = float(run.programs.reference_logprob(ready.state.deltas, run.frozen))
        ready = dataclasses.replace(ready, watch=dataclasses.replace(ready.watch))
        if ready.watch.check_reference(step, record["guard/reference_logprob"]):
            # A copy, since the step takes the state's own memory; it is what a later divergence leaves behind.
            ready = dataclasses.replace(ready, good=(jax.tree.map(jnp.copy, ready.state.deltas), step))
    return ready, record


def begin_compiling(loop: Loop, ready: Progress, plan: rollout.Plan) -> None:
    """Starts to compile the update for a step's rows, while the policy is evaluated and the rows are collected."""
    run = loop.run
    flags = run.arm.source.reads_monitor
    batch = rollout.batch_shapes(run.config, run.programs.generator, plan, flags=flags)
    placed = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        batch,
        sharding.batch_shardings(run.mesh, batch),
    )
    run.programs.step.begin(ready.state, run.frozen, ready.memory, placed, label_key(run, ready.step))


def label_key(run: Run, step: int) -> jax.Array:
    """The step's key, on the devices of the mesh."""
    return jax.device_put(keys.label_key(run.config.seed, step), sharding.replicated(run.mesh))


def collect(loop: Loop, plan: rollout.Plan) -> rollout.Rollouts:
    """The step's rollouts; what an interrupted run has graded of them is not graded again."""
    run = loop.run
    rows = read_rows(loop.writer.verdicts_path(plan.step))
    return rollout.collect(
        run.config,
        run.programs.generator,
        Recall(loop.grader, rows) if rows else loop.grader,
        plan,
        frozen=run.frozen,
        deltas=loop.progress.state.deltas,
        flags=run.arm.source.reads_monitor,
    )


def update(loop: Loop, rollouts: rollout.Rollouts, ready: Progress) -> tuple[TrainState, StepMetrics]:
    """Runs the jitted step, which takes the state's memory, and fetches the metrics, all at once, after it."""
    run = loop.run
    batch = rollout.place(rollouts.batch, sharding.batch_shardings(run.mesh, rollouts.batch))
    key = label_key(run, ready.step)
    with jax.transfer_guard("disallow"):
        state, metrics = run.programs.step(ready.state, run.frozen, ready.memory, batch, key)
    return state, jax.device_get(metrics if run.config.log.gradients else metrics.replace(probe=None))


def refresh_direction(loop: Loop, ready: Progress) -> Progress:
    """Lets the arm's source learn from the pairs where that is due, with the amortised seconds that it took."""
    config, run, step = loop.run.config, loop.run, ready.step
    source = run.arm.source
    if not source.learns or step % config.gate.refresh_every or (source.learns_once and step > 0):
        return ready
    loop.table.status("extracting the direction")
    started = time.perf_counter()
    fresh, sides = run.programs.extract(ready.state.deltas, run.frozen)
    try:
        source.check(fresh)
    except ValueError as error:
        if step == 0:  # the pairs or a setting are to blame; later it is what training has made of the adapter
            raise
        raise divergence.Divergence(f"step {step}: {error}; {divergence.REMEDY}") from error
    if ready.memory is not None:
        fresh = source.renew(ready.memory, fresh)
    served = config.train.steps if source.learns_once else config.gate.refresh_every
    seconds = (time.perf_counter() - started) / served
    if config.log.gradients and sides is not None:
        with loop.writer.writing():
            gradients.save_direction(loop.writer.workdir, step, fresh, sides)
    return dataclasses.replace(ready, memory=fresh, direction_seconds=seconds)


def evaluation_due(config: Config, step: int) -> bool:
    """Before the first step, and every `eval.every_steps` steps."""
    return step == 0 or (config.eval.every_steps > 0 and step % config.eval.every_steps == 0)


def run_evaluation(loop: Loop, ready: Progress) -> tuple[Progress, float]:
    """Evaluates the current adapter on a part of the held-out problems; returns the seconds it took too."""
    started = time.perf_counter()
    prompts = loop.run.world.heldout_prompts(loop.run.config.eval.problems)
    _, memory = evaluate_and_write(loop, prompts, ready.state.deltas, ready)
    return dataclasses.replace(ready, collapse=memory), time.perf_counter() - started


def evaluate_and_write(
    loop: Loop, prompts: list, deltas: lora2r.Factors, ready: Progress
) -> tuple[list[Evaluation], collapse.Memory]:
    """Evaluates one adapter under both policies, writes both lines, and warns of a collapse."""
    loop.table.status("evaluating")
    run, memory = loop.run, ready.collapse
    evaluations, records = evaluate(
        run.config, run.programs.generator, loop.grader, prompts, frozen=run.frozen, deltas=deltas, step=ready.step
    )
    for evaluation in evaluations:
        loop.writer.write_evaluation(evaluation)
        memory, warnings = collapse.observe_evaluation(memory, evaluation)
        for text in warnings:
            logger.warning("%s", text)
    loop.writer.write_evaluation_completions(ready.step, records)
    return evaluations, memory


def save(loop: Loop, chosen: tuple[lora2r.Factors, int] | None = None) -> Path:
    """Writes the adapter artefact: of `chosen` differences and their number of updates, or of the current state."""
    config, path = loop.run.config, loop.writer.workdir / "adapter"
    deltas, step = chosen or (loop.progress.state.deltas, int(loop.progress.state.step))
    metadata = {"config": config.to_dict(), "step": step, **loop.run.provenance}
    checkpoint.save_adapter(path, deltas, loop.run.frozen.init, metadata, seed=config.adapter.seed)
    return path


def finish(loop: Loop) -> dict[str, Any]:
    """Saves the adapter, evaluates it as reloaded from its artefact, and writes and prints the result."""
    config, run, last = loop.run.config, loop.run, loop.progress
    deltas, _ = checkpoint.load_adapter(save(loop), init=run.frozen.init)
    deltas = jax.device_put(deltas, sharding.factor_shardings(run.mesh, deltas))
    with loop.signals.abandonable():
        evaluations, _ = evaluate_and_write(loop, run.world.heldout_prompts(None), deltas, last)
    continuation.drop_graded(loop.writer.workdir)
    summary = {
        "arm": config.arm,
        "scale": config.scale,
        "steps": config.train.steps,
        "live_groups": last.live_groups,
        "groups": config.train.steps * config.rollout.prompts,
        "evaluations": [evaluation.to_record() for evaluation in evaluations],
    }
    loop.writer.write_summary(summary)
    loop.table.close()
    print()
    if last.live_groups == 0:
        print("No group had anything to learn from: in every one all rewards were equal, so the adapter never moved.")
        print()
    print(final_table(evaluations, loop.writer.paths(), before=loop.writer.first_evaluation()))
    return summary
