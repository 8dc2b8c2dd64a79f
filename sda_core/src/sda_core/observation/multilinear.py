"""Linear interpolation along each of several axes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sda_core.errors import ConfigError
from sda_core.system import Axis

#: What is closer than this to a point of the grid, in grid cells, is taken to lie on it, so that
#: coordinates and times may have been rounded.
SNAP = 1e-4


def fractional_index(axis: Axis, coordinates: np.ndarray) -> np.ndarray:
    """Where coordinates lie on an axis, as indices with a fraction.

    Args:
        axis: The axis; its points rise or fall, at any distances. Beyond the last point of a
            periodic axis comes the first one.
        coordinates: Coordinates, (n,).

    Returns:
        Indices, (n,); NaN where a coordinate is outside of the axis. Those between the last point
        of a periodic axis and its first are up to 1 behind the last, or before 0 where it falls.

    Raises:
        ConfigError: The axis' points neither rise nor fall.
    """
    nodes, count = axis.values.astype(np.float64), len(axis.values)
    falls = nodes[0] > nodes[-1]
    nodes = nodes[::-1] if falls else nodes
    gaps = np.diff(nodes)
    if not (gaps > 0).all():
        raise ConfigError(
            f"nothing can be interpolated along axis {axis.name!r}: its points must rise or fall, "
            f"but are {axis.values.tolist()}"
        )
    x = np.asarray(coordinates, np.float64)
    if axis.period is not None:
        nodes = np.append(nodes, nodes[0] + axis.period)
        x = nodes[0] + (x - nodes[0]) % axis.period
    index = np.interp(x, nodes, np.arange(len(nodes)))
    nearest = index.round()
    index = np.where(np.abs(index - nearest) < SNAP, nearest, index)
    slack = SNAP * gaps.min() if count > 1 else 0.0
    inside = (x >= nodes[0] - slack) & (x <= nodes[-1] + slack)
    return np.where(inside, count - 1 - index if falls else index, np.nan)


def indices_inside(axis: Axis, coordinates: np.ndarray, key: str) -> np.ndarray:
    """As :func:`fractional_index`, but refuse coordinates outside.

    Raises:
        ConfigError: A coordinate is outside of the axis, or it has points that nothing can be
            interpolated between.
    """
    index = fractional_index(axis, coordinates)
    if np.isnan(index).any():
        number = int(np.isnan(index).argmax())
        raise ConfigError(
            f"{key}[{number}]: {axis.name} = {coordinates[number]:g} is outside of the grid, which "
            f"goes from {axis.values.min():g} to {axis.values.max():g}. (For a periodic axis, give "
            "its period in the system's spec.)"
        )
    return index


class Interpolation:
    r"""Multilinear interpolation of n values: sum_k w_ik x_j(i,k), one sparse gather.

    Args:
        indices: Where the values lie on each of d axes, as indices with a fraction, (n, d).
        shape: Number of points on each axis; behind the last point comes the first.
    """

    def __init__(self, indices: np.ndarray, shape: tuple[int, ...]) -> None:
        flat = np.zeros((len(indices), 1), np.int64)
        weight = np.ones((len(indices), 1))
        for axis, size in enumerate(shape):
            lower = np.floor(indices[:, axis])
            part = indices[:, axis] - lower
            ends = np.stack([lower, lower + 1], 1).astype(np.int64) % size
            flat = (flat[:, :, None] * size + ends[:, None]).reshape(len(flat), -1)
            weight = weight[:, :, None] * np.stack([1 - part, part], 1)[:, None]
            weight = weight.reshape(len(flat), -1)
            used = weight.any(0)  # no neighbours are read along axes where all are on points
            flat, weight = flat[:, used], weight[:, used]
        self._index, self._weight = torch.from_numpy(flat), torch.from_numpy(weight)

    def __call__(self, x: Tensor) -> Tensor:
        """Interpolate flattened values, (..., N) -> (..., n)."""
        ends = x.index_select(-1, self._index.flatten().to(x.device))
        return (ends.unflatten(-1, self._index.shape) * self._weight.to(x)).sum(-1)
