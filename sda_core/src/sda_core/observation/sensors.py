"""Observe at random grid points."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sda_core.config import Check, at_least, component, non_negative, option
from sda_core.errors import ConfigError
from sda_core.observation.selection import Places, require_grid
from sda_core.random import seeded_generator
from sda_core.system import SystemSpec


@component
class Sensors(Places):
    r"""A fixed network of n random grid points: (..., L, C, \*S) -> (..., T, C', n).

    Points are drawn without replacement, and are the same at all times and in all trajectories. Of
    two networks with the same seed the larger contains the smaller.
    """

    count: int | None = option(default=None, check=at_least(1), help="number n of grid points")
    fraction: float | None = option(
        default=None,
        check=Check("greater than 0 and at most 1", lambda v: 0 < v <= 1),
        help="share of all grid points, instead of count; rounded, at least one point",
    )
    seed: int = option(default=0, check=non_negative, help="seed of the points drawn")

    def __attrs_post_init__(self) -> None:
        if (self.count is None) == (self.fraction is None):
            raise ConfigError(
                f"observation.count = {self.count} and observation.fraction = {self.fraction}: "
                "give exactly one of them"
            )

    def _index(self, spec: SystemSpec) -> Tensor:
        require_grid(spec, "count" if self.fraction is None else "fraction")
        points = math.prod(spec.grid_shape)
        count = self.count or max(1, round((self.fraction or 0) * points))
        if count > points:
            raise ConfigError(
                f"observation.count = {count} is more than the {points} points of the grid "
                f"{spec.grid_shape}"
            )
        order = torch.randperm(points, generator=seeded_generator(self.seed))
        return order[:count].sort().values
