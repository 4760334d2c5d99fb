"""placebo: routeV with the gate's information taken away (direction, direction_matched, labels, lazy_pairs).

    python -m vgrout_jax.main --config=configs/placebo.py:smoke --config.placebo.kind=labels
"""

from vgrout_jax.presets import make_config


def get_config(scale: str = "fast"):
    return make_config("placebo", scale)
