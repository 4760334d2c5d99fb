"""modulate_mul: the reward shrinks with the residual stream's hack score (Wu and Tang 2026, 2604.01476).

It needs pairs. `modulate.alpha` says how strongly.

On two CPU cores, half a minute, nothing to download:
    python -m vgrout_jax.main --config=configs/modulate_mul.py:smoke
Qwen3-4B on one GPU (not measured yet):
    python -m vgrout_jax.main --config=configs/modulate_mul.py --config.data.train=FILE --config.teacher.pool=FOLDER
"""

from vgrout_jax.config import Config
from vgrout_jax.config.scales import make_config


def get_config(scale: str = "fast") -> Config:
    return make_config("modulate_mul", scale)
