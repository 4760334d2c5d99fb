"""Replays the gate over a run's stored gradients, with its own or with another setting.

Scores, labels, directions and bands come from the arm's own source. Where a setting keeps the
run's directions and bands, the scores that the run stored are labelled, so that the run's own labels come out
exactly; else scores are computed from the stored gradients, which bfloat16 has rounded.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgrout_jax.arms.base import Readings
from vgrout_jax.arms.compose import make_arm
from vgrout_jax.arms.probe import Probe
from vgrout_jax.config import Config
from vgrout_jax.routing import direction, gate
from vgrout_jax.routing.direction import Routing
from vgrout_jax.routing.pairs import load_pairs, pairs_sha256
from vgrout_jax.run import gradients
from vgrout_jax.run.gradients import StoredStep
from vgrout_jax.run.reader import Workdir, flatten
from vgrout_jax.sampling import keys

RANDOM = ("direction", "direction_matched")
NAMES = {"clean": gate.CLEAN, "mid": gate.MID, "hack": gate.HACK}


@dataclasses.dataclass(frozen=True)
class ReplayedStep:
    """A step under the replayed setting, beside what the run did.

    Attributes:
        step: of the optimiser.
        scores: [N] float32, z; 0 where `scored` is False.
        scored: [N] bool.
        labels: [N] int32.
        cosines: [N, M] float32, with the setting's direction.
        stored: what the run stored.
        exploited, correct: [N] bool, the true labels, for measuring only.
        rounding: greatest difference of a stored score from the one computed from stored gradients; None where
            the setting has directions or bands of its own, so that there is nothing to compare.
    """

    step: int
    scores: np.ndarray
    scored: np.ndarray
    labels: np.ndarray
    cosines: np.ndarray
    stored: StoredStep
    exploited: np.ndarray
    correct: np.ndarray
    rounding: float | None


@dataclasses.dataclass(frozen=True)
class Replay:
    """A run under a setting of the gate.

    Attributes:
        config: the run's configuration with the setting's fields.
        changed: the fields in which it is not the run's own.
        exact: whether directions and bands are the run's own, so that stored scores were labelled.
        steps: all stored steps, ascending.
    """

    config: Config
    changed: dict[str, Any]
    exact: bool
    steps: tuple[ReplayedStep, ...]


def replay(run: Workdir, config: Config, visit: Callable[[int], object] = lambda step: None) -> Replay:
    """Every stored step of `run` under the gate of `config`; `visit` is called after each, for progress.

    Raises:
        ValueError: the run has no stored gradients, or the setting asks for directions that it did not store.
    """
    steps = gradients.stored_steps(run.path)
    if not steps or not make_arm(run.config).source.reads_probe:
        raise ValueError(f"{run.path} has no stored gradients; train a routed arm with --config.log.gradients=true")
    source = make_arm(config).source
    exact = _routing_key(config) == _routing_key(run.config)
    routings = _own_routings(run) if exact else _fresh_routings(run, config, source)
    score, zone, cosines = jax.jit(source.score), jax.jit(source.zone), jax.jit(direction.cosines)
    replayed = []
    for step in steps:
        stored = gradients.load_step(run.path, step)
        routing = routings[_extraction_before(step, list(routings), config, source)]
        probe, rounding = jnp.asarray(stored.probe), None
        found = score(probe, routing, jnp.asarray(stored.advantage != 0))
        if not bool(found.finite):
            raise ValueError(f"step {step} of {run.path}: a stored gradient or its score is not finite")
        if exact:
            rounding = float(np.max(np.abs(stored.score - np.asarray(found.score)), initial=0.0))
            other = found.other if stored.placebo_score is None else stored.placebo_score
            found = found.replace(score=stored.score, scored=stored.scored, other=other)
        labels = zone(found, keys.label_key(config.seed, step))
        truth = _truth(run, step, stored)
        arrays = [np.asarray(leaf) for leaf in (found.score, found.scored, labels, cosines(probe, routing.v))]
        replayed.append(ReplayedStep(step, *arrays, stored, *truth, rounding))
        visit(step)
    return Replay(config, _changes(run.config, config), exact, tuple(replayed))


def _routing_key(config: Config) -> tuple:
    """What directions and bands depend on."""
    random = config.placebo.kind if config.placebo.kind in RANDOM else None
    seed = config.placebo.seed if random else None
    gate_, pairs = config.gate, config.direction
    settings = (gate_.pool, gate_.band_floor, gate_.leave_one_out, gate_.refresh_every, pairs.unit_sides)
    return (*settings, random, seed, pairs.pairs, tuple(pairs.tags or ()))


def _own_routings(run: Workdir) -> dict[int, Routing]:
    return {step: gradients.load_direction(run.path, step)[0] for step in gradients.stored_directions(run.path)}


def _fresh_routings(run: Workdir, config: Config, source: Probe) -> dict[int, Routing]:
    """Directions and bands made anew from the stored gradients of the pairs' sides."""
    chosen = _chosen_pairs(run, config)
    learn = jax.jit(lambda gradients: source.learn(Readings(gradients)))
    routings: dict[int, Routing] = {}
    previous = None
    for step in gradients.stored_directions(run.path):
        if step % config.gate.refresh_every:
            continue
        _, sides = gradients.load_direction(run.path, step)
        pairs = sides.shape[0] // 2
        rows = np.arange(pairs) if chosen is None else chosen
        fresh = learn(jnp.asarray(sides[np.concatenate([rows, pairs + rows])]))
        source.check(fresh)
        previous = fresh if previous is None else source.renew(previous, fresh)
        routings[step] = previous
    return routings


