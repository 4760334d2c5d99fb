"""The toy world's base policy, trained from scratch; its weights ship with the package.

On two CPU cores:
    python -m vgrout_jax.pretrain --config=configs/toy_base.py --out=out/toy_policy
"""

from vgrout_jax.supervised.toy_policy import PretrainConfig


def get_config() -> PretrainConfig:
    return PretrainConfig()
