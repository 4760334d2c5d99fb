"""routeV: the method. Each rollout's probe gradient is held against the direction of the pairs.

    python -m vgrout_jax.main --config=configs/routeV.py:smoke      CPU, under a minute, no download
    python -m vgrout_jax.main --config=configs/routeV.py            Qwen3-4B on one GPU (scale fast)
    python -m vgrout_jax.main --config=configs/routeV.py:full       the public benchmark's workload
"""

from vgrout_jax.presets import make_config


def get_config(scale: str = "fast"):
    return make_config("routeV", scale)
