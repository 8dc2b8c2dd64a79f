r"""Denoising diffusion implicit models.

References:
    - Song, Meng & Ermon, "Denoising Diffusion Implicit Models", 2021,
      https://arxiv.org/abs/2010.02502, eq. 12, for any alpha and sigma.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from sda_core.config import between, component, option
from sda_core.denoiser.base import Denoiser, x0_to_eps
from sda_core.random import NoiseSource
from sda_core.sampler.base import Sampler
from sda_core.schedule import Schedule


def fresh_share(schedule: Schedule, t: Tensor, s: Tensor, eta: float) -> Tensor:
    """Share of the variance of the noise at s that a step from t draws anew, ().

    eta^2 (1 - SNR_t / SNR_s), as eta = 1 gives the variance of x_s given x_t and x_0.
    """
    ratio = schedule.alpha(t) * schedule.sigma(s) / (schedule.alpha(s) * schedule.sigma(t))
    # For neighbouring times of a fine grid it may be rounded to more than 1.
    return eta**2 * (1 - (ratio**2).clamp_max(1))


def ddim_step(
    denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, eta: float, noise: NoiseSource
) -> Tensor:
    """x_s = alpha_s x0 + sigma_s (sqrt(1 - fresh) eps + sqrt(fresh) z)."""
    schedule = denoiser.schedule
    alpha_t, sigma_t = schedule.alpha(t), schedule.sigma(t)
    alpha_s, sigma_s = schedule.alpha(s), schedule.sigma(s)
    x0 = denoiser(x, t)
    eps = x0_to_eps(x, x0, alpha_t, sigma_t)
    if eta == 0:
        return alpha_s * x0 + sigma_s * eps
    fresh = fresh_share(schedule, t, s, eta)
    z = noise.normal(x.shape)
    return alpha_s * x0 + sigma_s * (torch.sqrt(1 - fresh) * eps + torch.sqrt(fresh) * z)


@component
class DDIM(Sampler):
    """Steps with a share ``eta`` of fresh noise: 0 is deterministic, 1 is ancestral sampling."""

    order: ClassVar[int] = 1

    eta: float = option(default=0.0, check=between(0, 1), help="share of fresh noise in each step")

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource
    ) -> Tensor:
        """One step from t to s."""
        return ddim_step(denoiser, x, t, s, self.eta, noise)
