"""What can be set, and what each scale sets.

schema      every setting of a run, one comment a field
scales      smoke, toy, fast and full, and what an arm changes of them
validation  what a configuration must satisfy, one line for each mistake
"""

from vgrout_jax.config.schema import (
    ARMS,
    MODES,
    SCALES,
    SMOKE,
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
    LogConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    PlaceboConfig,
    ProfileConfig,
    RolloutConfig,
    TeacherConfig,
    TrainConfig,
)

__all__ = [
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
    "SMOKE",
    "TOY",
    "TeacherConfig",
    "TrainConfig",
]
