"""The configuration of a run: nested dataclasses, one comment a field, validated after overrides.

Every default lives here or in `scales.py` or in `arms.py`, each in one place.
A field is set on the command line as `--config.section.field=value`.
"""

import dataclasses
import logging
from typing import Any, Optional

from vgrout_jax.config.arms import ARMS

logger = logging.getLogger(__name__)

SMOKE = "builtin:smoke"  # the package's own problems, and the completions that answer them
TOY = "builtin:toy"  # the toy world's training problems, and its base policy
SCALES = ("smoke", "toy", "fast", "full")
SOURCES = ("none", "probe", "monitor", "residual")
ACTIONS = ("route", "absorb", "penalise", "modulate_mul")
MODES = (  # a line a mode, which is the name of its file in env/modes/
    "run_tests",
    "stdout_marker",
    "sentinel",
    "file_marker",
    "eq_override",
    "exit_code",
    "gt_only",
)


def setting(default: Any, **rules: Any) -> Any:
    """A field with what its value must satisfy.

    Args:
        default: of the field.
        rules: `at_least`, `at_most` and `above`, numbers; `because`, why there is a most; `share`, a number between 0
            and 1; `choices`, a tuple.
    """
    return dataclasses.field(default=default, metadata=rules)


def random_seed() -> Any:
    """A field that holds the seed of some random numbers, 0 by default."""
    why = "jax keeps 32 bits of a seed, so that larger ones would share their keys"
    return setting(0, at_least=0, at_most=2**32 - 1, because=why)


@dataclasses.dataclass
class ModelConfig:
    path: Optional[str] = "Qwen/Qwen3-4B"  # folder, hub name or builtin:toy; None: random weights of the fields below
    # of the frozen base and of activations: bfloat16 or float32
    dtype: str = setting("bfloat16", choices=("float32", "bfloat16"))
    # what of a layer the backward pass computes anew: nothing, cheap (all but the large products, which takes some
    # 70 KB a layer and token at 4B) or everything (5 KB, and a third more operations)
    remat: str = setting("cheap", choices=("nothing", "cheap", "everything"))
    logprob_chunk: int = setting(1024, at_least=1)  # tokens whose [chunk, V] logits exist at one time
    vocab_size: Optional[int] = None  # tiny model only; None: the tokenizer's, rounded up to 64
    hidden_size: int = setting(64, at_least=1)  # tiny model only, as the fields below
    intermediate_size: int = setting(160, at_least=1)
    num_layers: int = setting(2, at_least=1)
    num_heads: int = 4
    num_kv_heads: int = setting(2, at_least=1)
    head_dim: int = setting(24, at_least=2)
    tie_embeddings: bool = True
    seed: int = random_seed()  # of the tiny model's random weights


@dataclasses.dataclass
class AdapterConfig:
    rank: int = setting(32, at_least=1)  # r, per block; 2r rows and columns are stored
    seed: int = random_seed()  # of A0 and B0, together with the module's name


@dataclasses.dataclass
class DataConfig:
    train: tuple[str, ...] = ()  # JSONL paths, URLs, Hugging Face dataset names, builtin:smoke, builtin:toy
    heldout: tuple[str, ...] = ()  # the same; empty: heldout_frac of train is set aside
    heldout_frac: float = setting(0.2, share=True)  # share of train set aside when heldout is empty
    max_prompt_tokens: int = setting(1536, at_least=1)  # a longer prompt is an error
    prompt_buckets: tuple[int, ...] = (32, 64, 128, 256, 512, 768, 1024, 1280, 1536)  # padded prompt lengths
    # of the split, the partition over modes and the order of problems
    seed: int = random_seed()


@dataclasses.dataclass
class EnvConfig:
    modes: tuple[str, ...] = ("run_tests", "stdout_marker", "sentinel", "file_marker")  # problems are split evenly
    # share of a step's prompts shown with the plain sentence, graded gt_only
    unhackable_frac: float = setting(0.25, share=True)
    hints: Optional[str] = None  # JSON file {mode: sentence} that replaces the project's own disclosures


@dataclasses.dataclass
class RolloutConfig:
    prompts: int = setting(8, at_least=1)  # P, prompts a step
    group_size: int = setting(8, at_least=2)  # G, rollouts a prompt
    max_new_tokens: int = setting(512, at_least=1)  # T
    temperature: float = setting(0.7, above=0)
    top_k: int = setting(0, at_least=0)  # 0: off
    top_p: float = setting(0.95, above=0, share=True)  # 1: off
    # share of each group's own rollouts sampled with the quarantine ablated
    deployed_frac: float = setting(0.5, share=True)


