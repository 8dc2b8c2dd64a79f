"""Observe means over blocks of the grid."""

from __future__ import annotations

import math

import attrs
from torch import Tensor

from sda_core.config import at_least, component, option
from sda_core.errors import ConfigError, ShapeError
from sda_core.observation.base import Operator
from sda_core.observation.selection import Selection, require_grid
from sda_core.system import SystemSpec


def block_means(x: Tensor, factor: int, dims: int) -> Tensor:
    r"""Means over blocks of ``factor`` points along each of the last ``dims`` dimensions.

    Args:
        x: Fields, (..., \*S) with ``dims`` grid dimensions.
        factor: Length r of a block.
        dims: Number of grid dimensions.

    Returns:
        Block means, (..., \*S / r).

    Raises:
        ShapeError: Blocks of that length do not fill the grid.
    """
    grid = tuple(x.shape[x.ndim - dims :])
    if factor < 1 or any(n % factor for n in grid):
        raise ShapeError(
            f"blocks of {factor} points do not fill the grid {grid}: the factor must divide each "
            "of its lengths"
        )
    for dim in range(-dims, 0):
        x = x.unflatten(dim, (-1, factor)).mean(dim)
    return x


@component
class Coarsen(Selection):
    r"""Block means over all grid axes: (..., L, C, \*S) -> (..., T, C', \*S / factor)."""

    factor: int = option(check=at_least(1), help="points per block along each grid axis")

    def operator(self, spec: SystemSpec) -> Operator:
        """Selects times and variables, and averages."""
        select = super().operator(spec)
        dims = len(self.output(spec).axes)
        return lambda x: block_means(select(x), self.factor, dims)

    def output(self, spec: SystemSpec) -> SystemSpec:
        """The selected variables at the blocks' mean coordinates.

        Raises:
            ConfigError: Blocks do not fill the grid, or there is none.
        """
        require_grid(spec, f"factor = {self.factor}")
        if any(n % self.factor for n in spec.grid_shape):
            common = math.gcd(*spec.grid_shape)
            allowed = [r for r in range(1, common + 1) if common % r == 0]
            raise ConfigError(
                f"observation.factor = {self.factor} does not divide the grid {spec.grid_shape}, "
                f"allowed: {allowed}"
            )
        axes = [
            attrs.evolve(axis, values=axis.values.reshape(-1, self.factor).mean(1))
            for axis in spec.axes
        ]
        return attrs.evolve(super().output(spec), axes=axes)
