"""Observe some variables at every n-th state and grid point."""

from __future__ import annotations

from types import EllipsisType

import attrs

from sda_core.config import at_least, component, option
from sda_core.observation.base import Operator
from sda_core.observation.selection import Selection, require_grid, require_standardization
from sda_core.system import SystemSpec


@component
class Select(Selection):
    r"""Selected variables at every n-th state: (..., L, C, \*S) -> (..., T, C', \*S').

    With ``spacing`` = s, S' are the grid points 0, s, 2s, ... of each axis. With ``standardized``
    the values are observed in the system's standardized units, (x - mean) / std, and the noise is
    relative to them.
    """

    spacing: int = option(
        default=1, check=at_least(1), help="observe every n-th point of each grid axis"
    )
    standardized: bool = option(
        default=False, help="observe (x - mean) / std instead of physical values"
    )

    def operator(self, spec: SystemSpec) -> Operator:
        """Selects times, variables and grid points."""
        select = super().operator(spec)
        grid = len(spec.grid_shape)
        points: tuple[EllipsisType | slice, ...] = (..., *[slice(None, None, self.spacing)] * grid)
        if self.spacing > 1:
            require_grid(spec, f"spacing = {self.spacing}")
        if not self.standardized:
            return lambda x: select(x[points])
        mean, std = (
            values.reshape(-1, *(1,) * grid)
            for values in require_standardization(self.output(spec))
        )
        return lambda x: (select(x[points]) - mean.to(x)) / std.to(x)

    def output(self, spec: SystemSpec) -> SystemSpec:
        """The selected variables and grid points."""
        axes = [attrs.evolve(axis, values=axis.values[:: self.spacing]) for axis in spec.axes]
        return attrs.evolve(super().output(spec), axes=axes)
