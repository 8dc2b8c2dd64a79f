"""Reading the trajectories in one file of a data set."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import torch
from torch import Tensor

from sda_core.data.base import Problem, StoreInfo, StoreProblemError
from sda_core.data.hdf5 import DAMAGE, REGENERATE, open_file, read_info
from sda_core.data.standardization import Extremes, Standardization
from sda_core.errors import DataError
from sda_core.system import SystemSpec


class TrajectoryStore:
    r"""The trajectories of one split, in physical units, read from the file when asked for.

    May be pickled, and used in forked processes: each process opens the file for itself, because
    HDF5's handles do not work across processes.

    Args:
        path: The file, such as ``data/train.h5``.

    Attributes:
        path: The file.
        info: What the file says about itself.

    Raises:
        DataError: The file is missing, cut short, not a store, damaged, or of another schema
            version; says which, and what to do.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: h5py.File | None = None
        self._process = -1
        with open_file(self.path) as file:
            self.info: StoreInfo = read_info(file, self.path)

    @property
    def spec(self) -> SystemSpec:
        """What the states are, with mean and std."""
        return self.info.spec

    @property
    def standardization(self) -> Standardization:
        """The map between physical units and model space."""
        return Standardization.from_spec(self.spec)

    @property
    def split(self) -> str:
        """The split that is in the file."""
        return self.info.split

    @property
    def measured(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and std of each variable over the states in the file, if it states them."""
        info = self.info
        mean, std = info.measured_mean, info.measured_std
        if info.split == info.standardization_source:  # all there is in an older file
            mean, std = info.spec.mean, info.spec.std
        return None if mean is None or std is None else (mean, std)

    @property
    def extremes(self) -> Extremes | None:
        """Least and greatest value of each variable in the file, if it states them."""
        least, greatest = self.info.measured_minimum, self.info.measured_maximum
        return None if least is None or greatest is None else (least, greatest)

    @property
    def shape(self) -> tuple[int, ...]:
        r"""Shape (N, L, C, \*S)."""
        return self.info.shape

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, index: int | slice, time: slice = slice(None)) -> Tensor:
        r"""Read trajectories, or a part of them in time.

        Args:
            index: Row of one trajectory, or a slice of rows (step 1 or more).
            time: Slice of time steps (step 1 or more).

        Returns:
            States in physical units, float32, (L, C, \*S) for a row and (n, L, C, \*S) for a slice.

        Raises:
            DataError: There is no such row, or the file is damaged there.
        """
        if isinstance(index, int) and not -len(self) <= index < len(self):
            raise DataError(
                f"trajectory {index} was asked for, but {self.path} has {len(self)}: give a row "
                f"from 0 to {len(self) - 1}"
            )
        with self._reading(f"trajectories {index}"):
            return torch.from_numpy(self._x()[index, time])

    def read_windows(self, rows: Sequence[int], starts: Sequence[int], length: int) -> Tensor:
        r"""Read windows of B trajectories.

        Args:
            rows: Rows of the trajectories, B of them.
            starts: First time step of each window.
            length: Number W of states in a window.

        Returns:
            Windows in physical units, float32, (B, W, C, \*S).

        Raises:
            DataError: The file is damaged there.
        """
        out = torch.empty(len(rows), length, *self.spec.state_shape)
        target, x = out.numpy(), self._x()
        # In the file's order, so that windows of one chunk find it in HDF5's cache.
        for i in sorted(range(len(rows)), key=lambda i: (rows[i], starts[i])):
            with self._reading(f"trajectory {rows[i]}"):
                window = slice(starts[i], starts[i] + length)
                x.read_direct(target, (rows[i], window), i)
        return out

    def _x(self) -> h5py.Dataset:
        if self._file is None or self._process != os.getpid():
            self._file, self._process = open_file(self.path), os.getpid()
        return self._file["x"]

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        try:
            yield
        except DAMAGE as error:
            raise StoreProblemError(
                Problem(
                    str(self.path),
                    f"{what} cannot be read ({error})",
                    f"run 'sda data verify' to see what is damaged, then {REGENERATE}",
                )
            ) from error

    def close(self) -> None:
        """Close the file; reading opens it again."""
        if self._file is not None and self._process == os.getpid():
            self._file.close()
        self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}

    def __repr__(self) -> str:
        return f"TrajectoryStore({str(self.path)!r}, shape={self.shape})"
