"""Training of score kernels."""

from sda_core.training.anomaly import anomaly_hunt
from sda_core.training.arithmetic import arithmetic_rules
from sda_core.training.checkpoint import (
    Checkpoint,
    check_settings,
    load_checkpoint,
    save_checkpoint,
)
from sda_core.training.checkpoints import CheckpointFolder
from sda_core.training.config import GuardConfig, TrainConfig
from sda_core.training.events import EpochMetrics, Event, LossSpike, SkippedBatch, Step
from sda_core.training.group import Group
from sda_core.training.in_memory import fit
from sda_core.training.main_rank import MainRank, TrainingRun
from sda_core.training.memory import memory_in_use, peak_memory, reset_peak_memory
from sda_core.training.newest import newest_run
from sda_core.training.nonzero_rank import NonzeroRank
from sda_core.training.progress import (
    LocalProgress,
    ProgressReporter,
    RemoteProgress,
    run_with_progress,
)
from sda_core.training.trainer import Trainer

__all__ = [
    "Checkpoint",
    "CheckpointFolder",
    "EpochMetrics",
    "Event",
    "Group",
    "GuardConfig",
    "LocalProgress",
    "LossSpike",
    "MainRank",
    "NonzeroRank",
    "ProgressReporter",
    "RemoteProgress",
    "SkippedBatch",
    "Step",
    "TrainConfig",
    "Trainer",
    "TrainingRun",
    "anomaly_hunt",
    "arithmetic_rules",
    "check_settings",
    "fit",
    "load_checkpoint",
    "memory_in_use",
    "newest_run",
    "peak_memory",
    "reset_peak_memory",
    "run_with_progress",
    "save_checkpoint",
]
