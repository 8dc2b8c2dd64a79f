"""Observe the places where a mask is true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sda_core.config import component, option
from sda_core.errors import ConfigError
from sda_core.observation.base import Observation, Operator
from sda_core.system import SystemSpec


@component
class Mask(Observation):
    r"""Entries of each state where a mask is true: (..., L, C, \*S) -> (..., L, n).

    The mask is a boolean array of shape (C, \*S), or (\*S) to observe all variables at the same
    places, given as nested lists or as the path of a ``.npy`` file.
    """

    mask: list | Path = option(help="the mask: nested lists of booleans, or a .npy file")  # type: ignore[type-arg]

    def _index(self, spec: SystemSpec) -> Tensor:
        """Indices of the marked entries of a flattened state."""
        if isinstance(self.mask, Path) and not self.mask.is_file():
            raise ConfigError(f"observation.mask: there is no file {self.mask}")
        try:
            if isinstance(self.mask, Path):
                array = np.asarray(np.load(self.mask, allow_pickle=False))
            else:
                array = np.asarray(self.mask)
        except (OSError, EOFError, ValueError) as error:
            given = self.mask if isinstance(self.mask, Path) else "the nested list"
            raise ConfigError(
                f"observation.mask: {given} is no array ({error}): give lists of one length, or a "
                ".npy file"
            ) from error
        allowed = {spec.state_shape, spec.grid_shape} - {()}
        if array.dtype != bool or array.shape not in allowed:
            shapes = " or ".join(map(str, sorted(allowed, key=len, reverse=True)))
            raise ConfigError(
                f"observation.mask has shape {array.shape} and type {array.dtype}, but must be a "
                f"boolean array of shape {shapes}"
            )
        if not array.any():
            raise ConfigError("observation.mask is false everywhere: nothing would be observed")
        return torch.from_numpy(np.broadcast_to(array, spec.state_shape).flatten().nonzero()[0])

    def operator(self, spec: SystemSpec) -> Operator:
        """Picks the entries, in row-major order."""
        index = self._index(spec)
        dims = len(spec.state_shape)

        def A(x: Tensor) -> Tensor:
            return x.flatten(-dims).index_select(-1, index.to(x.device))

        return A

    def output(self, spec: SystemSpec) -> SystemSpec:
        """One variable per entry, without a grid."""
        entries = tuple(f"entry_{i}" for i in self._index(spec).tolist())
        return SystemSpec(variables=entries, time_step=spec.time_step, time_units=spec.time_units)
