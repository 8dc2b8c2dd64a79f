r"""The Lorenz (1996) system.

References:
    - Lorenz, "Predictability: a problem partly solved", 1996, Proc. ECMWF Seminar on
      Predictability, vol. 1
    - Lorenz & Emanuel, "Optimal Sites for Supplementary Weather Observations", 1998,
      https://doi.org/10.1175/1520-0469(1998)055<0399:OSFSWO>2.0.CO;2
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from sda_core.config import at_least, component, option, positive
from sda_core.system import Axis, ODESystem, SystemSpec


@component
class Lorenz96(ODESystem):
    r"""dx_j/dt = (x_j+1 - x_j-2) x_j-1 - x_j + F on a circle of n places.

    Good values: n = 40 and F = 8 (chaotic, 13 positive Lyapunov exponents, error doubling time
    about 0.4 time units, 1 unit = 5 days); dt = 0.05 (6 hours) as in Lorenz & Emanuel (1998). The
    climate then has mean 2.3 and standard deviation 3.6.
    """

    n: int = option(default=40, check=at_least(4), help="number of places")
    forcing: float = option(default=8.0, help="forcing F")
    dt: float = option(default=0.05, check=positive, help="time between two stored states")
    substeps: int = option(default=1, check=at_least(1), help="RK4 steps per output step")

    @property
    def spec(self) -> SystemSpec:
        """One variable on n places; standardized by the data."""
        circle = Axis("place", np.arange(self.n), period=self.n)
        return SystemSpec(variables=("x",), axes=(circle,), time_step=self.dt)

    def prior(self, shape: Sequence[int], generator: Generator) -> Tensor:
        """Standard normal, (B..., 1, n)."""
        return torch.randn(*shape, 1, self.n, generator=generator, dtype=torch.float64)

    def rhs(self, x: Tensor) -> Tensor:
        """dx/dt, (B..., 1, n) -> (B..., 1, n)."""
        after, before, before2 = x.roll(-1, -1), x.roll(1, -1), x.roll(2, -1)
        return (after - before2) * before - x + self.forcing
