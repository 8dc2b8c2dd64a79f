"""Interpolate to points between states and between points of the grid."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sda_core.config import component, option
from sda_core.errors import ConfigError
from sda_core.observation.base import Observation, Operator
from sda_core.observation.multilinear import SNAP, Interpolation, indices_inside
from sda_core.observation.selection import name_indices, require_standardization
from sda_core.system import SystemSpec


@component
class Points(Observation):
    r"""Linear interpolation in time and space to n points: (..., L, C, \*S) -> (..., n).

    Each entry is one value of one variable, (time, variable, \*place). Its time is the index of a
    state, where 2.5 is halfway between states 2 and 3; its place has one coordinate for each grid
    axis, in that axis' unit. A network may so change from time to time. Along a periodic axis,
    coordinates wrap around.

    With ``standardized`` the values are observed in the system's standardized units, and the noise
    is relative to them. A filter takes entries whose times are whole numbers.
    """

    entries: tuple[tuple[float | str, ...], ...] = option(
        help="one (time, variable, *place) for each value: index of the state, which may have a "
        "fraction, name of the variable, and a coordinate for each grid axis"
    )
    standardized: bool = option(
        default=False, help="observe (x - mean) / std instead of physical values"
    )

    def __attrs_post_init__(self) -> None:
        if not self.entries:
            raise ConfigError("observation.entries is empty: nothing would be observed")
        for number, entry in enumerate(self.entries):
            types = [isinstance(value, str) for value in entry]
            if types[:2] != [False, True] or any(types[2:]) or not 0 <= entry[0] < 2**31:  # type: ignore[operator]
                raise ConfigError(
                    f"observation.entries[{number}] = {list(entry)} is not (time, variable, "
                    '*place), as in [2.5, "u", 0.1, 0.7], with a time of 0 or greater'
                )

    def _times(self) -> np.ndarray:
        times = np.array([entry[0] for entry in self.entries], np.float64)
        return np.where(np.abs(times - times.round()) < SNAP, times.round(), times)

    def _indices(self, spec: SystemSpec) -> np.ndarray:
        """Indices with a fraction in (time, variable, *place), (n, 2 + d)."""
        for number, entry in enumerate(self.entries):
            if len(entry) != 2 + len(spec.axes):
                raise ConfigError(
                    f"observation.entries[{number}] = {list(entry)} has {len(entry) - 2} "
                    f"coordinates, but the grid has the axes {[a.name for a in spec.axes]}: give "
                    "one for each"
                )
        names = tuple(str(entry[1]) for entry in self.entries)
        variables = name_indices(names, spec.variable_names, "entries", "variable")
        columns = [self._times(), np.array(variables, np.float64)]
        for number, axis in enumerate(spec.axes, start=2):
            place = np.array([entry[number] for entry in self.entries], np.float64)
            columns.append(indices_inside(axis, place, "observation.entries"))
        return np.stack(columns, 1)

    def operator(self, spec: SystemSpec) -> Operator:
        """Interpolates, in the order of the entries."""
        indices = self._indices(spec)
        needed = int(np.ceil(indices[:, 0].max())) + 1
        interpolate = Interpolation(indices, (needed, *spec.state_shape))
        dims = 1 + len(spec.state_shape)
        variables = indices[:, 1].astype(np.int64)
        mean, std = torch.zeros(1), torch.ones(1)
        if self.standardized:
            mean, std = (values[variables] for values in require_standardization(spec))

        def A(x: Tensor) -> Tensor:
            length = x.shape[x.ndim - dims]
            if length < needed:
                raise ConfigError(
                    f"observation.entries has the time {indices[:, 0].max():g}, but the last of "
                    f"the {length} states is {length - 1}"
                )
            return (interpolate(x.flatten(-dims)) - mean.to(x)) / std.to(x)

        return A

    def times(self, times: Tensor) -> Tensor | None:
        """Time of each entry; None if one lies between two states."""
        index = self._times()
        if (index % 1).any():
            return None
        return times[torch.from_numpy(index.astype(np.int64))]
