r"""Ancestral sampling.

References:
    - Ho, Jain & Abbeel, "Denoising Diffusion Probabilistic Models", 2020,
      https://arxiv.org/abs/2006.11239, eq. 6 and 7, for any alpha and sigma.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from sda_core.config import component
from sda_core.denoiser.base import Denoiser
from sda_core.random import NoiseSource
from sda_core.sampler.base import Sampler
from sda_core.sampler.ddim import ddim_step


@component
class DDPM(Sampler):
    """Ancestral sampling: draws x_s from q(x_s | x_t, x_0) at the estimated x_0 (DDIM, eta = 1)."""

    order: ClassVar[int] = 1

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource
    ) -> Tensor:
        """One step from t to s."""
        return ddim_step(denoiser, x, t, s, 1.0, noise)
