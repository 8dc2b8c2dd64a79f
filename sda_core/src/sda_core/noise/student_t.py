r"""Student-t errors: like Gaussian ones, but outliers happen.

References:
    - Lange, Little & Taylor, "Robust Statistical Modeling Using the t Distribution", 1989,
      https://doi.org/10.1080/01621459.1989.10478852
    - Bailey, "Polar Generation of Random Variates with the t-Distribution", 1994,
      https://doi.org/10.1090/S0025-5718-1994-1219702-8
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import torch
from torch import Generator, Tensor

from sda_core.config import component, option, positive
from sda_core.noise.base import MixtureNoise, Noise, per_entry


@component
class StudentT(Noise):
    """y = m + scale t, with t of a Student-t distribution, each entry by itself.

    With z = (y - m) / scale, v = scale^2 (dof + z^2) / (dof + 1).

    Good values: dof = 4 where now and then an error is several times the usual one; dof = 1
    (Cauchy) where anything may happen.
    """

    scale: float | tuple[float, ...] = option(
        check=positive,
        help="size of usual errors in the units of what is observed: one number, or one per entry "
        "of the operator's last dimension",
    )
    dof: float = option(
        default=4.0, check=positive, help="degrees of freedom: the fewer, the more outliers"
    )

    def bind(self, shape: Sequence[int]) -> StudentTNoise:
        """Make the error model."""
        scale = per_entry(self.scale, shape, "observation.noise.scale")
        return StudentTNoise(scale=scale, dof=self.dof)


@attrs.frozen(kw_only=True, eq=False)
class StudentTNoise(MixtureNoise):
    """p(y | m) of Student-t errors, ``std`` being their scale.

    Attributes:
        dof: Degrees of freedom.
    """

    dof: float

    def sample(self, mean: Tensor, generator: Generator) -> Tensor:
        """Draw y (Bailey's polar method)."""
        u, v = torch.rand(2, *mean.shape, generator=generator, dtype=torch.float64)
        # 1 - u is never zero.
        size = (self.dof * torch.expm1(-2 / self.dof * torch.log1p(-u))).sqrt()
        t = size * torch.cos(2 * math.pi * v)
        return mean + self.scale.to(mean) * t.to(mean)

    def log_density(self, y: Tensor, mean: Tensor) -> Tensor:
        """The log-density of each entry."""
        scale, dof = self.scale.to(mean), self.dof
        constant = math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2) - 0.5 * math.log(dof * math.pi)
        square = ((y - mean) / scale) ** 2 / dof
        return constant - scale.log() - (dof + 1) / 2 * torch.log1p(square)

    def weigh(self, square: Tensor) -> Tensor:
        """scale^2 (dof + z^2) / (dof + 1)."""
        return (self.dof * self.scale.to(square) ** 2 + square) / (self.dof + 1)
