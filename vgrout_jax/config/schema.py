"""The configuration of a run: nested dataclasses, one comment a field, validated after overrides.

Every default lives here or in `scales.py` or in `arms.py`, each in one place.
A field is set on the command line as `--config.section.field=value`.
"""

import dataclasses
import logging
from typing import Any, Optional

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


@dataclasses.dataclass
class ModelConfig:
    path: Optional[str] = "Qwen/Qwen3-4B"  # folder, hub name or builtin:toy; None: random weights of the fields below
    dtype: str = "bfloat16"  # of the frozen base and of activations: bfloat16 or float32
    remat: str = "cheap"  # what of a layer the backward pass computes anew: nothing, cheap (all but the large
    # products, which takes some 70 KB a layer and token at 4B) or everything (5 KB, and a third more operations)
    logprob_chunk: int = 1024  # tokens whose [chunk, V] logits exist at one time
    vocab_size: Optional[int] = None  # tiny model only; None: the tokenizer's, rounded up to 64
    hidden_size: int = 64  # tiny model only, as the fields below
    intermediate_size: int = 160
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 24
    tie_embeddings: bool = True
    seed: int = 0  # of the tiny model's random weights


@dataclasses.dataclass
class AdapterConfig:
    rank: int = 32  # r, per block; 2r rows and columns are stored
    seed: int = 0  # of A0 and B0, together with the module's name


@dataclasses.dataclass
class DataConfig:
    train: tuple[str, ...] = ()  # JSONL paths, URLs, Hugging Face dataset names, builtin:smoke, builtin:toy
    heldout: tuple[str, ...] = ()  # the same; empty: heldout_frac of train is set aside
    heldout_frac: float = 0.2  # share of train set aside when heldout is empty
    max_prompt_tokens: int = 1536  # a longer prompt is an error
    prompt_buckets: tuple[int, ...] = (32, 64, 128, 256, 512, 768, 1024, 1280, 1536)  # padded prompt lengths
    seed: int = 0  # of the split, the partition over modes and the order of problems


@dataclasses.dataclass
class EnvConfig:
    modes: tuple[str, ...] = ("run_tests", "stdout_marker", "sentinel", "file_marker")  # problems are split evenly
    unhackable_frac: float = 0.25  # share of a step's prompts shown with the plain sentence, graded gt_only
    hints: Optional[str] = None  # JSON file {mode: sentence} that replaces the project's own disclosures


@dataclasses.dataclass
class RolloutConfig:
    prompts: int = 8  # P, prompts a step
    group_size: int = 8  # G, rollouts a prompt
    max_new_tokens: int = 512  # T
    temperature: float = 0.7
    top_k: int = 0  # 0: off
    top_p: float = 0.95  # 1: off
    deployed_frac: float = 0.5  # share of each group's own rollouts sampled with the quarantine ablated


@dataclasses.dataclass
class TeacherConfig:
    pool: tuple[str, ...] = ()  # JSONL files (.gz or not), folders of them, or builtin:smoke
    per_prompt: int = 0  # rows of a group that come from the pool
    off_step: int = 30  # the pool is used before this step


@dataclasses.dataclass
class DirectionConfig:
    pairs: str = "builtin:pairs"  # Markdown file of contrastive pairs, or builtin:toy_pairs
    tags: Optional[tuple[str, ...]] = None  # pairs with any of these tags, () all; None: hack (lazy for lazy_pairs)
    unit_sides: bool = True  # unit norm of each side's gradient, per module, before differencing
    pairs_per_batch: int = 8  # sequences of a forward pass in the extraction


@dataclasses.dataclass
class LabelConfig:
    source: str = "probe"  # who flags a rollout: none, probe (the gate), monitor (verdicts) or residual; the arm's
    action: str = "route"  # what becomes of the flagged: route, absorb, penalise or modulate_mul; the arm's


@dataclasses.dataclass
class GateConfig:
    low: float = -0.1  # z <= low is clean
    high: float = 0.0  # z >= high is hack
    pool: str = "mean_then_band"  # or band_then_mean
    band_floor: float = 0.05  # least band width
    leave_one_out: bool = True  # a pair's cosines are taken against the direction of the other pairs
    probe_policy: str = "ablated"  # policy whose gradient pass 1 reads: ablated or full
    refresh_every: int = 5  # steps between extractions of the direction


@dataclasses.dataclass
class PlaceboConfig:
    kind: Optional[str] = None  # direction, direction_matched, labels or lazy_pairs; None: not a placebo
    seed: int = 0  # of the random direction


@dataclasses.dataclass
class PenaltyConfig:
    coefficient: float = 3.0  # what a flagged rollout loses of its reward


@dataclasses.dataclass
class ModulateConfig:
    alpha: float = 2.0  # strength of the advantage modification


@dataclasses.dataclass
class GrpoConfig:
    unbiased: bool = True  # Dr. GRPO; False divides by the group's standard deviation and each rollout's length


@dataclasses.dataclass
class LossConfig:
    ratio: str = "truncated"  # or clip
    clip_epsilon: float = 0.2
    kl_coefficient: float = 1e-3  # 0: no reference forward


@dataclasses.dataclass
class OptimConfig:
    lr: float = 3e-4  # peak
    warmup_frac: float = 0.2  # share of the steps
    weight_decay: float = 0.1  # decoupled, toward A0 and B0
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8
    clip_norm: float = 1.0  # global norm of the gradient


@dataclasses.dataclass
class TrainConfig:
    steps: int = 60
    micro_batch: int = 8  # rollouts of one forward and backward pass; packed: of a quarter of T
    schedule: str = "fast"  # or plain: the same passes over whole rollouts, nothing shared, packed or skipped
    share_prompts: bool = True  # read a prompt once for all rollouts of its group, where it is long enough for that


@dataclasses.dataclass
class EvalConfig:
    every_steps: int = 20  # 0: only before and after training
    samples: int = 4  # completions a problem
    problems: Optional[int] = 64  # held-out problems of an evaluation during training; None: all, as at the end
    temperature: float = 0.7
    seed: int = 0


@dataclasses.dataclass
class GraderConfig:
    workers: Optional[int] = None  # answers graded at a time; None: one a core
    cpu_seconds: float = 10.0  # CPU time of an answer, all its tests together
    idle_seconds: float = 15.0  # time in which an answer neither computes nor waits for a core, as a sleeper
    memory_mb: int = 1024  # address space of an answer
    folder_mb: int = 32  # files of an answer, all together
    bubblewrap: bool = True  # use bubblewrap where it is installed and permitted
    minimum: str = "landlock"  # weakest containment of files accepted: bubblewrap, or landlock
    allow_unsandboxed: bool = False  # run answers below the minimum (logged loudly)


@dataclasses.dataclass
class GuardConfig:
    references: int = 4  # fixed reference completions whose log-probability is watched; 0: off
    warn_nats: float = 3.0  # fall of their mean log-probability below its best that is reported
    stop_nats: float = 5.0  # fall that stops the run when it is seen for two steps running


@dataclasses.dataclass
class CheckpointConfig:
    every_steps: int = 5  # steps between resume states; 0: only when the run is asked to end, and at its end
    keep: int = 3  # newest resume states that are kept


@dataclasses.dataclass
class MeshConfig:
    data: int = 1  # devices along each axis; their product must be the number of devices
    fsdp: int = 1
    tensor: int = 1


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
    arm: str = "routeV"
    scale: str = "fast"
    seed: int = 0  # root of the run's key tree: sampling, the draw of problems and of teacher rows
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
