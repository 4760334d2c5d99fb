"""Makes the arm that a configuration asks for: the two tables of sources and of uses."""

from typing import Any

from vgrout_jax.arms.absorb import Absorb
from vgrout_jax.arms.base import Arm, Source
from vgrout_jax.arms.modulate import ModulateMul
from vgrout_jax.arms.monitor import Monitor
from vgrout_jax.arms.nobody import Nobody
from vgrout_jax.arms.penalise import Penalise
from vgrout_jax.arms.placebos import LazyPairs, MatchedDirection, PermutedLabels, RandomDirection
from vgrout_jax.arms.probe import Probe
from vgrout_jax.arms.residual import Residual
from vgrout_jax.arms.route import Route
from vgrout_jax.config import Config


def make_arm(config: Config) -> Arm:
    """The arm of a validated configuration."""
    return Arm(_SOURCES[config.label.source](config), _USES[config.label.action](config))


def _probe(config: Config) -> Source:
    settings: dict[str, Any] = {
        "low": config.gate.low,
        "high": config.gate.high,
        "pool": config.gate.pool,
        "band_floor": config.gate.band_floor,
        "unit_sides": config.direction.unit_sides,
        "leave_one_out": config.gate.leave_one_out,
    }
    match config.placebo.kind:
        case "direction":
            return RandomDirection(**settings, seed=config.placebo.seed)
        case "direction_matched":
            return MatchedDirection(**settings, seed=config.placebo.seed)
        case "labels":
            return PermutedLabels(**settings)
        case "lazy_pairs":
            return LazyPairs(**settings)
    return Probe(**settings)


_SOURCES: dict[str, Any] = {
    "none": lambda config: Nobody(),
    "probe": _probe,
    "monitor": lambda config: Monitor(),
    "residual": lambda config: Residual(),
}
_USES: dict[str, Any] = {
    "route": lambda config: Route(),
    "absorb": lambda config: Absorb(),
    "penalise": lambda config: Penalise(config.penalty.coefficient, config.grpo.unbiased),
    "modulate_mul": lambda config: ModulateMul(config.modulate.alpha, config.grpo.unbiased),
}
