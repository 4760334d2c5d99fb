"""oracle: routing with the true label. What exploited the grader trains the quarantine (the ceiling of routing).

It needs verdicts, as no arm does that claims to need none.

On two CPU cores, half a minute, nothing to download:
    python -m vgrout_jax.main --config=configs/oracle.py:smoke
Qwen3-4B on one GPU (not measured yet):
    python -m vgrout_jax.main --config=configs/oracle.py --config.data.train=FILE --config.teacher.pool=FOLDER
"""

from vgrout_jax.config import Config
from vgrout_jax.config.scales import make_config


def get_config(scale: str = "fast") -> Config:
    return make_config("oracle", scale)
