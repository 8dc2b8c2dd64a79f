"""Training of score kernels."""

from sda_core.training.anomaly import anomaly_hunt
from sda_core.training.arithmetic import arithmetic_rules
from sda_core.training.checkpoint import (
    Checkpoint,
    check_settings,
    load_checkpoint,
    save_checkpoint,
)
from sda_core.training.checkpoints import CheckpointFolder, starting_point
from sda_core.training.config import GuardConfig, TrainConfig
from sda_core.training.events import EpochMetrics, Event, LossSpike, SkippedBatch, Step
from sda_core.training.group import Group
from sda_core.training.in_memory import fit
from sda_core.training.main_rank import MainRank, TrainingRun
from sda_core.training.memory import memory_in_use, peak_memory, reset_peak_memory
from sda_core.training.newest import newest_run
from sda_core.training.nonzero_rank import NonzeroRank
from sda_core.training.preview import TrainingPreview, measure_training
from sda_core.training.progress import (
    LocalProgress,
    ProgressReporter,
    RemoteProgress,
    Uploader,
    check_workers,
    run_with_progress,
)
from sda_core.training.trainer import Trainer
from sda_core.training.windows import open_windows

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
    "TrainingPreview",
    "TrainingRun",
    "Uploader",
    "anomaly_hunt",
    "arithmetic_rules",
    "check_settings",
    "check_workers",
    "fit",
    "load_checkpoint",
    "measure_training",
    "memory_in_use",
    "newest_run",
    "open_windows",
    "peak_memory",
    "reset_peak_memory",
    "run_with_progress",
    "save_checkpoint",
    "starting_point",
]
