"""Writing one file of a data set; the format is described in ``base.py``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np

from sda_core.data.base import Recipe, StoreInfo
from sda_core.data.checksums import attributes_crc32, seal, trajectory_crc32
from sda_core.data.standardization import Moments
from sda_core.io.files import sync
from sda_core.io.hdf5_target import HDF5Target
from sda_core.system import SystemSpec

CHUNK_BYTES = 2**20


def chunk_shape(length: int, state_shape: tuple[int, ...]) -> tuple[int, ...]:
    r"""Shape of the chunks of ``x``: at most 1 MiB, all of one trajectory.

    Args:
        length: Number L of states per trajectory.
        state_shape: Shape (C, \*S) of a state.

    Returns:
        (1, l, c, \*s): the earlier axes are cut first, so that a chunk holds whole states where a
        state fits.
    """
    chunk = [1, length, *state_shape]
    for axis in range(1, len(chunk)):
        rest = 4 * math.prod(chunk[axis + 1 :])
        if rest * chunk[axis] <= CHUNK_BYTES:
            break
        pieces = -(-chunk[axis] // max(1, CHUNK_BYTES // rest))
        chunk[axis] = -(-chunk[axis] // pieces)
    return tuple(chunk)


class SplitWriter:
    """Writes the file of one split, trajectory after trajectory.

    Args:
        path: The file to write; an existing one is replaced.
        recipe: What the numbers depend on.
        split: The split in this file.
        spec: What the states are.

    Attributes:
        moments: Mean and std of what was written so far.
    """

    def __init__(self, path: Path, recipe: Recipe, split: str, spec: SystemSpec) -> None:
        self.path, self.recipe, self.split = path, recipe, split
        # This file format puts a checksum on HDF5's own structures; HDF5 >= 1.10 reads it.
        self._target = HDF5Target(path)
        self._file = h5py.File(self._target, "w", libver=("v110", "v110"))
        N, L = recipe.split_sizes[split], recipe.length
        self._x = self._file.create_dataset(
            "x",
            shape=(N, L, *spec.state_shape),
            dtype="<f4",
            chunks=chunk_shape(L, spec.state_shape),
            fletcher32=True,
        )
        self._crc32 = np.zeros(N, np.uint32)
        self.moments = Moments(len(spec.variables))
        self._coordinates(spec)

    def _coordinates(self, spec: SystemSpec) -> None:
        units = [v.units for v in spec.variables]
        self._x.attrs["long_name"] = _text("states, in physical units")
        self._x.attrs["units"] = _text(", ".join(dict.fromkeys(units)))
        self._scale(0, "trajectory", np.array(self.recipe.rows(self.split), "<i8"))
        time = self._scale(1, "time", np.arange(self.recipe.length) * float(spec.time_step))
        time.attrs["long_name"] = _text("time since the first stored state")
        time.attrs["units"] = _text(spec.time_units)
        variable = self._scale(2, "variable", _texts(spec.variable_names))
        variable.attrs["_Encoding"] = _text("utf-8")  # xarray then gives str, not bytes
        variable.attrs["variable_units"] = _text(json.dumps(units))
        long_names = [v.long_name or v.name for v in spec.variables]
        variable.attrs["variable_long_names"] = _text(json.dumps(long_names))
        for i, axis in enumerate(spec.axes, start=3):
            self._scale(i, axis.name, axis.values).attrs["units"] = _text(axis.units)

    def _scale(self, axis: int, name: str, values: np.ndarray) -> h5py.Dataset:
        dataset = self._file.create_dataset(name, data=values, fletcher32=True)
        dataset.make_scale(name)
        self._x.dims[axis].attach_scale(dataset)
        return dataset

    def write(self, first: int, x: np.ndarray) -> None:
        r"""Write trajectories.

        Args:
            first: Number, in the data set, of the first one.
            x: Trajectories of shape (n, L, C, \*S).

        Raises:
            OSError: They cannot be written.
        """
        row = first - self.recipe.rows(self.split).start
        self._x[row : row + len(x)] = x
        self._target.check()
        self._crc32[row : row + len(x)] = [trajectory_crc32(member) for member in x]
        for member in x:
            self.moments.update(member)

    def finish(self, spec: SystemSpec, source: str, created_by: dict[str, str]) -> None:
        """Write checksums, attributes and the seal, and wait until all is on the disk.

        Args:
            spec: What the states are, with mean and std.
            source: Where mean and std come from, "system" or "train".
            created_by: Versions of the software.
        """
        crc32 = self._file.create_dataset("crc32", data=self._crc32, fletcher32=True)
        crc32.attrs["long_name"] = _text("CRC-32 of the trajectory's little-endian bytes")
        crc32.dims[0].attach_scale(self._file["trajectory"])
        least, greatest = self.moments.extremes or (None, None)
        attributes = StoreInfo(
            recipe=self.recipe,
            split=self.split,
            spec=spec,
            standardization_source=source,
            created_by=created_by,
            measured_mean=self.moments.mean,
            measured_std=self.moments.std,
            measured_minimum=least,
            measured_maximum=greatest,
        ).attributes()
        for key, value in attributes.items():
            self._file.attrs[key] = _text(value) if isinstance(value, str) else value
        self._file.attrs["attributes_crc32"] = attributes_crc32(attributes)
        self.close()
        self._target.check()
        seal(self.path)
        sync(self.path)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._target.close()


def _texts(texts: Iterable[str]) -> np.ndarray:
    """Strings in the fixed length that the format asks for."""
    encoded = [text.encode() for text in texts]
    return np.array(encoded, h5py.string_dtype("utf-8", max(1, *map(len, encoded))))


def _text(text: str) -> np.ndarray:
    return _texts([text])[0, ...]
