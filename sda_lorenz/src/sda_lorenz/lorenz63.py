r"""The Lorenz (1963) system, with and without noise.

References:
    - Lorenz, "Deterministic Nonperiodic Flow", 1963,
      https://doi.org/10.1175/1520-0469(1963)020<0130:DNF>2.0.CO;2
    - Rozet & Louppe, "Score-based Data Assimilation", 2023, https://arxiv.org/abs/2306.10574,
      appendix D (time step, noise, prior and standardization).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from sda_core.config import at_least, component, option, positive
from sda_core.system import ODESystem, SystemSpec


@component
class Lorenz63(ODESystem):
    r"""dx/dt = sigma (y - x), dy/dt = x (rho - z) - y, dz/dt = x y - beta z.

    Good values: sigma = 10, rho = 28, beta = 8/3 (Lorenz's own) give the chaotic butterfly, with a
    largest Lyapunov exponent of about 0.906 and turns of about 0.75 time units. Below rho = 24.06
    trajectories may settle on a fixed point. RK4 with dt = 0.025 and one sub-step has an error per
    step of 5e-5 in the median and 6e-4 in the root mean square.
    """

    sigma: float = option(default=10.0, check=positive, help="Prandtl number")
    rho: float = option(default=28.0, check=positive, help="Rayleigh over critical number")
    beta: float = option(default=8 / 3, check=positive, help="geometric factor")
    dt: float = option(default=0.025, check=positive, help="time between two stored states")
    substeps: int = option(default=1, check=at_least(1), help="RK4 steps per output step")

    @property
    def spec(self) -> SystemSpec:
        """Three dimensionless variables; the standardization of the SDA paper."""
        return SystemSpec(
            variables=("x", "y", "z"),
            time_step=self.dt,
            mean=(0.0, 0.0, 25.0),
            std=(8.0, 9.0, 8.6),
        )

    def prior(self, shape: Sequence[int], generator: Generator) -> Tensor:
        """Gaussian with about the mean and covariance of the attractor: (B..., 3)."""
        mean = torch.tensor([0.0, 0.0, 25.0], dtype=torch.float64)
        covariance = torch.tensor(
            [[64.0, 50.0, 0.0], [50.0, 81.0, 0.0], [0.0, 0.0, 75.0]], dtype=torch.float64
        )
        z = torch.randn(*shape, 3, generator=generator, dtype=torch.float64)
        return mean + z @ torch.linalg.cholesky(covariance).T

    def rhs(self, x: Tensor) -> Tensor:
        """dx/dt, (B..., 3) -> (B..., 3)."""
        x, y, z = x.unbind(-1)
        return torch.stack(
            (self.sigma * (y - x), x * (self.rho - z) - y, x * y - self.beta * z), dim=-1
        )


@component
class NoisyLorenz63(Lorenz63):
    r"""Lorenz-63 with Gaussian noise added to the state after each step: a Markov chain.

    p(x_i | x_i-1) = N(RK4(x_i-1), noise^2 dt I).

    Good values: noise = 1 (the SDA paper's), that is a standard deviation of sqrt(dt) = 0.158 per
    step of 0.025; the exact log-density of a transition then averages 1.28.
    """

    noise: float = option(default=1.0, check=positive, help="amplitude, per square root of time")

    @property
    def _std(self) -> float:
        return self.noise * math.sqrt(self.dt)

    def transition(self, x: Tensor, generator: Generator) -> Tensor:
        """Draw x_i given x_i-1, (B..., 3) -> (B..., 3)."""
        mean = super().transition(x, generator)
        z = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        return mean + self._std * z

    def log_prob(self, x: Tensor, x_next: Tensor) -> Tensor:
        """log p(x_next | x), (B..., 3) twice -> (B...)."""
        mean = super().transition(x, Generator())
        z = (x_next - mean) / self._std
        return (-0.5 * z**2 - math.log(self._std * math.sqrt(2 * math.pi))).sum(-1)
