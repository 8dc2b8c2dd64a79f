r"""Variance-exploding schedule.

References:
    - Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
      https://arxiv.org/abs/2206.00364
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sda_core.config import between, component, option
from sda_core.errors import ConfigError
from sda_core.schedule.base import Schedule

#: Noise scales whose squares float32 holds, beside data of unit variance.
SCALES = between(1e-6, 1e6)


@component
class VE(Schedule):
    r"""Variance exploding: alpha = 1, sigma(t) = sigma_min (sigma_max / sigma_min)^t.

    A uniform t is a log-uniform noise level. sigma is relative to data of unit variance.
    """

    sigma_min: float = option(default=0.002, check=SCALES, help="noise scale at t = 0")
    sigma_max: float = option(default=50.0, check=SCALES, help="noise scale at t = 1")

    def __attrs_post_init__(self) -> None:
        if self.sigma_min >= self.sigma_max:
            raise ConfigError(
                f"sigma_min = {self.sigma_min} must be smaller than sigma_max = {self.sigma_max}"
            )

    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale."""
        return self.sigma_min * torch.exp(math.log(self.sigma_max / self.sigma_min) * t)
