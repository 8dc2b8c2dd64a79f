"""Laplace errors: independent, with heavier tails than Gaussian ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import torch
from torch import Generator, Tensor

from sda_core.config import component, option, positive
from sda_core.noise.base import MixtureNoise, Noise, per_entry

#: Residuals below this share of the scale count as such, so that v is positive.
SMALLEST = 1e-3


@component
class Laplace(Noise):
    """p(y | m) = exp(-|y - m| / scale) / (2 scale), each entry by itself.

    v = scale |y - m|: the median of observations counts, not their mean.
    """

    scale: float | tuple[float, ...] = option(
        check=positive,
        help="mean absolute error in the units of what is observed: one number, or one per entry "
        "of the operator's last dimension",
    )

    def bind(self, shape: Sequence[int]) -> LaplaceNoise:
        """Make the error model."""
        return LaplaceNoise(scale=per_entry(self.scale, shape, "observation.noise.scale"))


@attrs.frozen(kw_only=True, eq=False)
class LaplaceNoise(MixtureNoise):
    """p(y | m) of Laplace errors."""

    @property
    def std(self) -> Tensor:
        """Their standard deviation, sqrt(2) scale."""
        return math.sqrt(2) * self.scale

    def sample(self, mean: Tensor, generator: Generator) -> Tensor:
        """Draw y, by the difference of two exponential variables."""
        u = torch.empty(2, *mean.shape, dtype=torch.float64).exponential_(generator=generator)
        return mean + self.scale.to(mean) * (u[0] - u[1]).to(mean)

    def log_density(self, y: Tensor, mean: Tensor) -> Tensor:
        """-|y - m| / scale - log(2 scale)."""
        scale = self.scale.to(mean)
        return -(y - mean).abs() / scale - (2 * scale).log()

    def weigh(self, square: Tensor) -> Tensor:
        """scale |y - m|."""
        scale = self.scale.to(square)
        return scale * square.sqrt().clamp_min(SMALLEST * scale)
