"""routeV_literal: routeV with in-sample bands per module and thresholds 0 and 1 (docs/method.md section 6).

On two CPU cores, half a minute, nothing to download:
    python -m vgrout_jax.main --config=configs/routeV_literal.py:smoke
Qwen3-4B on one GPU (not measured yet):
    python -m vgrout_jax.main --config=configs/routeV_literal.py --config.data.train=FILE --config.teacher.pool=FOLDER
"""

from vgrout_jax.config import Config
from vgrout_jax.config.scales import make_config


def get_config(scale: str = "fast") -> Config:
    return make_config("routeV_literal", scale)
