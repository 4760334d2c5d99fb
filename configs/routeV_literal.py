"""routeV_literal: routeV with in-sample bands per module and thresholds 0 and 1.

    python -m vgrout_jax.main --config=configs/routeV_literal.py:smoke
"""

from vgrout_jax.presets import make_config


def get_config(scale: str = "fast"):
    return make_config("routeV_literal", scale)
