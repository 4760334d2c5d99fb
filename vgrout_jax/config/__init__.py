"""What can be set, and what each scale sets.

schema      every setting of a run, one comment a field
scales      smoke, toy, fast and full
arms        the table of arms: claim, source, labels needed, and the fields that each sets
validation  what a configuration must satisfy, one line for each mistake
flags       all of it on the command line
"""

from vgrout_jax.config.arms import ARMS
from vgrout_jax.config.schema import (
    ACTIONS,
    MODES,
    SCALES,
    SMOKE,
    SOURCES,
    TOY,
    AdapterConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    DirectionConfig,
    EnvConfig,
    EvalConfig,
    GateConfig,
    GraderConfig,
    GrpoConfig,
    GuardConfig,
    LabelConfig,
    LogConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    ModulateConfig,
    OptimConfig,
    PenaltyConfig,
    PlaceboConfig,
    ProfileConfig,
    RolloutConfig,
    TeacherConfig,
    TrainConfig,
)

__all__ = [
    "ACTIONS",
    "ARMS",
    "AdapterConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DirectionConfig",
    "EnvConfig",
    "EvalConfig",
    "GateConfig",
    "GraderConfig",
    "GrpoConfig",
    "GuardConfig",
    "LogConfig",
    "LossConfig",
    "MODES",
    "MeshConfig",
    "ModelConfig",
    "OptimConfig",
    "PlaceboConfig",
    "ProfileConfig",
    "RolloutConfig",
    "SCALES",
    "SOURCES",
    "SMOKE",
    "TOY",
    "TeacherConfig",
    "TrainConfig",
    "LabelConfig",
    "ModulateConfig",
    "PenaltyConfig",
]
