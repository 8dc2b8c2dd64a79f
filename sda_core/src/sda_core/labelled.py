"""Ensembles and observations as labelled arrays (xarray), in physical units."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sda_core.errors import DataError
from sda_core.files import replace_file
from sda_core.method import Problem
from sda_core.system import SystemSpec


def trajectories(
    x: Tensor, spec: SystemSpec, attributes: Mapping[str, Any] | None = None
) -> xr.DataArray:
    r"""Label trajectories.

    Args:
        x: (M, L, C, \*S), or (L, C, \*S) for a single one, in physical units.
        spec: What the states are.
        attributes: Attributes to store with them.

    Returns:
        An array with the dimensions (member,) time, variable and the grid axes.
    """
    names = ["time", "variable", *(a.name for a in spec.axes)]
    length = x.shape[x.ndim - len(names)]
    coordinates: dict[str, Any] = {
        "time": ("time", np.arange(length) * spec.time_step, {"units": spec.time_units}),
        "variable": list(spec.variable_names),
    }
    coordinates |= {a.name: (a.name, a.values, {"units": a.units}) for a in spec.axes}
    if x.ndim > len(names):
        names = ["member", *names]
        coordinates["member"] = np.arange(len(x))
    units = [v.units for v in spec.variables]
    return xr.DataArray(
        x.numpy(), dims=names, coords=coordinates, attrs={"units": units, **(attributes or {})}
    )


def observations(problem: Problem) -> xr.Dataset:
    """The observation, its noise and, where known, the time index of each value and the truth."""
    dims = [f"observation_{i}" for i in range(problem.y.ndim)]
    data: dict[str, Any] = {
        "y": (dims, problem.y.numpy()),
        "std": (dims, problem.observation.std.contiguous().numpy()),
    }
    if problem.observation.times is not None:
        data["time_index"] = (dims, problem.observation.times.contiguous().numpy())
    dataset = xr.Dataset(data)
    if problem.truth is not None:
        dataset["truth"] = trajectories(problem.truth, problem.system.spec)
    return dataset


def save(data: xr.DataArray | xr.Dataset, path: Path) -> None:
    """Write a NetCDF file and rename it into place."""
    with replace_file(path) as temporary:
        data.to_netcdf(temporary, engine="h5netcdf")


def load_array(path: Path, made_by: str) -> Tensor:
    """Read an array that :func:`save` wrote.

    Raises:
        DataError: The file is not there, or cannot be read.
    """
    if not path.is_file():
        raise DataError(f"there is no {path}: run `sda {made_by}` first")
    try:
        with xr.open_dataarray(path, engine="h5netcdf") as array:
            return torch.from_numpy(array.to_numpy().copy())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}): delete it and run `sda {made_by}` again"
        ) from error
