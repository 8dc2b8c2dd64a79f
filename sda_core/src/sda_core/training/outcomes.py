"""Outcomes of steps, which the host reads when a GPU has computed them."""

from __future__ import annotations

import math
from typing import Any

import attrs
import torch
from torch import Tensor

from sda_core.denoiser import WindowDenoiser
from sda_core.training.arithmetic import Network


@attrs.frozen
class Outcome:
    """A step whose outcome the host has not read yet.

    Attributes:
        batch: Its number in the epoch.
        x: Its windows, those of this rank.
        t: The times of all windows.
        eps: The noise of all.
        numbers: Loss, gradient norm, and whether the batch is to blame if they are not finite; on
            the host.
        arrived: When they are there, from a GPU.
    """

    batch: int
    x: Tensor
    t: Tensor
    eps: Tensor
    numbers: Tensor
    arrived: torch.cuda.Event | None

    @classmethod
    def sent(cls, batch: int, x: Tensor, t: Tensor, eps: Tensor, *numbers: Tensor) -> Outcome:
        """The outcome of a step whose numbers are on their way to the host."""
        sent = torch.stack([number.float() for number in numbers]).to("cpu", non_blocking=True)
        arrived = None
        if numbers[0].device.type == "cuda":
            arrived = torch.cuda.Event()
            arrived.record()
        return cls(batch, x, t, eps, sent, arrived)

    def read(self) -> tuple[float, float, bool]:
        """Loss, gradient norm, and whether the batch is to blame if they are not finite."""
        if self.arrived is not None:
            self.arrived.synchronize()
        loss, norm, fault = self.numbers.numpy().tolist()
        return loss, norm, bool(fault)


def describe_batch(
    denoiser: WindowDenoiser,
    network: Network,
    batch: tuple[Tensor, Tensor, Tensor],
    weights: Tensor | None,
    count: int,
) -> dict[str, Any]:
    """Evaluate a network once more on a batch that was skipped, and say what was not finite.

    Args:
        denoiser: The denoiser.
        network: How its network is evaluated.
        batch: Windows, times and noise.
        weights: Per-variable weights of the loss.
        count: Number of parts that it is evaluated in.

    Returns:
        ``levels`` and ``summary`` of a :class:`sda_core.training.SkippedBatch`.
    """
    x, t, _ = batch
    seen: dict[str, list[Tensor]] = {"input": [x], "noised": [], "output": [], "loss": []}

    def record(noised: Tensor, t: Tensor) -> Tensor:
        output = network(noised, t)
        seen["noised"].append(noised)
        seen["output"].append(output)
        return output

    with torch.no_grad():
        for x_part, t_part, eps_part in zip(*(v.chunk(count) for v in batch), strict=True):
            losses = denoiser.losses_at(x_part, t_part, eps_part, weights, record)[1]
            seen["loss"].append(losses)
    bad = ~torch.cat(seen["loss"]).isfinite()
    return {
        "levels": t[bad if bad.any() else slice(None)].tolist(),
        "summary": {name: _summary(torch.cat(values)) for name, values in seen.items()},
    }


def _summary(x: Tensor) -> dict[str, float]:
    """Smallest, middle and largest finite value, and how many are not finite."""
    values = x[x.isfinite()].float()
    if not len(values):
        values = torch.tensor([math.nan])
    return {
        "min": float(values.min()),
        "median": float(values.median()),
        "max": float(values.max()),
        "not_finite": int((~x.isfinite()).sum()),
    }
