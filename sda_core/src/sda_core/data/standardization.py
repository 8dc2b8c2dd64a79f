"""The map between physical units and model space, and the statistics it takes."""

from __future__ import annotations

from typing import Self

import attrs
import numpy as np
import torch
from torch import Tensor

from sda_core.errors import ConfigError, ShapeError
from sda_core.system import SystemSpec


def _vector(value: object) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).detach().cpu()


#: Least and greatest value of each variable.
Extremes = tuple[tuple[float, ...], tuple[float, ...]]
#: Standard deviations from the mean beyond which a state is absurd, where no range is known.
LIMIT = 10.0


#: Standard deviations from the mean beyond which a state is absurd, where no range is known.
LIMIT = 10.0


@attrs.frozen(eq=False)
class Standardization:
    r"""z = (x - mean) / std for each variable; training and inference both use this one.

    Attributes:
        mean: Mean of each variable in physical units, (C,).
        std: Standard deviation of each variable, likewise; positive.
        grid_rank: Number of grid axes after the variables.
        extremes: Least and greatest value of each variable in the training data, if known.

    Raises:
        ConfigError: mean and std differ in length, or a std is not a positive number.
    """

    mean: Tensor = attrs.field(converter=_vector)
    std: Tensor = attrs.field(converter=_vector)
    grid_rank: int = 0
    extremes: Extremes | None = None

    def __attrs_post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            raise ConfigError(
                f"mean and std have the shapes {tuple(self.mean.shape)} and "
                f"{tuple(self.std.shape)}: give each as (C,), one entry per variable"
            )
        if not (self.mean.isfinite().all() and self.std.isfinite().all() and (self.std > 0).all()):
            raise ConfigError(
                f"mean must be finite and std positive, got mean = {self.mean.tolist()} and "
                f"std = {self.std.tolist()}"
            )

    @classmethod
    def from_spec(cls, spec: SystemSpec) -> Self:
        """The standardization of a spec.

        Raises:
            ConfigError: The spec has no mean and std (only the spec of a data store always has).
        """
        if spec.mean is None or spec.std is None:
            raise ConfigError(
                f"the spec of the variables {list(spec.variable_names)} has no mean and std: use "
                "the spec of a data store, which takes them from the training data"
            )
        return cls(spec.mean, spec.std, len(spec.axes))

    def limits(self) -> tuple[Tensor, Tensor]:
        r"""The values beyond which a state is absurd: the lower and the upper ones, (C, 1...).

        The range of the training data, extended on both sides by its width; where it is not known,
        :data:`LIMIT` standard deviations about the mean.
        """
        if self.extremes is None:
            lower, upper = self.mean - LIMIT * self.std, self.mean + LIMIT * self.std
        else:
            least, most = map(torch.tensor, self.extremes)
            lower, upper = 2 * least - most, 2 * most - least
        shape = (-1, *(1,) * self.grid_rank)
        return lower.reshape(shape), upper.reshape(shape)

    def _like(self, value: Tensor, x: Tensor) -> Tensor:
        C, rank = len(value), self.grid_rank
        if x.ndim <= rank or x.shape[-rank - 1] != C:
            raise ShapeError(
                f"expected states of shape (..., {C}) followed by {rank} grid axes, got "
                f"{tuple(x.shape)}"
            )
        return value.to(x).reshape(C, *(1,) * rank)

    def to_model(self, x: Tensor) -> Tensor:
        r"""Physical units to model space.

        Args:
            x: States of shape (..., C, \*S).

        Returns:
            Standardized states, of the same shape, dtype and device.

        Raises:
            ShapeError: x does not have C variables before its grid axes.
        """
        return (x - self._like(self.mean, x)) / self._like(self.std, x)

    def to_physical(self, z: Tensor) -> Tensor:
        r"""Model space to physical units; the inverse of :meth:`to_model`."""
        return z * self._like(self.std, z) + self._like(self.mean, z)


class Moments:
    """Mean, variance and range per variable, one trajectory after another, in float64.

    Groups are merged by the formula of Chan, Golub and LeVeque, "Updating formulae and a pairwise
    algorithm for computing sample variances" (1979), which does not cancel.
    """

    def __init__(self, variables: int) -> None:
        self._count = 0
        self._mean = np.zeros(variables)
        self._m2 = np.zeros(variables)
        self._minimum = np.full(variables, np.inf)
        self._maximum = np.full(variables, -np.inf)

    def update(self, x: np.ndarray) -> None:
        r"""Take in a trajectory of shape (L, C, \*S)."""
        flat = np.moveaxis(x, 1, 0).reshape(x.shape[1], -1).astype(np.float64)
        mean = flat.mean(1)
        m2 = np.square(flat - mean[:, None]).sum(1)
        count, total = flat.shape[1], self._count + flat.shape[1]
        delta = mean - self._mean
        self._mean += delta * count / total
        self._m2 += m2 + delta**2 * self._count * count / total
        self._count = total
        self._minimum = np.minimum(self._minimum, flat.min(1))
        self._maximum = np.maximum(self._maximum, flat.max(1))

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each variable."""
        return tuple(self._mean.tolist())

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each variable (of the population)."""
        return tuple(np.sqrt(self._m2 / max(self._count, 1)).tolist())

    @property
    def extremes(self) -> Extremes | None:
        """Least and greatest value of each variable; None before the first trajectory."""
        if not self._count:
            return None
        return tuple(self._minimum.tolist()), tuple(self._maximum.tolist())
