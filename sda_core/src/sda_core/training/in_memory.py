"""Training in Python, without an experiment file."""

from __future__ import annotations

import math
from typing import Any

import attrs
import torch

from sda_core.data import ArrayStore, TrajectoryStore, WindowDataset
from sda_core.errors import TrainingError
from sda_core.io.progress import ProgressOption, reporting
from sda_core.kernel import Kernel
from sda_core.model import ModelConfig, TrainedModel, device
from sda_core.schedule import VP, Schedule
from sda_core.training.arithmetic import arithmetic_rules
from sda_core.training.config import TrainConfig
from sda_core.training.trainer import Trainer

#: Share of the trajectories that validation takes where none are given for it.
HELD_OUT = 0.1


def fit(
    kernel: Kernel,
    data: ArrayStore | TrajectoryStore,
    *,
    schedule: Schedule | None = None,
    model: ModelConfig | None = None,
    valid: ArrayStore | TrajectoryStore | None = None,
    seed: int = 0,
    progress: ProgressOption = True,
    **settings: Any,
) -> TrainedModel:
    """Train a kernel on trajectories, on the GPU if there is one.

    Nothing is written: ``sda train`` has checkpoints, can be stopped and takes several workers.

    Args:
        kernel: Configuration of the network.
        data: The trajectories, of :func:`sda_core.from_arrays` or a data set's ``train.h5``.
        schedule: The noise schedule; None for VP.
        model: Window, parameterization and composition; None for the defaults.
        valid: Trajectories to validate on; None for the last tenth of arrays.
        seed: Source of all randomness.
        progress: What to show.
        **settings: Settings of :class:`~sda_core.training.TrainConfig`, such as ``epochs=64``.

    Returns:
        The trained model; its ``save`` writes it.

    Raises:
        ConfigError: A setting does not exist or is out of range.
        DataError: The window is longer than the trajectories, or the data are not finite.
        TrainingError: The loss is not finite.
    """
    config, model = TrainConfig(**settings), model or ModelConfig()
    if valid is None and isinstance(data, ArrayStore) and (count := int(HELD_OUT * len(data))):
        data, valid = data.split_off(count)
    with torch.random.fork_rng([device()] if device().type == "cuda" else []):
        torch.manual_seed(seed)
        made = TrainedModel.create(kernel, schedule or VP(), model, data.spec)
    made.denoiser.to(device())

    def windows(store: ArrayStore | TrajectoryStore) -> WindowDataset:
        return WindowDataset(
            store, model.window, device=device(), standardization=made.standardization
        )

    with arithmetic_rules(config):
        validation = None if valid is None else windows(valid)
        trainer = Trainer(made.denoiser, windows(data), validation, config, seed)
        with reporting(progress, "training", trainer.num_steps) as report:
            for _ in trainer.events():
                report(trainer.step, f"loss {trainer.last_loss:.4f}")
    last = trainer.history[-1]
    if not all(math.isfinite(v) for v in (last.loss, last.valid_loss) if v is not None):
        raise TrainingError(
            f"the loss of epoch {last.epoch}, the last, is not finite: lower learning_rate, or set "
            "clip_norm"
        )
    provenance = {
        "seed": seed,
        "steps": trainer.step,
        "valid_loss": last.valid_loss,
        "extremes": data.extremes,
    }
    return attrs.evolve(made, denoiser=trainer.best_denoiser, provenance=provenance)
