"""A double pendulum: two point masses on two massless rods, without friction."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from sda_core import component, option
from sda_core.config import at_least, positive
from sda_core.system import ODESystem, SystemSpec


@component
class DoublePendulum(ODESystem):
    """Two equal masses on two equal rods; angles are measured from the vertical.

    Good values: released within 1.23 rad (where 3 (1 - cos) = 2), neither rod can turn over, so
    that angles stay small numbers.
    """

    rod: float = option(default=1.0, check=positive, units="m", help="length of each rod")
    gravity: float = option(default=9.81, check=positive, units="m/s^2", help="free fall")
    release: float = option(default=1.0, check=positive, units="rad", help="largest initial angle")
    dt: float = option(default=0.05, check=positive, units="s", help="time between two states")
    substeps: int = option(default=4, check=at_least(1), help="RK4 steps per output step")

    @property
    def spec(self) -> SystemSpec:
        """Two angles and their rates; standardized by the data."""
        names = ("angle_1 [rad]", "angle_2 [rad]", "rate_1 [rad/s]", "rate_2 [rad/s]")
        return SystemSpec(variables=names, time_step=self.dt, time_units="s")

    def prior(self, shape: Sequence[int], generator: Generator) -> Tensor:
        """At rest at angles uniform in [-release, release]: (B..., 4)."""
        u = torch.rand(*shape, 2, generator=generator, dtype=torch.float64)
        return torch.cat((self.release * (2 * u - 1), torch.zeros_like(u)), dim=-1)

    def rhs(self, x: Tensor) -> Tensor:
        """dx/dt, (B..., 4) -> (B..., 4)."""
        a, b, u, v = x.unbind(-1)
        g, sin, cos = self.gravity / self.rod, torch.sin(a - b), torch.cos(a - b)
        inertia = 3 - torch.cos(2 * (a - b))
        push = g * (3 * a.sin() + (a - 2 * b).sin()) + 2 * sin * (v**2 + u**2 * cos)
        pull = 2 * sin * (2 * u**2 + 2 * g * a.cos() + v**2 * cos)
        return torch.stack((u, v, -push / inertia, pull / inertia), dim=-1)
