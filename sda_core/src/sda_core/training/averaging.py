"""The moving average of the weights."""

from __future__ import annotations

import copy

import torch

from sda_core.denoiser import WindowDenoiser


class WeightAverage:
    """A denoiser whose weights are the moving average of another's.

    ``torch.optim.swa_utils.AveragedModel`` would copy its counter to the device in each step, and
    so wait for a GPU.

    Args:
        denoiser: The denoiser that is trained.
        decay: Decay of the average in a step.

    Attributes:
        denoiser: The denoiser with averaged weights.
    """

    def __init__(self, denoiser: WindowDenoiser, decay: float) -> None:
        self.denoiser, self._decay = copy.deepcopy(denoiser), decay

    def update(self, current: WindowDenoiser, step: int) -> None:
        """Take in the weights after a step, counted from 0."""
        # A short memory at first, so that the random initial weights are forgotten.
        decay = min(self._decay, (1 + step) / (10 + step)) if step else 0.0
        averaged = self.denoiser
        with torch.no_grad():
            torch._foreach_lerp_(list(averaged.parameters()), list(current.parameters()), 1 - decay)
            for mean, value in zip(averaged.buffers(), current.buffers(), strict=True):
                mean.copy_(value)
