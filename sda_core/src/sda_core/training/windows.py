"""The data of a training."""

from __future__ import annotations

from pathlib import Path

import torch

from sda_core.data import TrajectoryStore, WindowDataset
from sda_core.model import TrainedModel


def open_windows(
    path: Path, model: TrainedModel, device: torch.device, processes: int
) -> WindowDataset | None:
    """The windows of a split that a model is trained on, checked; None if there is no file.

    Raises:
        DataError: They are not finite, or do not have the statistics that the store states.
    """
    if not path.is_file():
        return None
    # With the model's standardization, so that training and inference cannot differ in it.
    windows = WindowDataset(
        TrajectoryStore(path),
        model.config.window,
        device=device,
        standardization=model.standardization,
        processes=processes,
    )
    windows.check()
    return windows
