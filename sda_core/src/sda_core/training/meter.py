"""What a training measures of itself between two reports."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

#: Equal parts of [0, 1] in which the loss is reported by diffusion time.
LEVELS = 8


class Meter:
    """Sums of losses, on the device, and times, on the host.

    Args:
        device: Where the losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(LEVELS, device=device)
        self._counts = torch.zeros(LEVELS, device=device)
        self._seconds = self._waited = 0.0
        self._since: float | None = None
        self._at_last_report = (0.0, 0.0)
        self._windows = 0

    @property
    def clock(self) -> tuple[float, float]:
        """Seconds that the loop has run, and of these waited for data."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._seconds + running, self._waited

    def start(self) -> None:
        """The loop runs from now on."""
        self._since = time.perf_counter()

    def stop(self) -> None:
        """The loop rests from now on."""
        self._seconds, self._since = self.clock[0], None

    def waiting_for(self, items: Iterator[T]) -> Iterator[T]:
        """Items, with the time that each is waited for counted."""
        while True:
            before = time.perf_counter()
            item = next(items, None)
            self._waited += time.perf_counter() - before
            if item is None:
                return
            yield item

    def update(self, t: Tensor, losses: Tensor, finite: Tensor) -> None:
        """Take in a step.

        Args:
            t: Diffusion times, (B,).
            losses: Loss of each window, (B,).
            finite: Whether the step counts, ().
        """
        self._windows += len(losses)
        level = (t * LEVELS).long().clamp_(max=LEVELS - 1)
        self._sums.index_add_(0, level, torch.where(finite, losses, 0).float())
        self._counts.index_add_(0, level, finite.float().expand(len(losses)))

    def read(self) -> dict[str, float]:
        """Means since the last reading."""
        sums, counts = self._sums.tolist(), self._counts.tolist()
        self._sums.zero_()
        self._counts.zero_()
        seconds, waited = (b - a for a, b in zip(self._at_last_report, self.clock, strict=True))
        self._at_last_report = self.clock
        timed, self._windows = self._windows, 0
        windows = sum(counts)
        means = {
            f"loss_t{i}": s / n for i, (s, n) in enumerate(zip(sums, counts, strict=True)) if n
        }
        return {
            **({"loss": sum(sums) / windows} if windows else {}),
            **means,
            "windows_per_second": timed / seconds if seconds else 0.0,
            "utilization": 1 - waited / seconds if seconds else 1.0,
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The sums."""
        return {"sums": self._sums, "counts": self._counts}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Resume from sums that :meth:`state_dict` gave; times are those of this process alone."""
        self._sums.copy_(tensors["sums"])
        self._counts.copy_(tensors["counts"])


class EpochMeter:
    """Mean loss and speed of an epoch.

    Args:
        meter: Whose clock is used.
        device: Where the losses are.

    Attributes:
        batch: Number of its batches that are done.
    """

    def __init__(self, meter: Meter, device: torch.device) -> None:
        self._meter, self._device = meter, device
        self.begin(0)

    def begin(self, step: int) -> None:
        """An epoch begins after so many steps."""
        self.batch = 0
        self._loss, self._count = torch.zeros(2, device=self._device)
        self._started, self._first = self._meter.clock, step

    def update(self, loss: Tensor, finite: Tensor) -> None:
        """Take in the loss of a step, and whether it counts."""
        self._loss += torch.where(finite, loss, 0)
        self._count += finite

    def read(self, step: int) -> dict[str, Any]:
        """What the epoch's metrics hold of it, at its end after so many steps."""
        loss, taken = float(self._loss), float(self._count)
        clocks = zip(self._started, self._meter.clock, strict=True)
        seconds, waited = (b - a for a, b in clocks)
        return {
            "loss": loss / taken if taken else math.nan,
            "skipped": self.batch - round(taken),
            "steps_per_second": (step - self._first) / seconds,
            "utilization": 1 - waited / seconds,
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The sums."""
        return {"loss": self._loss, "count": self._count}

    def resume(self, step: int, batch: int, tensors: dict[str, Tensor]) -> None:
        """Resume an epoch after so many of its batches, with sums of :meth:`state_dict`."""
        self.begin(step)
        self.batch = batch
        if batch:
            self._loss = tensors["loss"].to(self._device)
            self._count = tensors["count"].to(self._device)
