"""Observe some variables at every n-th state."""

from __future__ import annotations

import torch
from torch import Tensor

from sda_core.config import at_least, component, nearest, non_negative, option
from sda_core.errors import ConfigError
from sda_core.observation.base import Observation, Operator
from sda_core.system.base import SystemSpec


def variable_indices(spec: SystemSpec, names: tuple[str, ...]) -> list[int]:
    """Indices of variables by name.

    Raises:
        ConfigError: The system has no such variable.
    """
    known = spec.variable_names
    for name in names:
        if name not in known:
            match = nearest(name, known)
            hint = f"; did you mean {match!r}" if match else ""
            raise ConfigError(
                f"observation.variables: there is no variable {name!r}{hint}. This system has "
                f"{list(known)}"
            )
    return [known.index(name) for name in names]


@component
class Select(Observation):
    r"""Selected variables at every n-th state: (..., L, C, \*S) -> (..., T, C', \*S).

    With ``standardized`` the values are observed in the system's standardized units,
    (x - mean) / std, and the noise is relative to them.
    """

    variables: tuple[str, ...] | None = option(
        default=None, help="names of the variables; all if not set"
    )
    every: int = option(default=1, check=at_least(1), help="observe every n-th state")
    offset: int = option(default=0, check=non_negative, help="index of the first observed state")
    standardized: bool = option(
        default=False, help="observe (x - mean) / std instead of physical values"
    )

    def _indices(self, spec: SystemSpec) -> list[int]:
        if self.variables is None:
            return list(range(len(spec.variables)))
        if not self.variables:
            raise ConfigError("observation.variables is empty: nothing would be observed")
        return variable_indices(spec, self.variables)

    def operator(self, spec: SystemSpec) -> Operator:
        """Selects times and variables."""
        index = torch.tensor(self._indices(spec))
        grid = len(spec.grid_shape)
        if self.standardized and (spec.mean is None or spec.std is None):
            raise ConfigError(
                "observation.standardized = true needs a system with a standardization; this one "
                "has none before its data are made. Give std in physical units instead"
            )

        def A(x: Tensor) -> Tensor:
            time_axis, variable_axis = x.ndim - grid - 2, x.ndim - grid - 1
            if self.offset >= x.shape[time_axis]:
                raise ConfigError(
                    f"observation.offset = {self.offset} lies beyond the trajectory of "
                    f"{x.shape[time_axis]} states"
                )
            # A slice is a view, so that only what is observed is copied.
            x = x.movedim(time_axis, 0)[self.offset :: self.every].movedim(0, time_axis)
            x = x.index_select(variable_axis, index.to(x.device))
            if self.standardized:
                shape = (-1,) + (1,) * grid
                mean = x.new_tensor(spec.mean)[index.to(x.device)].reshape(shape)
                std = x.new_tensor(spec.std)[index.to(x.device)].reshape(shape)
                x = (x - mean) / std
            return x

        return A

    def times(self, times: Tensor) -> Tensor:
        """Times of the observed states."""
        return times[self.offset :: self.every]

    def output(self, spec: SystemSpec) -> SystemSpec:
        """The same grid with the selected variables."""
        index = self._indices(spec)
        return SystemSpec(
            variables=[spec.variables[i] for i in index],
            axes=spec.axes,
            time_step=spec.time_step * self.every,
            time_units=spec.time_units,
            mean=spec.mean and [spec.mean[i] for i in index],
            std=spec.std and [spec.std[i] for i in index],
        )
