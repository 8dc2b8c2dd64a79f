"""Trajectories and ensembles as labelled arrays (xarray), in physical units."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5netcdf
import h5py
import numpy as np
import torch
import xarray as xr
from torch import Tensor
from xarray.backends import H5NetCDFStore

from sda_core.data.writer import chunk_shape
from sda_core.errors import DataError
from sda_core.io.files import replace_file, sync, unavailable
from sda_core.io.hdf5_target import hdf5_target
from sda_core.system import SystemSpec

#: Bytes that the numbers of an ensemble are aligned to.
_ALIGNMENT = 64


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
    names, coordinates, own = labels(spec, x.shape)
    return xr.DataArray(
        x.numpy(), dims=names, coords=coordinates, attrs={**own, **(attributes or {})}
    )


def as_tensor(x: xr.DataArray | Tensor) -> Tensor:
    """Trajectories without their labels."""
    return torch.as_tensor(x.to_numpy()) if isinstance(x, xr.DataArray) else x


def labels(
    spec: SystemSpec, shape: Sequence[int]
) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    r"""Dimensions, coordinates and attributes of trajectories of a shape.

    Args:
        spec: What the states are.
        shape: (M, L, C, \*S), or (L, C, \*S) for a single one.
    """
    names = ["time", "variable", *(a.name for a in spec.axes)]
    length = shape[len(shape) - len(names)]
    coordinates: dict[str, Any] = {
        "time": ("time", np.arange(length) * spec.time_step, {"units": spec.time_units}),
        "variable": list(spec.variable_names),
    }
    coordinates |= {a.name: (a.name, a.values, {"units": a.units}) for a in spec.axes}
    if len(shape) > len(names):
        names = ["member", *names]
        coordinates["member"] = np.arange(shape[0])
    return names, coordinates, {"units": [v.units for v in spec.variables]}


def save(data: xr.DataArray | xr.Dataset, path: Path) -> None:
    """Write a NetCDF file and rename it into place."""
    dataset = data.to_dataset() if isinstance(data, xr.DataArray) else data
    with (
        replace_file(path) as temporary,
        hdf5_target(temporary) as target,
        h5netcdf.File(target, "w") as file,
    ):
        dataset.dump_to_store(H5NetCDFStore(file))


def allocate(path: Path, name: str, spec: SystemSpec, shape: Sequence[int]) -> None:
    r"""Make a NetCDF file with space for an ensemble, float32, in one piece.

    So writing members changes nothing but their own bytes, wherever it is cut short.

    Args:
        path: The file.
        name: Name of the ensemble.
        spec: What the states are.
        shape: (M, L, C, \*S).
    """
    names, coordinates, attributes = labels(spec, shape)
    with replace_file(path) as temporary, hdf5_target(temporary) as target:
        aligned: Any = {"alignment_threshold": 1, "alignment_interval": _ALIGNMENT}
        with h5netcdf.File(target, "w", **aligned) as file:
            xr.Dataset(coords=coordinates).dump_to_store(H5NetCDFStore(file))
            values = file.create_variable(name, names, "<f4")
            values.attrs.update(attributes)
            values[(-1,) * len(shape)] = 0.0  # the space is taken when something is written


def save_zarr(array: xr.DataArray, path: Path) -> None:
    """Write a Zarr store, member by member, and wait until it is on the disk."""
    import zarr

    _, length, *state = array.shape
    # Format 2, which more programs read, and which has strings, for the names of variables.
    array.coords.to_dataset().to_zarr(path, mode="w", zarr_format=2, consolidated=False)
    values = zarr.open_group(path, mode="a").create_array(
        str(array.name),
        shape=array.shape,
        dtype=array.dtype,
        chunks=chunk_shape(length, tuple(state)),
        attributes={**array.attrs, "_ARRAY_DIMENSIONS": list(map(str, array.dims))},
    )
    for number, member in enumerate(array.to_numpy()):
        values[number] = member
    zarr.consolidate_metadata(path)
    for part in path.rglob("*"):
        if part.is_file():
            sync(part)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def result(path: Path) -> Path:
    """The file of an ensemble, given as NetCDF, or the Zarr store that is there in its place."""
    store = path.with_suffix(".zarr")
    return store if store.is_dir() else path


def load_array(path: Path, made_by: str) -> Tensor:
    """Read an array that :func:`save`, :func:`allocate` or :func:`save_zarr` made.

    Numbers that lie in a file in one piece are read when they are used, and what is changed in the
    tensor is not changed in the file.

    Raises:
        DataError: The file is not there, or cannot be read.
    """
    if not path.exists():
        raise DataError(f"there is no {path}: run `sda {made_by}` first")
    try:
        engine = "zarr" if path.is_dir() else "h5netcdf"
        with xr.open_dataarray(path, engine=engine) as array:
            if engine == "h5netcdf" and (start := offset(path, str(array.name))) is not None:
                mapped = np.memmap(path, array.dtype, "c", start, array.shape)
                return torch.from_numpy(mapped)
            return torch.from_numpy(array.to_numpy().copy())
    except (OSError, ValueError) as error:
        if why := unavailable(error):
            raise DataError(f"{path}: {why[0]}. To mend: {why[1]}") from error
        raise DataError(
            f"{path} cannot be read ({error}): delete it and run `sda {made_by}` again"
        ) from error


def offset(path: Path, name: str) -> int | None:
    """Where in a NetCDF file the numbers of a variable begin, None unless they are in one piece."""
    with h5py.File(path, "r") as file:
        place: int | None = file[name].id.get_offset()
    return place