@dataclasses.dataclass
class TeacherConfig:
    pool: tuple[str, ...] = ()  # JSONL files (.gz or not), folders of them, or builtin:smoke
    per_prompt: int = setting(0, at_least=0)  # rows of a group that come from the pool
    off_step: int = setting(30, at_least=0)  # the pool is used before this step


@dataclasses.dataclass
class DirectionConfig:
    pairs: str = "builtin:pairs"  # Markdown file of contrastive pairs, or builtin:toy_pairs
    tags: Optional[tuple[str, ...]] = None  # pairs with any of these tags, () all; None: hack (lazy for lazy_pairs)
    unit_sides: bool = True  # unit norm of each side's gradient, per module, before differencing
    pairs_per_batch: int = setting(8, at_least=1)  # sequences of a forward pass in the extraction


@dataclasses.dataclass
class LabelConfig:
    # who flags a rollout: none, probe (the gate), monitor (verdicts) or residual; the arm's
    source: str = setting("probe", choices=SOURCES)
    # what becomes of the flagged: route, absorb, penalise or modulate_mul; the arm's
    action: str = setting("route", choices=ACTIONS)


@dataclasses.dataclass
class GateConfig:
    low: float = -0.1  # z <= low is clean
    high: float = 0.0  # z >= high is hack
    pool: str = setting("mean_then_band", choices=("mean_then_band", "band_then_mean"))  # or band_then_mean
    band_floor: float = setting(0.05, above=0)  # least band width
    leave_one_out: bool = True  # a pair's cosines are taken against the direction of the other pairs
    # policy whose gradient pass 1 reads: ablated or full
    probe_policy: str = setting("ablated", choices=("ablated", "full"))
    refresh_every: int = setting(5, at_least=1)  # steps between extractions of the direction


@dataclasses.dataclass
class PlaceboConfig:
    kind: Optional[str] = None  # direction, direction_matched, labels or lazy_pairs; None: not a placebo
    seed: int = random_seed()  # of the random direction


@dataclasses.dataclass
class PenaltyConfig:
    coefficient: float = setting(3.0, at_least=0)  # what a flagged rollout loses of its reward


@dataclasses.dataclass
class ModulateConfig:
    alpha: float = setting(2.0, at_least=0)  # strength of the advantage modification


@dataclasses.dataclass
class GrpoConfig:
    unbiased: bool = True  # Dr. GRPO; False divides by the group's standard deviation and each rollout's length


@dataclasses.dataclass
class LossConfig:
    ratio: str = setting("truncated", choices=("truncated", "clip"))  # or clip
    clip_epsilon: float = setting(0.2, at_least=0)
    kl_coefficient: float = setting(1e-3, at_least=0)  # 0: no reference forward


@dataclasses.dataclass
class OptimConfig:
    lr: float = setting(3e-4, at_least=0)  # peak
    warmup_frac: float = setting(0.2, share=True)  # share of the steps
    weight_decay: float = setting(0.1, at_least=0)  # decoupled, toward A0 and B0
    beta1: float = setting(0.9, share=True)
    beta2: float = setting(0.99, share=True)
    epsilon: float = setting(1e-8, above=0)
    clip_norm: float = setting(1.0, above=0)  # global norm of the gradient


@dataclasses.dataclass
class TrainConfig:
    steps: int = setting(60, at_least=1)
    micro_batch: int = setting(8, at_least=1)  # rollouts of one forward and backward pass; packed: of a quarter of T
    # or plain: the same passes over whole rollouts, nothing shared, packed or skipped
    schedule: str = setting("fast", choices=("fast", "plain"))
    share_prompts: bool = True  # read a prompt once for all rollouts of its group, where it is long enough for that


@dataclasses.dataclass
class EvalConfig:
    every_steps: int = setting(20, at_least=0)  # 0: only before and after training
    samples: int = setting(4, at_least=1)  # completions a problem
    problems: Optional[int] = 64  # held-out problems of an evaluation during training; None: all, as at the end
    temperature: float = setting(0.7, at_least=0)
    seed: int = random_seed()


