"""The probe without its information: variants that take one thing away each (docs/method.md section 5)."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vgrout_jax.arms.base import Readings
from vgrout_jax.arms.probe import Probe, Scored
from vgrout_jax.routing import direction, gate
from vgrout_jax.routing.direction import Routing


@dataclasses.dataclass(frozen=True)
class RandomDirection(Probe):
    """A Haar-random direction in place of the real one, its bands from the same pairs in-sample; it never changes."""

    seed: int

    learns_once = True
    needs_module = False

    def learn(self, pairs: Readings) -> Routing:
        hack, clean = jnp.split(pairs.gradients, 2)
        with jax.ensure_compile_time_eval():  # drawn once, and the same bits in every program
            v = direction.haar_direction(jax.random.key(self.seed), *hack.shape[1:])
        return self.with_bands(v, hack, clean, against=v)


@dataclasses.dataclass(frozen=True)
class MatchedDirection(Probe):
    """As many clean, mid and hack labels as the real direction gives, dealt out by a random one."""

    seed: int

    needs_module = False

    def learn(self, pairs: Readings) -> Routing:
        random = RandomDirection(**dataclasses.asdict(self)).learn(pairs)
        return super().learn(pairs).replace(random=random)

    def renew(self, before: Routing, fresh: Routing) -> Routing:
        return fresh.replace(random=before.random)

    def usable_modules(self, memory: Routing) -> int:
        return min(super().usable_modules(memory), super().usable_modules(memory.random))

    def score(self, gradients: Float[Array, "N M R"], memory: Routing, asked: Bool[Array, "N"]) -> Scored:
        other = super().score(gradients, memory.random, asked)
        real = super().score(gradients, memory, other.scored)
        return real.replace(finite=real.finite & other.finite, other=jnp.where(real.scored, other.score, 0.0))

    def zone(self, found: Scored, key: Array) -> Int[Array, "N"]:
        return gate.matched_labels(super().zone(found, key), found.other, found.scored)


@dataclasses.dataclass(frozen=True)
class PermutedLabels(Probe):
    """The real labels, permuted among the rollouts that have one."""

    needs_module = False

    def zone(self, found: Scored, key: Array) -> Int[Array, "N"]:
        return gate.permuted_labels(key, super().zone(found, key), found.scored)


@dataclasses.dataclass(frozen=True)
class LazyPairs(Probe):
    """The real gate on pairs about something else than exploits; the pairs are chosen by `direction.tags`."""

    needs_module = False
