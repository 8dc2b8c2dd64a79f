r"""Observations: y = A(x) + noise.

A is applied to trajectories in **physical units** and, unless it mixes times, leaves the leading
axis of what it returns a time axis: (..., L, C, \*S) -> (..., T, \*rest). The noise is Gaussian and
independent, with the standard deviation ``std`` (one number, or an array that broadcasts against
A(x)) in the units of A(x).

Notation
    ===========  ===================================================================
    x            trajectory, (..., L, C, \*S), physical units
    A(x)         what would be observed without noise, (..., \*obs)
    y            the observation, (\*obs)
    std          noise standard deviation, broadcastable against y
    ===========  ===================================================================
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import attrs
import torch
from torch import Generator, Tensor

from sda_core.config import component, option
from sda_core.errors import AssimilationError, ConfigError, ShapeError
from sda_core.system.base import SystemSpec

Operator = Callable[[Tensor], Tensor]


@component
class Observation(ABC):
    """An observation operator with its Gaussian noise."""

    sda_kind: ClassVar[str] = "observation"

    std: float | tuple[float, ...] | None = option(
        default=None,
        help="noise standard deviation in the units of what is observed: one number, or one per "
        "entry of the operator's last dimension",
    )

    @abstractmethod
    def operator(self, spec: SystemSpec) -> Operator:
        r"""The operator A for trajectories of a system.

        Args:
            spec: What the states are.

        Returns:
            A differentiable function (..., L, C, \*S) -> (..., \*obs).

        Raises:
            ConfigError: The observation does not fit the system.
        """

    def times(self, times: Tensor) -> Tensor | None:
        """Which time each entry of A(x)'s leading axis belongs to.

        Args:
            times: Time indices of the trajectory that A is given, (L,).

        Returns:
            Time indices, (T,), or None where an entry depends on several times.
        """
        return times

    def output(self, spec: SystemSpec) -> SystemSpec:
        """What the operator's outputs are, as far as a further operator may want to know."""
        return spec

    def bind(self, spec: SystemSpec, length: int) -> ObservationModel:
        r"""Make the observation model p(y | x) for trajectories of a given length.

        Raises:
            ConfigError: ``std`` is missing, not positive, or does not fit A(x), or A(x) has no time
                axis where it was said to keep it.
        """
        A = self.operator(spec)
        shape = A(torch.zeros(length, *spec.state_shape, dtype=torch.float64)).shape
        if self.std is None:
            raise ConfigError(
                "observation.std is missing: give the standard deviation of the observation noise, "
                "in the units of what is observed"
            )
        std = torch.as_tensor(self.std, dtype=torch.float64)
        if not bool((std > 0).all()):
            raise ConfigError(f"observation.std = {self.std} must be positive")
        try:
            std = std.expand(shape)
        except RuntimeError as error:
            raise ConfigError(
                f"observation.std has {std.numel()} entries, but observations have the shape "
                f"{tuple(shape)}: give one number, or {shape[-1] if shape else 1} of them"
            ) from error
        axis = self.times(torch.arange(length))
        times = None
        if axis is not None:
            if shape[:1] != axis.shape:
                raise ConfigError(
                    f"this observation operator should keep the time axis, with {len(axis)} times, "
                    f"but gives the shape {tuple(shape)} for a trajectory of {length} states. If "
                    "it mixes times, say so (for a user function: statewise = false)"
                )
            times = axis.reshape(-1, *(1,) * (len(shape) - 1)).expand(shape)
        return ObservationModel(operator=A, std=std, times=times, length=length)


@attrs.frozen(kw_only=True, eq=False)
class ObservationModel:
    r"""The density p(y | x) = N(y; A(x), std^2) for trajectories x of length L.

    Attributes:
        operator: A, (..., L, C, \*S) -> (..., \*obs).
        std: Noise standard deviation, (\*obs), float64.
        times: Time index of each entry, (\*obs), or None where entries depend on several times.
        length: L.
    """

    operator: Operator
    std: Tensor
    times: Tensor | None
    length: int

    @property
    def shape(self) -> torch.Size:
        r"""Shape (\*obs) of y."""
        return self.std.shape

    def sample(self, x: Tensor, generator: Generator) -> Tensor:
        r"""Draw y given a trajectory x of shape (L, C, \*S); float64."""
        y = self.operator(x.double())
        return y + self.std * torch.randn(y.shape, generator=generator, dtype=y.dtype)

    def log_prob(self, y: Tensor, x: Tensor) -> Tensor:
        r"""log p(y | x): (\*obs), (B..., L, C, \*S) -> (B...)."""
        mean = self._mean(y, x)
        return _log_normal(y.flatten(), mean, self.std.flatten()).sum(-1)

    def log_prob_at(self, i: int, y: Tensor, x_i: Tensor) -> Tensor | None:
        r"""log-density of the observations at time i given the state x_i.

        Args:
            i: Time index.
            y: All observations, (\*obs).
            x_i: States, (B, C, \*S).

        Returns:
            (B,), or None where nothing is observed at time i.

        Raises:
            AssimilationError: The operator mixes times.
        """
        if self.times is None:
            raise AssimilationError(
                "this observation operator mixes times, so that observations cannot be given to a "
                "filter one time at a time. Use an operator that acts on each state alone (for a "
                "user function: statewise = true), or a method that smooths, such as 'sda'"
            )
        entries = (self.times == i).flatten()
        if not entries.any():
            return None
        # Entries at time i depend on x_i alone, so the other times may hold anything.
        x = x_i[:, None].expand(-1, self.length, *x_i.shape[1:])
        mean = self._mean(y, x)[:, entries.to(x.device)]
        return _log_normal(y.flatten()[entries], mean, self.std.flatten()[entries]).sum(-1)

    def _mean(self, y: Tensor, x: Tensor) -> Tensor:
        """A(x), flattened to (B..., n)."""
        mean = self.operator(x)
        if mean.shape[mean.ndim - y.ndim :] != y.shape:
            raise ShapeError(
                f"observations have the shape {tuple(y.shape)}, but the operator gives "
                f"{tuple(mean.shape[mean.ndim - y.ndim :])} for trajectories of {self.length} "
                "states"
            )
        return mean.reshape(*mean.shape[: mean.ndim - y.ndim], -1)


def _log_normal(y: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    std = std.to(mean)
    z = (y.to(mean) - mean) / std
    return -0.5 * z**2 - std.log() - 0.5 * math.log(2 * math.pi)
