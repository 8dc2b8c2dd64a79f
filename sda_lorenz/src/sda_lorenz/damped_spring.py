r"""A mass on a spring in wind: linear and Gaussian.

References:
    - Rozet & Louppe, code of "Score-based Data Assimilation", 2023,
      https://github.com/francois-rozet/sda (``DampedSpring``: matrices and noise).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from sda_core.config import component, option, positive
from sda_core.system import System, SystemSpec


@component
class DampedSpring(System):
    r"""x_i = F x_i-1 + N(0, Q) for (position, velocity, acceleration, wind).

    The acceleration answers to position (spring), velocity (drag) and wind; the wind is an
    autoregressive process. Prior: N((1, 0, 0, 0), I).

    Good values: dt = 0.01; the position then swings with a period of about 9 time units.
    """

    dt: float = option(default=0.01, check=positive, help="time between two states")

    @property
    def spec(self) -> SystemSpec:
        """Four variables; standardized by the data."""
        return SystemSpec(
            variables=("position", "velocity", "acceleration", "wind"), time_step=self.dt
        )

    def linear_gaussian(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(m_0, P_0, F, b, Q), float64."""
        dt = self.dt
        F = [
            [1.0, dt, dt**2 / 2, 0.0],
            [0.0, 1.0, dt, 0.0],
            [-0.5, -0.1, 0.0, 0.2],
            [0.0, 0.0, 0.0, 0.99],
        ]
        return (
            torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64),
            torch.eye(4, dtype=torch.float64),
            torch.tensor(F, dtype=torch.float64),
            torch.zeros(4, dtype=torch.float64),
            torch.tensor([0.1, 0.1, 0.1, 1.0], dtype=torch.float64).diag() * dt,
        )

    def prior(self, shape: Sequence[int], generator: Generator) -> Tensor:
        """N((1, 0, 0, 0), I), (B..., 4)."""
        mean, covariance, *_ = self.linear_gaussian()
        z = torch.randn(*shape, 4, generator=generator, dtype=torch.float64)
        return mean + z @ torch.linalg.cholesky(covariance).T

    def transition(self, x: Tensor, generator: Generator) -> Tensor:
        """Draw x_i given x_i-1, (B..., 4) -> (B..., 4)."""
        _, _, F, b, Q = (m.to(x) for m in self.linear_gaussian())
        z = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        return x @ F.T + b + z @ torch.linalg.cholesky(Q).T

    def log_prob(self, x: Tensor, x_next: Tensor) -> Tensor:
        """log p(x_next | x), (B..., 4) twice -> (B...)."""
        _, _, F, b, Q = (m.to(x) for m in self.linear_gaussian())
        density = torch.distributions.MultivariateNormal(x @ F.T + b, Q)
        return density.log_prob(x_next)
