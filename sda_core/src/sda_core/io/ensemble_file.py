r"""An ensemble on disk that members are written to as they are finished.

Until it is complete, it is a folder beside the place that it will have:

    ===========================  ==================================================================
    ``values.nc``                space for all members, of which the finished ones are there
    ``progress.safetensors``     whose ensemble it is, which members are finished, and, where a
                                 batch was on its way, its states, the noise's, and what the sampler
                                 keeps of earlier steps
    ===========================  ==================================================================

A kill at any moment leaves what can be resumed. ``values.nc`` is laid out once and for all, so
that writing members changes nothing but their own bytes. ``progress.safetensors`` is replaced as a
whole, and not before the members that it says are finished are on the disk. At the end
``values.nc`` is renamed, or converted to Zarr member by member, and the folder is removed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sda_core.config import differences
from sda_core.errors import AssimilationError, CheckpointError, ConfigError, StoppedError
from sda_core.io import xarray as xarray_io
from sda_core.io.files import file_lock, remove_leftovers, sync
from sda_core.io.interrupt import stop_request
from sda_core.method.ensemble import Ensemble, Progress
from sda_core.system import SystemSpec
from sda_core.training import load_checkpoint, save_checkpoint

Format = Literal["netcdf", "zarr"]


class EnsembleFile(Ensemble):
    r"""An ensemble on disk, and how far its sampling has come.

    Args:
        path: Where it will be, a NetCDF file; a Zarr store has the same name but for its end.
        spec: What the states are.
        shape: (M, L, C, \*S).
        identity: All that its values depend on, as JSON can hold it. What was left by a sampling of
            another identity is not resumed.
        file_format: What it will be.
        minutes: After how much time the state of a batch is kept.
        announce: Called with a line of text that says what is done.

    Raises:
        ConfigError: The format needs a package that is not installed.
    """

    def __init__(
        self,
        path: Path,
        spec: SystemSpec,
        shape: Sequence[int],
        identity: Mapping[str, Any],
        *,
        file_format: Format = "netcdf",
        minutes: float = 5.0,
        announce: Callable[[str], None] = lambda line: None,
    ) -> None:
        if file_format == "zarr" and importlib.util.find_spec("zarr") is None:
            raise ConfigError(
                "format = 'zarr' needs the package zarr, which is not installed: "
                "pip install 'sda-core[zarr]', or write format = 'netcdf'"
            )
        super().__init__(shape)
        self.path, self.spec, self.format = path, spec, file_format
        self.identity = json.loads(json.dumps(identity))  # as it will be read
        self.minutes, self.announce = minutes, announce
        self.folder = path.with_suffix(".partial")
        self._saved = time.monotonic()

    @property
    def values(self) -> Tensor:
        r"""The members, (M, L, C, \*S), read from the disk as they are used."""
        if self._values is None:
            self._values = xarray_io.load_array(self._file, "assimilate")
        return self._values

    @property
    def _file(self) -> Path:
        return self.folder / "values.nc"

    @property
    def _progress(self) -> Path:
        return self.folder / "progress.safetensors"

    @contextmanager
    def alone(self) -> Iterator[EnsembleFile]:
        """Be the only process that makes this ensemble.

        Raises:
            AssimilationError: Another one does.
        """
        lock = self.path.with_name(f".{self.path.stem}.lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(lock, "sampling", AssimilationError):
            yield self

    def begin(self) -> Progress | None:
        """Go on with what is there, if it is this ensemble, and make a new one if not."""
        there = self._find()
        if there is None:
            xarray_io.remove(self.folder)
            with self._writing(self._file):
                xarray_io.allocate(self._file, self.path.stem, self.spec, self.shape)
        else:
            remove_leftovers(self.folder)
        self._offset = xarray_io.offset(self._file, self.path.stem)
        return there

    def _find(self) -> Progress | None:
        """How far the sampling has come that was stopped, if it was this one."""
        if not (self._file.is_file() and self._progress.is_file()):
            return None
        try:
            there = load_checkpoint(self._progress)
        except CheckpointError as error:
            self.announce(f"sampling starts anew: {error}")
            return None
        if changed := differences(there.settings, self.identity):
            self.announce(f"sampling starts anew, since this has changed: {', '.join(changed)}")
            return None
        return there.tensors, there.state

    def write(self, numbers: Tensor, x: Tensor) -> None:
        r"""Write members, and wait until they are on the disk.

        Args:
            numbers: Their numbers, (B,).
            x: Their trajectories in physical units, (B, L, C, \*S), in host memory.

        Raises:
            AssimilationError: They cannot be written.
        """
        # Not by a memory map, through which a full disk would kill the process.
        with self._writing(self._file):
            with self._file.open("r+b") as file:
                for number, member in zip(numbers.tolist(), x.numpy(), strict=True):
                    data = np.ascontiguousarray(member, "<f4").data
                    file.seek(self._offset + number * data.nbytes)
                    file.write(data)
            sync(self._file)

    def save(self, progress: Progress) -> None:
        """Keep how far the sampling has come.

        Raises:
            CheckpointError: It cannot be written.
        """
        save_checkpoint(self._progress, *progress, self.identity)
        self._saved = time.monotonic()

    @contextmanager
    def checkpoints(self) -> Iterator[Callable[[Callable[[], Progress]], None]]:
        """Keep the progress of a batch every few minutes and when Ctrl-C or SIGTERM asks to stop.

        Yields:
            What is called after each step, with what says how far the sampling has come. It raises
            StoppedError if a stop was asked for.
        """
        with stop_request() as stopping:

            def after_step(progress: Callable[[], Progress]) -> None:
                stop = stopping()
                if stop or time.monotonic() - self._saved >= 60 * self.minutes:
                    self.save(progress())
                if stop:
                    raise StoppedError(
                        "sampling stopped; the same command resumes there "
                        f"(its members so far are kept in {self.folder})"
                    )

            yield after_step

    def finish(self, x: Tensor) -> None:
        r"""Put the ensemble in its place.

        Args:
            x: Its values: what was written here, or an ensemble from elsewhere.

        Raises:
            AssimilationError: It cannot be written.
        """
        store = self.path.with_suffix(".zarr")
        with self._writing(store if self.format == "zarr" else self.path):
            array = xarray_io.trajectories(x, self.spec).rename(self.path.stem)
            if self.format == "zarr":
                made = self.folder / store.name
                xarray_io.save_zarr(array, made)
                xarray_io.remove(store)
                made.rename(store)
                xarray_io.remove(self.path)
            else:
                if x is self._values:
                    self._file.rename(self.path)
                else:
                    xarray_io.save(array, self.path)
                xarray_io.remove(store)
            with suppress(OSError):  # not all file systems can do this for a directory
                sync(self.path.parent)
            xarray_io.remove(self.folder)

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise AssimilationError(
                f"members cannot be written to {path} ({error}): mend that, and the same command "
                "resumes from what was written"
            ) from error


def checksum(*tensors: Tensor) -> str:
    """SHA-256 of the tensors' bytes."""
    digest = hashlib.sha256()
    for tensor in tensors:
        data = tensor.detach().cpu().flatten().view(torch.uint8)  # numpy lacks some types
        digest.update(data.numpy().data)
    return digest.hexdigest()
