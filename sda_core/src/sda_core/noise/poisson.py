"""Counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import torch
from torch import Generator, Tensor

from sda_core.config import component, option, positive
from sda_core.noise.base import IndependentNoise, Noise, per_entry


@component
class Poisson(Noise):
    """y = gain N with counts N ~ Poisson(m / gain), each entry by itself: mean m, variance gain m.

    A(x) is the mean of y and has to be positive; an operator ending in an exponential or a square
    sees to that. Where it is below ``floor`` counts all the same, which no mean should be but
    estimates on the way to a sample may, log p continues as that of a Gaussian with the variance it
    has there, and so leads back. Draws are then made at the floor.
    """

    gain: float | tuple[float, ...] = option(
        default=1.0,
        check=positive,
        help="units of y per count: one number, or one per entry of the operator's last dimension",
    )
    floor: float = option(
        default=0.01, check=positive, units="counts", help="means below this count as such"
    )

    def bind(self, shape: Sequence[int]) -> PoissonNoise:
        """Make the error model."""
        gain = per_entry(self.gain, shape, "observation.noise.gain")
        return PoissonNoise(scale=gain, floor=self.floor)


@attrs.frozen(kw_only=True, eq=False)
class PoissonNoise(IndependentNoise):
    """p(y | m) of counts; ``scale`` is the gain, and ``std`` the error at a mean of one count.

    Attributes:
        floor: Means below this many counts count as such.
    """

    floor: float

    def sample(self, mean: Tensor, generator: Generator) -> Tensor:
        """Draw y."""
        gain = self.scale.to(mean)
        rate = (mean / gain).clamp_min(self.floor)
        return gain * torch.poisson(rate.cpu(), generator=generator).to(mean)

    def log_density(self, y: Tensor, mean: Tensor) -> Tensor:
        """The log-probability of each count; y / gain need not be whole."""
        gain = self.scale.to(mean)
        count, rate = y / gain, mean / gain
        inside = rate.clamp_min(self.floor)
        log_p = torch.xlogy(count, inside) - inside - torch.lgamma(count + 1)
        return log_p + ((count - inside) ** 2 - (count - rate) ** 2) / (2 * self.floor)

    def std_at(self, mean: Tensor) -> Tensor:
        """sqrt(gain m)."""
        return self.variance(mean, mean).sqrt()

    def variance(self, y: Tensor, mean: Tensor, spread: Tensor | None = None) -> Tensor:
        """gain m, or gain E[max(m, 0)] over N(m, s)."""
        gain = self.scale.to(mean)
        if spread is not None:
            std = spread.sqrt().clamp_min(torch.finfo(mean.dtype).tiny)
            z = (mean / std).clamp(-30, 30)
            density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
            mean = mean * torch.special.ndtr(z) + std * density
        return gain * mean.clamp_min(self.floor * gain)
