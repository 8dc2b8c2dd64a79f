r"""Heun's method.

References:
    - Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
      https://arxiv.org/abs/2206.00364, algorithm 1, for any alpha and sigma.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from sda_core.config import component, option
from sda_core.denoiser.base import Denoiser
from sda_core.random import NoiseSource
from sda_core.sampler.base import Sampler


def heun_step(denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The trapezoidal rule on d(x / alpha) = eps d(sigma / alpha), its end by Euler's rule."""
    schedule = denoiser.schedule
    scale = schedule.alpha(s) / schedule.alpha(t)
    change = schedule.sigma(s) - scale * schedule.sigma(t)
    eps = denoiser.eps(x, t)
    ahead = denoiser.eps(scale * x + change * eps, s)
    return scale * x + change * (eps + ahead) / 2


@component
class Heun(Sampler):
    """Deterministic steps of order two, with two evaluations each (the final denoising: one)."""

    order: ClassVar[int] = 2

    grid: Literal["time", "log-snr", "rho"] = option(
        default="rho", help="what the steps are uniform in"
    )

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource
    ) -> Tensor:
        """One step from t to s."""
        return heun_step(denoiser, x, t, s)
