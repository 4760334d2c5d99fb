"""routeV: the method. Each rollout's probe gradient is held against the direction of the pairs.

On two CPU cores, half a minute, nothing to download:
    python -m vgrout_jax.main --config=configs/routeV.py:smoke
Qwen3-4B on one GPU (not measured yet):
    python -m vgrout_jax.main --config=configs/routeV.py --config.data.train=FILE --config.teacher.pool=FOLDER
The public benchmark's workload (not measured yet):
    python -m vgrout_jax.main --config=configs/routeV.py:full --config.data.train=FILE
"""

from vgrout_jax.config import Config
from vgrout_jax.config.scales import make_config


def get_config(scale: str = "fast") -> Config:
    return make_config("routeV", scale)
