r"""Noise schedules.

A schedule gives the noised state x_t = alpha(t) x_0 + sigma(t) eps, eps ~ N(0, I), for t in
[0, 1]: t = 0 is (almost) the data and t = 1 (almost) pure noise.

Notation
    ===========  =====================================================
    alpha(t)     signal scale, positive, not increasing
    sigma(t)     noise scale, positive, not decreasing
    log_snr(t)   2 log(alpha / sigma), strictly decreasing
    ===========  =====================================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor


class Schedule(ABC):
    """Noise level as a function of the diffusion time t in [0, 1]."""

    sda_kind: ClassVar[str] = "schedule"

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale at times t; any shape, returned unchanged."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale at times t; any shape, returned unchanged."""

    def log_snr(self, t: Tensor) -> Tensor:
        """Log signal-to-noise ratio, log(alpha^2 / sigma^2)."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def time(self, log_snr: Tensor) -> Tensor:
        """The time t in [0, 1] at which the log signal-to-noise ratio has the given value.

        Found by bisection in float64; values beyond the end points give the end points.
        """
        target = log_snr.double()
        low, high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(60):
            middle = (low + high) / 2
            noisier = self.log_snr(middle) < target
            low, high = torch.where(noisier, low, middle), torch.where(noisier, middle, high)
        ends = self.log_snr(target.new_tensor([0.0, 1.0]))
        t = torch.where(
            target >= ends[0], 0.0, torch.where(target <= ends[1], 1.0, (low + high) / 2)
        )
        return t.to(log_snr.dtype)
