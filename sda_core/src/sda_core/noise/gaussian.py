"""Independent Gaussian errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import torch
from torch import Generator, Tensor

from sda_core.config import component, option, positive
from sda_core.noise.base import IndependentNoise, Noise, per_entry


@component
class Gaussian(Noise):
    """y ~ N(m, std^2), each entry by itself: what ``observation.std`` is short for."""

    std: float | tuple[float, ...] = option(
        check=positive,
        help="standard deviation in the units of what is observed: one number, or one per entry of "
        "the operator's last dimension",
    )

    def bind(self, shape: Sequence[int]) -> GaussianNoise:
        """Make the error model."""
        return GaussianNoise(scale=per_entry(self.std, shape, "observation.noise.std"))


@attrs.frozen(kw_only=True, eq=False)
class GaussianNoise(IndependentNoise):
    """p(y | m) = N(y; m, scale^2)."""

    def sample(self, mean: Tensor, generator: Generator) -> Tensor:
        """Draw y."""
        z = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
        return mean + self.scale.to(mean) * z.to(mean)

    def log_density(self, y: Tensor, mean: Tensor) -> Tensor:
        """log N(y; m, scale^2)."""
        scale = self.scale.to(mean)
        return -0.5 * ((y - mean) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)

    @property
    def gaussian(self) -> bool:
        """It is."""
        return True

    def variance(self, y: Tensor, mean: Tensor, spread: Tensor | None = None) -> Tensor:
        """scale^2."""
        return (self.scale.to(mean) ** 2).expand_as(mean)
