"""none: the gate pinned clean. The capacity-matched control, whose quarantine never trains.

    python -m vgrout_jax.main --config=configs/none.py:smoke
"""

from vgrout_jax.presets import make_config


def get_config(scale: str = "fast"):
    return make_config("none", scale)
