"""The Ornstein-Uhlenbeck process."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from sda_core import component, option
from sda_core.config import positive
from sda_core.system import SDESystem, SystemSpec


@component
class OrnsteinUhlenbeck(SDESystem):
    """dx = -rate x dt + noise dW; its stationary variance is noise^2 / (2 rate)."""

    rate: float = option(default=1.0, check=positive, help="rate of relaxation")
    noise: float = option(default=1.0, check=positive, help="noise amplitude")
    dt: float = option(default=0.1, check=positive, help="time between two states")

    @property
    def spec(self) -> SystemSpec:
        """One variable; standardized by the data."""
        return SystemSpec(variables=("x",), time_step=self.dt)

    def prior(self, shape: Sequence[int], generator: Generator) -> Tensor:
        """Standard normal, (B..., 1)."""
        return torch.randn(*shape, 1, generator=generator, dtype=torch.float64)

    def drift(self, x: Tensor) -> Tensor:
        """(B..., 1) -> (B..., 1)."""
        return -self.rate * x

    def diffusion(self, x: Tensor) -> float:
        """The same everywhere."""
        return self.noise
