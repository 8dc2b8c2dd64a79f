"""Trajectories in memory, to train on without a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from sda_core.data.standardization import Extremes, Moments, Standardization
from sda_core.errors import DataError, ShapeError
from sda_core.system import SystemSpec


@attrs.frozen(eq=False)
class ArrayStore:
    r"""Trajectories of one split, held in memory; made by :func:`from_arrays`.

    Attributes:
        x: The trajectories in physical units, float32, (N, L, C, \*S).
        spec: What the states are, with mean and std.
        extremes: Least and greatest value of each variable, if known.
    """

    x: Tensor
    spec: SystemSpec
    extremes: Extremes | None = None
    path: str = "the arrays"
    split: str = "train"
    measured: None = None

    @property
    def standardization(self) -> Standardization:
        """The map between physical units and model space."""
        return Standardization.from_spec(self.spec)

    @property
    def shape(self) -> tuple[int, ...]:
        r"""Shape (N, L, C, \*S)."""
        return tuple(self.x.shape)

    def __len__(self) -> int:
        return len(self.x)

    def read(self, index: int | slice, time: slice = slice(None)) -> Tensor:
        """Trajectories, or a part of them in time, as of a :class:`TrajectoryStore`."""
        return self.x[index, time]

    def read_windows(self, rows: Sequence[int], starts: Sequence[int], length: int) -> Tensor:
        """Windows of trajectories, as of a :class:`TrajectoryStore`."""
        windows = [
            self.x[row, start : start + length] for row, start in zip(rows, starts, strict=True)
        ]
        return torch.stack(windows)

    def split_off(self, count: int) -> tuple[ArrayStore, ArrayStore]:
        """All but the last few trajectories, and these."""
        first, last = self.x[: len(self.x) - count], self.x[len(self.x) - count :]
        return attrs.evolve(self, x=first), attrs.evolve(self, x=last, split="valid")


def from_arrays(x: Any, spec: SystemSpec) -> ArrayStore:
    r"""Trajectories of one's own, to train on.

    Args:
        x: Trajectories in physical units, (N, L, C, \*S): a tensor, or what makes one.
        spec: What the states are. Without mean and std it gets those of ``x``.

    Returns:
        What :func:`sda_core.fit` trains on.

    Raises:
        ShapeError: x does not have the shape that the spec says.
        DataError: x has values that are not finite, or a variable that never changes.
    """
    values = torch.as_tensor(x).detach().cpu().float()
    if values.ndim < 3 or tuple(values.shape[2:]) != spec.state_shape or 0 in values.shape:
        raise ShapeError(
            f"trajectories have the shape {tuple(values.shape)}, but must have (N, L, "
            f"{', '.join(map(str, spec.state_shape))}): trajectories, states, the variables "
            f"{list(spec.variable_names)} and the grid"
        )
    bad = (~values.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise DataError(
            f"trajectories have values that are not finite, in {len(bad)} of {len(values)}, the "
            f"first are {bad[:8]}: leave these out, or fill them"
        )
    moments = Moments(len(spec.variables))
    for trajectory in values:
        moments.update(trajectory.numpy())
    if spec.mean is None or spec.std is None:
        spec = attrs.evolve(spec, mean=moments.mean, std=moments.std)
    constant = [n for n, s in zip(spec.variable_names, spec.std or (), strict=True) if not s > 0]
    if constant:
        raise DataError(f"the variables {constant} never change: leave them out")
    return ArrayStore(values, spec, moments.extremes)
