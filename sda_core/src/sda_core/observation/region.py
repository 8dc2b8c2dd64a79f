"""Observe a part of the domain."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sda_core.config import Check, component, option
from sda_core.errors import ConfigError
from sda_core.observation.selection import Places, name_indices
from sda_core.system import SystemSpec


@component
class Region(Places):
    r"""Grid points in a box, or all but these: (..., L, C, \*S) -> (..., T, C', n).

    The box is closed: a point on its boundary is inside.
    """

    box: dict[str, tuple[float, float]] = option(
        check=Check("[lower, upper]", lambda ends: len(ends) == 2, finite=False),
        help="lower and upper coordinate by the name of a grid axis; axes left out are not bounded",
    )
    outside: bool = option(default=False, help="observe everything but the box")

    def __attrs_post_init__(self) -> None:
        if not self.box:
            raise ConfigError(
                "observation.box is empty: give [lower, upper] for at least one grid axis"
            )
        for name, (lower, upper) in self.box.items():
            if not lower <= upper:
                raise ConfigError(
                    f"observation.box.{name} = [{lower:g}, {upper:g}]: the lower bound must not be "
                    "above the upper one"
                )

    def _index(self, spec: SystemSpec) -> Tensor:
        axes = name_indices(tuple(self.box), tuple(a.name for a in spec.axes), "box", "axis")
        observed = np.ones(spec.grid_shape, dtype=bool)
        for number, (lower, upper) in zip(axes, self.box.values(), strict=True):
            values = spec.axes[number].values
            inside = (lower <= values) & (values <= upper)
            observed &= inside.reshape(-1, *(1,) * (len(spec.axes) - number - 1))
        if self.outside:
            observed = ~observed
        if not observed.any():
            extent = ", ".join(
                f"{axis.name} from {axis.values.min():g} to {axis.values.max():g}"
                for axis in spec.axes
            )
            raise ConfigError(
                f"observation.box has {'all' if self.outside else 'none'} of the grid's points in "
                f"it, so that nothing would be observed. The grid has {extent}"
            )
        return torch.from_numpy(np.flatnonzero(observed))
