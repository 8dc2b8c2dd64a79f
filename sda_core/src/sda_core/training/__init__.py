"""Training of score kernels."""

from sda_core.training.checkpoint import load_checkpoint, save_checkpoint
from sda_core.training.config import TrainConfig
from sda_core.training.loop import EpochMetrics, Trainer

__all__ = ["EpochMetrics", "TrainConfig", "Trainer", "load_checkpoint", "save_checkpoint"]
