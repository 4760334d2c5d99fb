"""penalty: what exploited the grader is paid less, before its group is compared (Ariahw, Engels and Nanda 2025).

It needs verdicts. `penalty.coefficient` says how much less.

On two CPU cores, half a minute, nothing to download:
    python -m vgrout_jax.main --config=configs/penalty.py:smoke
Qwen3-4B on one GPU (not measured yet):
    python -m vgrout_jax.main --config=configs/penalty.py --config.data.train=FILE --config.teacher.pool=FOLDER
"""

from vgrout_jax.config import Config
from vgrout_jax.config.scales import make_config


def get_config(scale: str = "fast") -> Config:
    return make_config("penalty", scale)