@dataclasses.dataclass
class GraderConfig:
    workers: Optional[int] = None  # answers graded at a time; None: one a core
    cpu_seconds: float = setting(10.0, above=0)  # CPU time of an answer, all its tests together
    # time in which an answer neither computes nor waits for a core, as a sleeper
    idle_seconds: float = setting(15.0, above=0)
    memory_mb: int = setting(1024, at_least=128)  # address space of an answer
    folder_mb: int = setting(32, at_least=1)  # files of an answer, all together
    bubblewrap: bool = True  # use bubblewrap where it is installed and permitted
    # weakest containment of files accepted: bubblewrap, or landlock
    minimum: str = setting("landlock", choices=("landlock", "bubblewrap"))
    allow_unsandboxed: bool = False  # run answers below the minimum (logged loudly)


@dataclasses.dataclass
class GuardConfig:
    references: int = setting(4, at_least=0)  # fixed reference completions whose log-probability is watched; 0: off
    warn_nats: float = setting(3.0, above=0)  # fall of their mean log-probability below its best that is reported
    stop_nats: float = setting(5.0, above=0)  # fall that stops the run when it is seen for two steps running


@dataclasses.dataclass
class CheckpointConfig:
    # steps between resume states; 0: only when the run is asked to end, and at its end
    every_steps: int = setting(5, at_least=0)
    keep: int = setting(3, at_least=1)  # newest resume states that are kept


@dataclasses.dataclass
class MeshConfig:
    data: int = setting(1, at_least=1)  # devices along each axis; their product must be the number of devices
    fsdp: int = setting(1, at_least=1)
    tensor: int = setting(1, at_least=1)


@dataclasses.dataclass
class LogConfig:
    tensorboard: bool = True
    wandb: bool = False
    wandb_project: str = "vgrout_jax"
    gradients: bool = False  # store every rollout's probe gradient (bfloat16), each v and bands, for replay


@dataclasses.dataclass
class ProfileConfig:
    steps: tuple[int, ...] = ()  # steps whose trace is written to WORKDIR/profile, for TensorBoard or Perfetto


@dataclasses.dataclass
class Config:
    arm: str = setting("routeV", choices=tuple(ARMS))
    scale: str = setting("fast", choices=SCALES)
    # root of the run's key tree: sampling, the draw of problems and of teacher rows
    seed: int = random_seed()
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    adapter: AdapterConfig = dataclasses.field(default_factory=AdapterConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    env: EnvConfig = dataclasses.field(default_factory=EnvConfig)
    rollout: RolloutConfig = dataclasses.field(default_factory=RolloutConfig)
    teacher: TeacherConfig = dataclasses.field(default_factory=TeacherConfig)
    direction: DirectionConfig = dataclasses.field(default_factory=DirectionConfig)
    label: LabelConfig = dataclasses.field(default_factory=LabelConfig)
    gate: GateConfig = dataclasses.field(default_factory=GateConfig)
    placebo: PlaceboConfig = dataclasses.field(default_factory=PlaceboConfig)
    penalty: PenaltyConfig = dataclasses.field(default_factory=PenaltyConfig)
    modulate: ModulateConfig = dataclasses.field(default_factory=ModulateConfig)
    grpo: GrpoConfig = dataclasses.field(default_factory=GrpoConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    grader: GraderConfig = dataclasses.field(default_factory=GraderConfig)
    guard: GuardConfig = dataclasses.field(default_factory=GuardConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    profile: ProfileConfig = dataclasses.field(default_factory=ProfileConfig)

    def resolve(self) -> None:
        """Settles what depends on other fields, and splits `a,b` given on the command line for a tuple of strings.

        The package's own completions answer its own problems alone: where `data.train` names others, they are
        left out, with a warning.
        """
        if self.direction.tags in (None, (None,)):  # the latter is how a flag's None arrives in a tuple
            self.direction.tags = ("lazy",) if self.placebo.kind == "lazy_pairs" else ("hack",)
        for section in (self.data, self.env, self.teacher, self.direction):
            for field in dataclasses.fields(section):
                value = getattr(section, field.name)
                if isinstance(value, tuple) and all(isinstance(part, str) for part in value):
                    parts = [piece.strip() for part in value for piece in part.split(",")]
                    setattr(section, field.name, tuple(piece for piece in parts if piece))
        if self.teacher.pool == (SMOKE,) and SMOKE not in self.data.train:
            logger.warning("teacher: the pool %s answers only its own problems, so no teacher row is used", SMOKE)
            self.teacher.pool, self.teacher.per_prompt = (), 0

    def to_dict(self) -> dict[str, Any]:
        """Every field as resolved, as nested dicts that JSON can hold."""
        return dataclasses.asdict(self)
