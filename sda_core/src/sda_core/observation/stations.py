"""Interpolate to a fixed network of points between those of the grid."""

from __future__ import annotations

import attrs
import numpy as np
from torch import Tensor

from sda_core.config import component, option
from sda_core.errors import ConfigError
from sda_core.observation.base import Operator
from sda_core.observation.multilinear import Interpolation, indices_inside
from sda_core.observation.selection import Selection, require_grid
from sda_core.system import Axis, SystemSpec


@component
class Stations(Selection):
    r"""Linear interpolation in space to n places: (..., L, C, \*S) -> (..., T, C', n).

    Along a periodic axis, coordinates wrap around.
    """

    places: tuple[tuple[float, ...], ...] = option(
        help="coordinates of each place, one for each grid axis"
    )

    def operator(self, spec: SystemSpec) -> Operator:
        """Selects times and variables, and interpolates, in the order of the places."""
        require_grid(spec, "places")
        select = super().operator(spec)
        if not self.places:
            raise ConfigError("observation.places is empty: nothing would be observed")
        for number, place in enumerate(self.places):
            if len(place) != len(spec.axes):
                raise ConfigError(
                    f"observation.places[{number}] = {list(place)} has {len(place)} coordinates, "
                    f"but the grid has the axes {[a.name for a in spec.axes]}: give one for each"
                )
        columns = [
            indices_inside(axis, coordinates, "observation.places")
            for axis, coordinates in zip(spec.axes, np.array(self.places).T, strict=True)
        ]
        interpolate = Interpolation(np.stack(columns, 1), spec.grid_shape)
        grid = len(spec.axes)

        def A(x: Tensor) -> Tensor:
            return interpolate(select(x).flatten(-grid))

        return A

    def output(self, spec: SystemSpec) -> SystemSpec:
        """The selected variables along one axis, which numbers the places."""
        return attrs.evolve(
            super().output(spec), axes=(Axis("place", np.arange(len(self.places))),)
        )
