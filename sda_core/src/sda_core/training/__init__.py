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
from sda_core.training.memory import memory_in_use, peak_memory, reset_peak_memory
from sda_core.training.trainer import Trainer

__all__ = [
    "Checkpoint",
    "CheckpointFolder",
    "EpochMetrics",
    "Event",
    "Group",
    "GuardConfig",
    "LossSpike",
    "SkippedBatch",
    "Step",
    "TrainConfig",
    "Trainer",
    "anomaly_hunt",
    "arithmetic_rules",
    "check_settings",
    "fit",
    "load_checkpoint",
    "memory_in_use",
    "peak_memory",
    "reset_peak_memory",
    "save_checkpoint",
]
