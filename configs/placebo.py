"""placebo: routeV with the gate's information taken away; `placebo.kind` says how (docs/method.md section 5).

On two CPU cores, half a minute, nothing to download:
    python -m vgrout_jax.main --config=configs/placebo.py:smoke --config.placebo.kind=labels
Kinds: direction (the default), direction_matched, labels, lazy_pairs.
"""

from vgrout_jax.config import Config
from vgrout_jax.config.scales import make_config


def get_config(scale: str = "fast") -> Config:
    return make_config("placebo", scale)