def _extraction_before(step: int, available: list[int], config: Config, source: Probe) -> int:
    """The extraction that serves a step.

    Raises:
        ValueError: the run did not store it.
    """
    wanted = 0 if source.learns_once else step - step % config.gate.refresh_every
    if wanted not in available:
        raise ValueError(
            f"gate.refresh_every={config.gate.refresh_every} needs the direction of step {wanted}, which this run "
            f"did not store; it must be a multiple of the run's own, or {step + 1} or more for the first alone"
        )
    return wanted


def _chosen_pairs(run: Workdir, config: Config) -> np.ndarray | None:
    """Rows of the stored sides that the setting's pairs are; None where they are the run's own.

    Raises:
        ValueError: the run's pairs are not what they were, or did not hold one that the setting asks for.
    """
    own = run.config.direction
    if (own.pairs, own.tags) == (config.direction.pairs, config.direction.tags):
        return None
    before = load_pairs(own.pairs, own.tags or ())
    if pairs_sha256(before) != run.provenance.get("pairs_sha256"):
        raise ValueError(
            f"direction.pairs: {own.pairs} has changed since {run.path} was made; bring back that version"
        )
    wanted = load_pairs(config.direction.pairs, config.direction.tags or ())
    new = [pair.name for pair in wanted if pair not in before]
    if new:
        raise ValueError(
            f"direction.tags: {run.path} has no gradients of the pair {new[0]}; choose among its own pairs"
        )
    return np.array([before.index(pair) for pair in wanted])


def _truth(run: Workdir, step: int, stored: StoredStep) -> tuple[np.ndarray, np.ndarray]:
    """Hack and solve flags of a step's rollouts, which must be the ones whose gradients are stored.

    Raises:
        ValueError: rollouts and gradients are not of one step.
    """
    rollouts = run.training_rollouts(step)
    if [NAMES[rollout.label] for rollout in rollouts] != stored.label.tolist():
        raise ValueError(
            f"step {step} of {run.path}: labels in rollouts/ and gradients/ differ; one is another run's"
        )
    return np.array([row.exploited for row in rollouts]), np.array([row.correct for row in rollouts])


def _changes(own: Config, config: Config) -> dict[str, Any]:
    """Fields in which `config` is not the run's own, with their new values; the arm's name aside."""
    before, now = flatten(own.to_dict()), flatten(config.to_dict())
    return {name: value for name, value in now.items() if value != before[name] and name != "arm"}
