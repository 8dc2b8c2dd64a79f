"""Observe linear combinations."""

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
class Linear(Observation):
    r"""A matrix H times each flattened state: (..., L, C, \*S) -> (..., L, n).

    H has the shape (n, C \* prod(S)), given as nested lists or as the path of a ``.npy`` file. With
    ``trajectory`` it acts on the flattened trajectory instead, with the shape (n, L \* C \*
    prod(S)), and the observation is (..., n).
    """

    matrix: list | Path = option(help="the matrix: nested lists, or a .npy file")  # type: ignore[type-arg]
    trajectory: bool = option(
        default=False, help="act on whole trajectories instead of on each state"
    )

    def _matrix(self) -> Tensor:
        if isinstance(self.matrix, Path) and not self.matrix.is_file():
            raise ConfigError(f"observation.matrix: there is no file {self.matrix}")
        try:
            if isinstance(self.matrix, Path):
                array = np.load(self.matrix, allow_pickle=False).astype(np.float64)
            else:
                array = np.asarray(self.matrix, dtype=np.float64)
        except (OSError, EOFError, ValueError, TypeError, AttributeError) as error:
            given = self.matrix if isinstance(self.matrix, Path) else "the nested list"
            raise ConfigError(
                f"observation.matrix: {given} is no matrix of numbers ({error}): give lists of one "
                "length, or a .npy file"
            ) from error
        if array.ndim != 2 or not np.isfinite(array).all():
            raise ConfigError(
                f"observation.matrix has the shape {array.shape}, but must be (n, m), with finite "
                "numbers"
            )
        return torch.as_tensor(array, dtype=torch.float64)

    def operator(self, spec: SystemSpec) -> Operator:
        """Multiplies by the matrix."""
        H = self._matrix()
        dims = len(spec.state_shape) + self.trajectory

        def A(x: Tensor) -> Tensor:
            x = x.flatten(-dims)
            if H.shape[1] != x.shape[-1]:
                raise ConfigError(
                    f"observation.matrix has the shape {tuple(H.shape)}, but must be "
                    f"(n, {x.shape[-1]}): one column per entry of a flattened "
                    f"{'trajectory' if self.trajectory else 'state'}"
                )
            return x @ H.to(x).T

        return A

    def times(self, times: Tensor) -> Tensor | None:
        """Each row's time; None for a matrix on whole trajectories."""
        return None if self.trajectory else times

    def output(self, spec: SystemSpec) -> SystemSpec:
        """One variable per row, without a grid."""
        rows = tuple(f"row_{i}" for i in range(len(self._matrix())))
        return SystemSpec(variables=rows, time_step=spec.time_step, time_units=spec.time_units)
