r"""DPM-Solver++.

References:
    - Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
      Models", 2022, https://arxiv.org/abs/2211.01095, algorithm 2 (2M).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sda_core.config import component, option
from sda_core.denoiser.base import Denoiser
from sda_core.sampler.multistep import Multistep
from sda_core.schedule.base import Schedule


@component
class DPMSolver(Multistep):
    r"""Deterministic steps of order two, by extrapolating x0 linearly in log(alpha / sigma)."""

    order: ClassVar[int] = 2

    grid: Literal["time", "log-snr", "rho"] = option(
        default="log-snr", help="what the steps are uniform in"
    )

    def estimate(self, denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t]."""
        x0: Tensor = denoiser(x, t)
        return x0

    def advance(
        self, schedule: Schedule, x: Tensor, times: Tensor, s: Tensor, estimates: Sequence[Tensor]
    ) -> Tensor:
        """x_s = (sigma_s / sigma_t) x_t - alpha_s (exp(-h) - 1) D, h the step in log(alpha/sigma).

        D is x0 extrapolated to the middle of the step.
        """
        level, *before = schedule.log_snr(times) / 2
        h = schedule.log_snr(s) / 2 - level
        x0 = estimates[0]
        if before:
            x0 = x0 + h / (2 * (level - before[0])) * (x0 - estimates[1])
        ratio = schedule.sigma(s) / schedule.sigma(times[0])
        return ratio * x - schedule.alpha(s) * torch.expm1(-h) * x0
