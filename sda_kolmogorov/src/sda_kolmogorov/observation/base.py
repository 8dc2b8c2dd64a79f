"""What observations of a flow share."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import attrs
import numpy as np
from torch import Tensor

from sda_core.config import component
from sda_core.errors import ConfigError
from sda_core.observation import Operator, Selection
from sda_core.system import SystemSpec, Variable


@component
class FlowObservation(Selection):
    """Base of operators from the velocity to one field: (..., L, 2, n, m) -> (..., T, 1, n, m).

    The velocity (u, v) is at the cell centres of the periodic square [0, 2 pi)^2; the two variables
    are the first and the second component, in this order.
    """

    observed: ClassVar[Variable]

    @abstractmethod
    def field(self, x: Tensor) -> Tensor:
        """The field observed, (..., 2, n, m) -> (..., n, m)."""

    def operator(self, spec: SystemSpec) -> Operator:
        """Selects times and the velocity, and computes the field.

        Raises:
            ConfigError: The states are not such a velocity.
        """
        select, velocity = super().operator(spec), super().output(spec)
        even = [
            np.allclose(np.diff(axis.values), 2 * math.pi / len(axis.values), rtol=1e-3)
            for axis in velocity.axes
        ]
        if len(velocity.variables) != 2 or even != [True, True]:
            raise ConfigError(
                f"the {self.observed.name} is that of two variables, the velocity (u, v), on a "
                "two-dimensional grid that covers the periodic square [0, 2 pi)^2 evenly, but was "
                f"asked of {list(velocity.variable_names)} on the grid "
                f"{dict(zip((a.name for a in velocity.axes), velocity.grid_shape, strict=True))}. "
                "Choose the velocity with observation.variables, and places after this operator"
            )
        return lambda x: self.field(select(x)).unsqueeze(-3)

    def output(self, spec: SystemSpec) -> SystemSpec:
        """One variable on the same grid."""
        return attrs.evolve(super().output(spec), variables=(self.observed,), mean=None, std=None)
