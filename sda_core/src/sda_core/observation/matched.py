"""Observations of a table with what became of each."""

from __future__ import annotations

import attrs
import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from sda_core.observation.base import ObservationModel, Operator
from sda_core.observation.points import Points
from sda_core.system import SystemSpec

#: What can become of an observation.
STATUSES = ("used", "withheld", "rejected", "duplicate", "missing value", "out of range")


@attrs.frozen(kw_only=True, eq=False)
class MatchedObservations:
    """The rows of an :class:`~sda_core.observation.ObservationTable`, matched to a trajectory.

    Attributes:
        frame: The table, one row for each observation, with two more columns: ``status`` (one of
            :data:`STATUSES`), and ``time_index``, the index of the state it belongs to, which has
            a fraction between two states, and is NaN for what is out of range.
        spec: What the states are.
        length: Number L of states.
    """

    frame: pd.DataFrame
    spec: SystemSpec
    length: int

    @property
    def counts(self) -> dict[str, int]:
        """Number of observations by status."""
        counts = self.frame["status"].value_counts()
        return {status: int(counts[status]) for status in STATUSES if status in counts}

    def __str__(self) -> str:
        return ", ".join(f"{count} {status}" for status, count in self.counts.items())

    def model(self, status: str) -> ObservationModel:
        """p(y | x) of the observations with a status that have been matched: used or withheld."""
        rows = self._rows(status)
        return self._points(rows, tuple(self.frame["error"][rows])).bind(self.spec, self.length)

    def used(self) -> tuple[ObservationModel, Tensor]:
        """p(y | x) and y of the observations used, for a problem.

        They are in standardized units, (value - mean) / std, if the spec has any: guidance then
        means the same for all variables, whatever their units.
        """
        if self.spec.mean is None or self.spec.std is None:
            return self.model("used"), self.y("used")
        rows = self._rows("used")
        index = [self.spec.variable_names.index(name) for name in self.frame["variable"][rows]]
        mean, std = np.array(self.spec.mean)[index], np.array(self.spec.std)[index]
        points = self._points(
            rows, tuple(self.frame["error"][rows].to_numpy() / std), standardized=True
        )
        y = (self.frame["value"][rows].to_numpy() - mean) / std
        return points.bind(self.spec, self.length), torch.from_numpy(y)

    def y(self, status: str) -> Tensor:
        """Their values, (n,), float64."""
        return torch.from_numpy(self.frame["value"][self._rows(status)].to_numpy(copy=True))

    def located(self) -> tuple[np.ndarray, Operator]:
        """Which rows are in range, whatever their status, and the operator A that gives them."""
        rows = self.frame["time_index"].notna().to_numpy()
        return rows, self._points(rows).operator(self.spec)

    def _rows(self, status: str) -> np.ndarray:
        return (self.frame["status"] == status).to_numpy()

    def _points(
        self,
        rows: np.ndarray,
        std: tuple[float, ...] | None = None,
        *,
        standardized: bool = False,
    ) -> Points:
        names = ["time_index", "variable", *(axis.name for axis in self.spec.axes)]
        entries = self.frame.loc[rows, names].itertuples(index=False, name=None)
        return Points(entries=tuple(entries), std=std, standardized=standardized)

    def to_dataset(self) -> xr.Dataset:
        """The table along the dimension ``observation``, for NetCDF."""
        return dataset(self.frame)


def dataset(frame: pd.DataFrame) -> xr.Dataset:
    """A table along the dimension ``observation``, for NetCDF."""
    columns = {
        name: ("observation", column.to_numpy(object if _is_text(column) else None))
        for name, column in frame.items()
    }
    return xr.Dataset(columns)


def _is_text(column: pd.Series) -> bool:
    return pd.api.types.is_string_dtype(column) or column.dtype == object
