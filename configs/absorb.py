"""absorb: the gate pinned mid. Both blocks train on everything, without a gate.

    python -m vgrout_jax.main --config=configs/absorb.py:smoke
"""

from vgrout_jax.presets import make_config


def get_config(scale: str = "fast"):
    return make_config("absorb", scale)
