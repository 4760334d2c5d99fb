"""The scales smoke, toy, fast and full (docs/method.md section 16), before what an arm changes of them.

`fast` is what `schema.py` holds; the other scales are written here as differences from it.
"""

from vgrout_jax.config.arms import ARMS
from vgrout_jax.config.schema import SCALES, SMOKE, TOY, Config


def make_config(arm: str, scale: str = "fast") -> Config:
    """The configuration of one arm at one scale, before overrides.

    Raises:
        ValueError: an unknown arm or scale.
    """
    if arm not in ARMS:
        raise ValueError(f"arm must be one of {', '.join(ARMS)}, got {arm!r}")
    if scale not in SCALES:
        raise ValueError(f"the scale after the config file must be one of {', '.join(SCALES)}, got {scale!r}")
    config = Config(arm=arm, scale=scale)
    _SCALES[scale](config)
    for name, value in ARMS[arm].fields.items():
        section, field = name.split(".")
        setattr(getattr(config, section), field, value)
    return config


def _fast(config: Config) -> None:
    """Qwen3-4B on one GPU, the four-arm decision run."""
    config.teacher.per_prompt = 1
    config.teacher.off_step = 30


def _full(config: Config) -> None:
    """Qwen3-4B, the public benchmark's own workload."""
    config.rollout.prompts = 16
    config.rollout.group_size = 16
    config.rollout.max_new_tokens = 1536
    config.train.steps = 200
    config.optim.lr = 7e-5
    config.env.modes = ("run_tests",)
    config.env.unhackable_frac = 0.0


def _smoke(config: Config) -> None:
    """Tiny random weights, the package's own problems, teacher rows and pairs: every path, no download."""
    config.model.path = None
    config.model.dtype = "float32"
    config.model.remat = "nothing"
    config.adapter.rank = 4
    config.data.train = (SMOKE,)
    # The package's own prompts fit the first bucket; real problems, in this small vocabulary, the third.
    config.data.max_prompt_tokens, config.data.prompt_buckets = 4096, (32, 256, 2048, 4096)
    config.rollout.prompts = 2
    config.rollout.group_size = 4
    config.rollout.max_new_tokens = 32
    config.rollout.temperature = 1.0
    config.rollout.top_p = 1.0
    config.teacher.pool = (SMOKE,)
    config.teacher.per_prompt = 1
    config.train.steps = 6
    config.train.micro_batch = 8
    config.direction.pairs_per_batch = 12
    config.eval.every_steps = 3
    config.eval.samples = 2
    config.guard.references = 2
    config.checkpoint.every_steps = 2
    # A random policy's scores mean nothing; these thresholds spread them over all three zones.
    config.gate.low, config.gate.high = -1.0, 0.0


def _toy(config: Config) -> None:
    """The toy world and its own small policy: what routing does, on two CPU cores within minutes."""
    config.model.path = TOY
    config.model.dtype = "float32"
    config.model.remat = "nothing"
    config.adapter.rank = 16
    config.data.train, config.data.heldout = (TOY,), (f"{TOY}_heldout",)
    config.data.max_prompt_tokens, config.data.prompt_buckets = 32, (24, 32)
    config.env.unhackable_frac = 0.0
    config.rollout.max_new_tokens = 32
    config.rollout.temperature = 1.0
    config.rollout.top_p = 1.0
    config.direction.pairs = f"{TOY}_pairs"
    config.direction.pairs_per_batch = 24
    config.loss.kl_coefficient = 0.0
    config.optim.lr = 1e-3
    config.optim.weight_decay = 0.0
    config.train.micro_batch = 16
    # Small enough to evaluate on all problems every time: the base policy and the final one answer the same.
    config.eval.problems, config.eval.samples = None, 2


_SCALES = {"smoke": _smoke, "toy": _toy, "fast": _fast, "full": _full}
