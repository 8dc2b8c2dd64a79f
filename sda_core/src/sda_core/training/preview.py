"""What a training will take: its steps, memory, disk and time."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import attrs
import torch
from torch import Generator, Tensor

from sda_core.data import WindowDataset
from sda_core.data.base import size_text
from sda_core.denoiser import WindowDenoiser
from sda_core.io.available_memory import available_memory
from sda_core.io.files import disk_usage
from sda_core.io.peak_memory import peak_bytes
from sda_core.io.progress import duration_text
from sda_core.system import SystemSpec
from sda_core.training.checkpoint import save_checkpoint
from sda_core.training.config import TrainConfig
from sda_core.training.trainer import Trainer

#: Steps are measured for this long, and at least two of them.
ENOUGH_SECONDS = 5.0
#: Passes over the validation windows at each validation.
_PASSES = 4


@attrs.frozen(kw_only=True)
class TrainingPreview:
    """What a training will take; ``str`` gives it as text.

    Attributes:
        parameters: Number of weights that are trained.
        epochs: Number of epochs.
        steps: Optimizer steps in all of them.
        batch_size: Windows in a step.
        device: The device in use.
        memory: Bytes on it, by what they are for.
        data: Bytes of the training and validation data.
        held_on: Where these will be held; None where they are read from the files.
        checkpoint: Bytes of a checkpoint.
        checkpoints: Number of checkpoints that are kept, the best included.
        model: Bytes of the trained model.
        disk: Bytes that are free on the disk.
        seconds: About how long it takes.
        compiled: Whether the network is compiled, which comes on top of that.
    """

    parameters: int
    epochs: int
    steps: int
    batch_size: int
    device: str
    memory: dict[str, int]
    data: int
    held_on: str | None
    checkpoint: int
    checkpoints: int
    model: int
    disk: int
    seconds: float
    compiled: bool

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size_text(size)}" for name, size in self.memory.items())
        kept = self.checkpoints * self.checkpoint + self.model
        held = "read from the files window by window"
        if self.held_on is not None:
            held = f"held in the memory of {self.held_on}"
        return "\n".join(
            (
                f"network: {self.parameters:,} weights",
                f"steps: {self.steps:,} of {self.batch_size} windows, in {self.epochs:,} epochs",
                f"memory: {size_text(sum(self.memory.values()))} on {self.device} ({parts})",
                f"data: {size_text(self.data)}, {held}",
                f"disk: {size_text(kept)} ({self.checkpoints} checkpoints of "
                f"{size_text(self.checkpoint)}, model {size_text(self.model)}); "
                f"{size_text(self.disk)} are free",
                f"time: about {duration_text(self.seconds)} on {self.device}"
                + (", and what the compilation takes" if self.compiled else ""),
            )
        )


def measure_training(
    denoiser: WindowDenoiser,
    config: TrainConfig,
    spec: SystemSpec,
    counts: tuple[int, int],
    length: int,
    directory: Path,
) -> TrainingPreview:
    """Say what a training would take, from a few steps on random windows.

    Args:
        denoiser: The denoiser, on the device to train on.
        config: Settings.
        spec: What the states are.
        counts: Numbers of training and of validation trajectories.
        length: Their length.
        directory: The run directory, in which nothing is written.
    """
    device = next(denoiser.parameters()).device
    train, valid = (_RandomWindows(n, denoiser.window, spec, device) for n in counts)
    # Not compiled, since tensors inside of compiled functions cannot be counted.
    settings: Any = config  # to mypy components are no attrs classes
    trainer = _trainer(denoiser, train, attrs.evolve(settings, compile=False))
    memory = _memory(trainer)
    checkpoint, checkpoint_seconds = _checkpoint(trainer)
    if config.compile:
        trainer = _trainer(denoiser, train, config)
    step_seconds = _step_seconds(trainer)
    valid_seconds = _valid_seconds(trainer, valid)
    steps = config.epochs * trainer.steps_per_epoch
    validations = -(-config.epochs // config.validate_every)
    # At most: each validation may be the best.
    checkpoints = config.epochs // config.checkpoint_every + validations
    data = 4 * sum(counts) * length * math.prod(spec.state_shape)
    places = (device, torch.device("cpu"))
    return TrainingPreview(
        parameters=sum(p.numel() for p in denoiser.parameters()),
        epochs=config.epochs,
        steps=steps,
        batch_size=config.batch_size,
        device=device.type,
        memory=memory,
        data=data,
        held_on=next((p.type for p in places if data <= available_memory(p) // 2), None),
        checkpoint=checkpoint,
        checkpoints=config.keep + (len(valid) > 0),
        model=memory["weights"],
        disk=disk_usage(directory).free,
        seconds=steps * step_seconds
        + validations * valid_seconds
        + checkpoints * checkpoint_seconds,
        compiled=config.compile,
    )


class _RandomWindows:
    """Stands for a :class:`WindowDataset` and its store, of which there may be none yet."""

    def __init__(self, count: int, window: int, spec: SystemSpec, device: torch.device) -> None:
        self.store, self.count, self.spec, self.device = self, count, spec, device
        self.shape = (window, *spec.state_shape)

    def __len__(self) -> int:
        return self.count

    def epoch(
        self,
        generator: Generator,
        batch_size: int,
        per_trajectory: int = 1,
        first: int = 0,
        share: Callable[[int], slice] = slice,
    ) -> Iterator[Tensor]:
        """Standard normal windows, as many as of data."""
        left = len(self) * per_trajectory - first * batch_size
        while left > 0:
            yield torch.randn(min(left, batch_size), *self.shape, device=self.device)
            left -= batch_size


def _trainer(denoiser: WindowDenoiser, train: _RandomWindows, config: Any) -> Trainer:
    endless = attrs.evolve(config, epochs=sys.maxsize)
    return Trainer(denoiser, cast(WindowDataset, train), None, endless, 0)


def _memory(trainer: Trainer) -> dict[str, int]:
    """What a step needs, by what it is for."""
    events = trainer.events()
    next(events)  # makes the optimizer's moments
    step = peak_bytes(lambda: next(events))
    weights = list(trainer.denoiser.parameters())
    moments = [v for s in trainer.optimizer.state.values() for v in s.values()]
    sizes = {
        "weights": _bytes(trainer.denoiser.state_dict().values()),
        "gradients": _bytes(weights),
        "optimizer": _bytes(moments),
        "average": _bytes(trainer.averaged.state_dict().values()) if trainer.averaged else 0,
        "activations": step - _bytes(weights),
    }
    return {name: size for name, size in sizes.items() if size}


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(x.nbytes for x in tensors if isinstance(x, Tensor))


def _checkpoint(trainer: Trainer) -> tuple[int, float]:
    """Bytes of a checkpoint, and seconds to write it."""
    before = time.perf_counter()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "step.safetensors"
        save_checkpoint(path, *trainer.state_dict(), {})
        return path.stat().st_size, time.perf_counter() - before


def _step_seconds(trainer: Trainer) -> float:
    """Seconds of a step, after one to warm up, in which the network is compiled."""
    events = trainer.events()
    next(events)
    _wait(trainer.device)
    start, count, seconds = time.perf_counter(), 0, 0.0
    while count < 2 or seconds < ENOUGH_SECONDS:
        next(events)
        count += 1
        seconds = time.perf_counter() - start
    _wait(trainer.device)
    return (time.perf_counter() - start) / count


def _valid_seconds(trainer: Trainer, valid: _RandomWindows) -> float:
    """Seconds of a validation, from one of fewer windows."""
    if not len(valid):
        return 0.0
    windows = trainer.config.windows_per_trajectory
    few = min(len(valid), max(1, trainer.config.batch_size // (_PASSES * windows)))
    trainer.valid = cast(
        WindowDataset, _RandomWindows(few, valid.shape[0], valid.spec, valid.device)
    )
    before = time.perf_counter()
    trainer.validate()
    return (time.perf_counter() - before) * len(valid) / few


def _wait(device: torch.device) -> None:
    """Wait for what the host has asked of a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
