"""What operators on some variables, states and places share."""

from __future__ import annotations

from abc import abstractmethod

import attrs
import numpy as np
import torch
from torch import Tensor

from sda_core.config import at_least, component, nearest, non_negative, option
from sda_core.errors import ConfigError
from sda_core.observation.base import Observation, Operator
from sda_core.system import Axis, SystemSpec


def name_indices(names: tuple[str, ...], known: tuple[str, ...], key: str, kind: str) -> list[int]:
    """Indices of names among those known.

    Args:
        names: Names to look up.
        known: All names there are.
        key: Key of the configuration that gave the names, for messages.
        kind: What is named: "variable" or "axis".

    Raises:
        ConfigError: A name is not among those known.
    """
    for name in names:
        if name not in known:
            match = nearest(name, known)
            hint = f"; did you mean {match!r}" if match else ""
            raise ConfigError(
                f"observation.{key}: there is no {kind} {name!r}{hint}. This system has "
                f"{list(known)}"
            )
    return [known.index(name) for name in names]


def require_grid(spec: SystemSpec, key: str) -> None:
    """Refuse a system without a grid.

    Raises:
        ConfigError: The system has no grid.
    """
    if not spec.axes:
        raise ConfigError(
            f"observation.{key} needs a system with a grid, but the states here are the variables "
            f"{list(spec.variable_names)} without one. Choose among them with 'select'"
        )


def require_standardization(spec: SystemSpec) -> tuple[Tensor, Tensor]:
    """Mean and std of each variable, (C,), float64.

    Raises:
        ConfigError: The system has none.
    """
    if spec.mean is None or spec.std is None:
        raise ConfigError(
            "observation.standardized = true needs a system with a standardization; this one "
            "has none before its data are made. Give std in physical units instead"
        )
    return tuple(torch.tensor(v, dtype=torch.float64) for v in (spec.mean, spec.std))  # type: ignore[return-value]


@component
class Selection(Observation):
    r"""Base of operators on some variables of every n-th state.

    ``operator`` and ``output`` are those of the selection alone, (..., L, C, \*S) ->
    (..., T, C', \*S), from where subclasses go on.
    """

    variables: tuple[str, ...] | None = option(
        default=None, help="names of the variables; all if not set"
    )
    every: int = option(default=1, check=at_least(1), help="observe every n-th state")
    offset: int = option(default=0, check=non_negative, help="index of the first observed state")

    def _indices(self, spec: SystemSpec) -> list[int]:
        if self.variables is None:
            return list(range(len(spec.variables)))
        if not self.variables:
            raise ConfigError("observation.variables is empty: nothing would be observed")
        return name_indices(self.variables, spec.variable_names, "variables", "variable")

    def operator(self, spec: SystemSpec) -> Operator:
        """Selects times and variables."""
        index = torch.tensor(self._indices(spec))
        grid = len(spec.grid_shape)

        def A(x: Tensor) -> Tensor:
            time_axis, variable_axis = x.ndim - grid - 2, x.ndim - grid - 1
            if self.offset >= x.shape[time_axis]:
                raise ConfigError(
                    f"observation.offset = {self.offset} lies beyond the trajectory of "
                    f"{x.shape[time_axis]} states"
                )
            # A slice is a view, so that only what is observed is copied.
            x = x.movedim(time_axis, 0)[self.offset :: self.every].movedim(0, time_axis)
            return x.index_select(variable_axis, index.to(x.device))

        return A

    def times(self, times: Tensor) -> Tensor:
        """Times of the observed states."""
        return times[self.offset :: self.every]

    def output(self, spec: SystemSpec) -> SystemSpec:
        """The same grid with the selected variables."""
        index = self._indices(spec)
        return attrs.evolve(
            spec,
            variables=[spec.variables[i] for i in index],
            time_step=spec.time_step * self.every,
            mean=spec.mean and [spec.mean[i] for i in index],
            std=spec.std and [spec.std[i] for i in index],
        )


@component
class Places(Selection):
    r"""Base of operators that observe n places of the grid: (..., L, C, \*S) -> (..., T, C', n)."""

    @abstractmethod
    def _index(self, spec: SystemSpec) -> Tensor:
        """Indices of the places on the flattened grid, (n,)."""

    def places(self, spec: SystemSpec) -> Tensor:
        """Indices of the places on each of the d grid axes, (n, d), for plots."""
        return torch.stack(torch.unravel_index(self._index(spec), spec.grid_shape), dim=-1)

    def operator(self, spec: SystemSpec) -> Operator:
        """Picks the places, in row-major order."""
        select = super().operator(spec)
        index = self._index(spec)
        grid = len(spec.grid_shape)

        def A(x: Tensor) -> Tensor:
            return select(x).flatten(-grid).index_select(-1, index.to(x.device))

        return A

    def output(self, spec: SystemSpec) -> SystemSpec:
        """The selected variables along one axis, which numbers the places."""
        places = Axis("place", np.arange(len(self._index(spec))))
        return attrs.evolve(super().output(spec), axes=(places,))
