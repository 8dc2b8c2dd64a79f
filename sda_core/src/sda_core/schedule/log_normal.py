r"""Variance-exploding schedule that is trained most at the noise levels around a given one.

References:
    - Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
      https://arxiv.org/abs/2206.00364, section 5 (distribution of noise levels in training)
"""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor

from sda_core.config import component, option, positive
from sda_core.errors import ConfigError
from sda_core.schedule.ve import SCALES, VE

FARTHEST = 5.0


@component
class LogNormal(VE):
    r"""Variance exploding: alpha = 1, log sigma(t) = mean + std Phi^-1(u(t)).

    Phi is the standard normal distribution function, and u is linear with sigma_min at t = 0 and
    sigma_max at t = 1. A uniform t is a log-normal noise level, cut off at the ends.

    Good values: the defaults are Karras et al.'s. Where everything is observed with independent
    errors of one size, exp(mean) at that size in model space: the posterior's mean is the denoiser
    at this level.
    """

    sigma_max: float = option(default=80.0, check=SCALES, help="noise scale at t = 1")
    mean: float = option(default=-1.2, help="mean of log sigma in training")
    std: float = option(default=1.2, check=positive, help="its standard deviation")

    def __attrs_post_init__(self) -> None:
        # Explicit super: attrs with slots makes the class anew.
        VE.__attrs_post_init__(self)
        for key, sigma in (("sigma_min", self.sigma_min), ("sigma_max", self.sigma_max)):
            distance = (math.log(sigma) - self.mean) / self.std
            if abs(distance) > FARTHEST:
                raise ConfigError(
                    f"{key} = {sigma} is {abs(distance):.1f} standard deviations of log sigma from "
                    f"its mean, and would hardly be trained: at most {FARTHEST:g} are allowed. "
                    "Choose a larger std, or a range closer to exp(mean)"
                )

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale."""
        log_sigma = NormalDist(self.mean, self.std)
        low, high = (log_sigma.cdf(math.log(s)) for s in (self.sigma_min, self.sigma_max))
        # In float64: the noisiest levels lie close to each other in u.
        u = low + (high - low) * t.double()
        return torch.exp(self.mean + self.std * torch.special.ndtri(u)).to(t)
