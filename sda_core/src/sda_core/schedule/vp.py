r"""Variance-preserving schedules and their sub-VP relatives, as in the original SDA code.

References:
    - Rozet & Louppe, "Score-based Data Assimilation", 2023, https://arxiv.org/abs/2306.10574
    - Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations",
      2021, https://arxiv.org/abs/2011.13456
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from sda_core.config import between, component, option
from sda_core.schedule.base import Schedule


@component
class VP(Schedule):
    r"""Variance preserving: sigma(t)^2 = 1 - alpha(t)^2 + eta^2.

    alpha is one of ``lin``: 1 - (1 - eta) t; ``cos``: cos(acos(sqrt(eta)) t)^2; ``exp``:
    exp(log(eta) t^2). alpha(1) = eta in each case.
    """

    alpha_shape: Literal["lin", "cos", "exp"] = option(default="cos", help="form of alpha(t)")
    eta: float = option(
        default=1e-3, check=between(1e-6, 0.1), help="alpha at t = 1, and sigma at t = 0"
    )

    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale."""
        if self.alpha_shape == "lin":
            return 1 - (1 - self.eta) * t
        if self.alpha_shape == "cos":
            return torch.cos(math.acos(math.sqrt(self.eta)) * t) ** 2
        return torch.exp(math.log(self.eta) * t**2)

    def complement(self, t: Tensor) -> Tensor:
        """1 - alpha(t), without the cancellation near t = 0, where sigma is made of it."""
        if self.alpha_shape == "lin":
            return (1 - self.eta) * t
        if self.alpha_shape == "cos":
            return torch.sin(math.acos(math.sqrt(self.eta)) * t) ** 2
        return -torch.expm1(math.log(self.eta) * t**2)

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale."""
        return (self.complement(t) * (1 + self.alpha(t)) + self.eta**2).sqrt()


@component
class SubVP(VP):
    r"""Sub-VP: sigma(t) = 1 - alpha(t)^2 + eta."""

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale."""
        return self.complement(t) * (1 + self.alpha(t)) + self.eta


@component
class SubSubVP(VP):
    r"""Sub-sub-VP: sigma(t) = 1 - alpha(t) + eta."""

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale."""
        return self.complement(t) + self.eta
