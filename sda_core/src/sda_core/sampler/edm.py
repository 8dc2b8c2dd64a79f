r"""Heun's method with churn.

References:
    - Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
      https://arxiv.org/abs/2206.00364, algorithm 2, for any alpha and sigma.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sda_core.config import component, non_negative, option, positive
from sda_core.denoiser.base import Denoiser
from sda_core.errors import ConfigError
from sda_core.random import NoiseSource
from sda_core.sampler.base import Sampler
from sda_core.sampler.heun import heun_step


@component
class EDM(Sampler):
    r"""Each step first adds noise, then goes down by a step of :class:`Heun`.

    With r = sigma / alpha, noise raises r to (1 + gamma) r, gamma = min(s_churn / steps,
    sqrt(2) - 1), where s_min <= r <= s_max, and never above the schedule's largest r.
    """

    order: ClassVar[int] = 2

    grid: Literal["time", "log-snr", "rho"] = option(
        default="rho", help="what the steps are uniform in"
    )
    s_churn: float = option(
        default=10.0, check=non_negative, help="amount of fresh noise, over all steps"
    )
    s_min: float = option(
        default=0.0, check=non_negative, help="smallest sigma / alpha at which noise is added"
    )
    s_max: float | None = option(
        default=None, check=positive, help="largest one; no bound if not set"
    )
    s_noise: float = option(
        default=1.0,
        check=positive,
        help="scale of the added noise; somewhat above 1 for a denoiser that removes too much",
    )

    def __attrs_post_init__(self) -> None:
        if self.s_max is not None and self.s_min > self.s_max:
            raise ConfigError(
                f"s_min = {self.s_min} must not be larger than s_max = {self.s_max}: noise is "
                "added between them"
            )

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource
    ) -> Tensor:
        """One step from t to s."""
        schedule = denoiser.schedule
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        r = float(sigma / alpha)
        gamma = min(self.s_churn / self.steps, math.sqrt(2) - 1)
        if gamma > 0 and self.s_min <= r and (self.s_max is None or r <= self.s_max):
            # Found on the CPU, where the many small operations that this takes are cheap.
            t = schedule.time(schedule.log_snr(t.cpu()) - 2 * math.log1p(gamma)).to(t)
            scale = schedule.alpha(t) / alpha
            # In float32, and at the largest noise level, there may be nothing to add.
            variance = (schedule.sigma(t) ** 2 - (scale * sigma) ** 2).clamp_min(0)
            x = scale * x + self.s_noise * torch.sqrt(variance) * noise.normal(x.shape)
        return heun_step(denoiser, x, t, s)
