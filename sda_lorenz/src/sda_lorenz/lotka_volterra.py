r"""Predator and prey.

References:
    - Lotka, "Elements of Physical Biology", 1925
    - Volterra, "Fluctuations in the Abundance of a Species considered Mathematically", 1926,
      https://doi.org/10.1038/118558a0
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from sda_core.config import at_least, component, option, positive
from sda_core.system import ODESystem, SystemSpec


@component
class LotkaVolterra(ODESystem):
    r"""d(log u)/dt = alpha - beta v, d(log v)/dt = delta u - gamma: prey u and predators v.

    In the logarithms populations stay positive. H = delta u - gamma log u + beta v - alpha log v
    is conserved, so that every initial state has its own closed orbit.

    Good values: all four rates 1, with initial log populations in [0, 1], give orbits of
    period 6.3 to 7.8 time units (6.7 on average).
    """

    alpha: float = option(default=1.0, check=positive, help="growth rate of prey")
    beta: float = option(default=1.0, check=positive, help="rate at which a predator eats prey")
    delta: float = option(default=1.0, check=positive, help="growth rate of predators per prey")
    gamma: float = option(default=1.0, check=positive, help="death rate of predators")
    dt: float = option(default=0.05, check=positive, help="time between two stored states")
    substeps: int = option(default=1, check=at_least(1), help="RK4 steps per output step")

    @property
    def spec(self) -> SystemSpec:
        """Two log populations; standardized by the data."""
        return SystemSpec(variables=("log_prey", "log_predators"), time_step=self.dt)

    def prior(self, shape: Sequence[int], generator: Generator) -> Tensor:
        """Uniform in [0, 1], (B..., 2)."""
        return torch.rand(*shape, 2, generator=generator, dtype=torch.float64)

    def rhs(self, x: Tensor) -> Tensor:
        """Time derivative of the log populations, (B..., 2) -> (B..., 2)."""
        log_u, log_v = x.unbind(-1)
        return torch.stack(
            (self.alpha - self.beta * log_v.exp(), self.delta * log_u.exp() - self.gamma), dim=-1
        )
