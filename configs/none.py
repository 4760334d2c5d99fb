"""none: the gate pinned clean. The capacity-matched control, whose quarantine never trains.

On two CPU cores, half a minute, nothing to download:
    python -m vgrout_jax.main --config=configs/none.py:smoke
Qwen3-4B on one GPU (not measured yet):
    python -m vgrout_jax.main --config=configs/none.py --config.data.train=FILE --config.teacher.pool=FOLDER
"""

from vgrout_jax.config import Config
from vgrout_jax.config.scales import make_config


def get_config(scale: str = "fast") -> Config:
    return make_config("none", scale)
