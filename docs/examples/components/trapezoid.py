"""A sampler of order two, with two evaluations per step.

References:
    - Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
      https://arxiv.org/abs/2206.00364, algorithm 1, for any alpha and sigma.
"""

from typing import ClassVar

from torch import Tensor

from sda_core import component
from sda_core.denoiser import Denoiser
from sda_core.random import NoiseSource
from sda_core.sampler import Sampler


@component
class Trapezoid(Sampler):
    """The explicit trapezoidal rule on d(x / alpha) = eps d(sigma / alpha)."""

    order: ClassVar[int] = 2

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource
    ) -> Tensor:
        """One step from t to s."""
        schedule = denoiser.schedule
        scale = schedule.alpha(s) / schedule.alpha(t)
        change = schedule.sigma(s) - scale * schedule.sigma(t)
        eps = denoiser.eps(x, t)
        ahead = denoiser.eps(scale * x + change * eps, s)
        return scale * x + change * (eps + ahead) / 2
