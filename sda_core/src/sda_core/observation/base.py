r"""Observations: y = A(x) + noise.

A is applied to trajectories in **physical units** and, unless it mixes times, leaves the leading
axis of what it returns a time axis: (..., L, C, \*S) -> (..., T, \*rest). The noise is Gaussian and
independent, with the standard deviation ``std`` (one number, or an array that broadcasts against
A(x)) in the units of A(x), or whatever :mod:`sda_core.noise` has.

Notation
    ===========  ===================================================================
    x            trajectory, (..., L, C, \*S), physical units
    A(x)         what would be observed without noise, (..., \*obs)
    y            the observation, (\*obs)
    std          noise standard deviation, or typical size, broadcastable against y
    ===========  ===================================================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import attrs
import torch
from torch import Generator, Tensor

from sda_core.config import component, option
from sda_core.errors import AssimilationError, ConfigError, SDAError, ShapeError
from sda_core.noise import GaussianNoise, Noise, NoiseModel, per_entry
from sda_core.system import SystemSpec

Operator = Callable[[Tensor], Tensor]


_CORRELATED = (
    "errors of these observations are correlated between times, so that observations cannot be "
    "given to a filter one time at a time. Use a method that smooths, such as 'sda', or errors "
    "that are correlated within each time only (observation.noise.axis)"
)


@component
class Observation(ABC):
    """An observation operator with its errors: ``std`` if independent and Gaussian, or ``noise``.

    Exactly one of the two is needed where observations are made.
    """

    sda_kind: ClassVar[str] = "observation"

    std: float | tuple[float, ...] | None = option(
        default=None,
        help="noise standard deviation in the units of what is observed: one number, or one per "
        "variable of a field, else per entry of the operator's last dimension",
    )
    noise: Noise | None = option(
        default=None, help="the error model, where errors are not independent and Gaussian"
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
            ConfigError: ``std`` and ``noise`` are both missing, or both there, or do not fit A(x);
                A fails, is not differentiable, or gives no time axis where it was said to.
        """
        A = BoundOperator(self, spec)
        shape = self._try_operator(A, torch.zeros(length, *spec.state_shape, dtype=torch.float64))
        noise = self._bind_noise(shape)
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
        return ObservationModel(operator=A, noise=noise, shape=shape, times=times, length=length)

    def _try_operator(self, A: Operator, x: Tensor) -> torch.Size:
        """The shape of A(x); refuses an operator that is no differentiable function of x."""
        what = f"the observation operator {getattr(self, 'target', type(self).__name__)}"
        with torch.enable_grad():
            try:
                values = A(x.requires_grad_())
            except (SDAError, KeyboardInterrupt):
                raise
            except BaseException as error:
                raise ConfigError(
                    f"{what} fails on a trajectory of shape {tuple(x.shape)}: "
                    f"{type(error).__name__}: {error}. It must be a function of one tensor"
                ) from error
        if not isinstance(values, Tensor) or not values.is_floating_point():
            given = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise ConfigError(
                f"{what} gives {given}, but must give a tensor of floating-point numbers"
            )
        if not values.requires_grad:
            raise ConfigError(
                f"{what} is not differentiable: no gradient leads from what it gives to the "
                "trajectory, which guidance needs. Write it with torch, and without detach()"
            )
        return values.shape

    def _bind_noise(self, shape: torch.Size) -> NoiseModel:
        if self.noise is not None:
            if self.std is not None:
                raise ConfigError(
                    f"observation.std = {self.std} is given besides observation.noise: std is "
                    "short for independent Gaussian errors, so give one of the two (--set "
                    "observation.std=none takes it out)"
                )
            return self.noise.bind(shape)
        if self.std is None:
            raise ConfigError(
                "observation.std is missing: give the standard deviation of the observation noise, "
                "in the units of what is observed, or another error model as observation.noise"
            )
        return GaussianNoise(scale=per_entry(self.std, shape, "observation.std"))


class BoundOperator:
    """The operator of an observation for a system; pickled as the two that it is made of."""

    def __init__(self, observation: Observation, spec: SystemSpec) -> None:
        self.observation, self.spec = observation, spec
        self._operator = observation.operator(spec)

    def __call__(self, x: Tensor) -> Tensor:
        """A(x)."""
        return self._operator(x)

    def __reduce__(self) -> tuple[type[BoundOperator], tuple[Observation, SystemSpec]]:
        return BoundOperator, (self.observation, self.spec)


@attrs.frozen(kw_only=True, eq=False)
class ObservationModel:
    r"""The density p(y | x) for trajectories x of length L.

    Attributes:
        operator: A, (..., L, C, \*S) -> (..., \*obs).
        noise: The error model p(y | A(x)) of flattened observations.
        shape: (\*obs).
        times: Time index of each entry, (\*obs), or None where entries depend on several times.
        length: L.
    """

    operator: Operator
    noise: NoiseModel
    shape: torch.Size
    times: Tensor | None
    length: int

    @property
    def std(self) -> Tensor:
        r"""Typical size of the errors, (\*obs), float64."""
        return self.noise.std.reshape(self.shape)

    def std_at(self, mean: Tensor) -> Tensor:
        r"""Typical size of the errors where A(x) = ``mean``, (\*obs)."""
        return self.noise.std_at(mean.flatten()).reshape(self.shape)

    def sample(self, x: Tensor, generator: Generator) -> Tensor:
        r"""Draw y given a trajectory x of shape (L, C, \*S); float64."""
        mean = self._flat(self.operator(x.double()))
        return self.noise.sample(mean, generator).reshape((*mean.shape[:-1], *self.shape))

    def log_prob(self, y: Tensor, x: Tensor) -> Tensor:
        r"""log p(y | x): (\*obs), (B..., L, C, \*S) -> (B...)."""
        return self.noise.log_prob(y.flatten(), self._mean(y, x))

    def misfit(self, y: Tensor, x: Tensor) -> Tensor:
        r"""Squares of y - A(x) in units of the error: (\*obs), (B..., L, C, \*S) -> (B..., n).

        Correlated errors are whitened; each square is 1 on average for the x that y is drawn from,
        whatever the noise (see :mod:`sda_core.noise.base`).
        """
        mean, y = self._mean(y, x), y.flatten()
        return self.noise.whiten(y.to(mean) - mean) ** 2 / self.noise.variance(y, mean)

    def select(self, entries: Tensor) -> ObservationModel:
        r"""The observations of some entries alone, flattened.

        Args:
            entries: Which, boolean, (\*obs).
        """
        entries = entries.flatten()
        index = entries.nonzero().flatten()
        return ObservationModel(
            operator=lambda x: self._flat(self.operator(x)).index_select(-1, index.to(x.device)),
            noise=self.noise.select(entries),
            shape=index.shape,
            times=None if self.times is None else self.times.flatten()[entries],
            length=self.length,
        )

    def log_prob_at(self, i: int, y: Tensor, x_i: Tensor) -> Tensor | None:
        r"""log-density of the observations at time i given the state x_i.

        Args:
            i: Time index.
            y: All observations, (\*obs).
            x_i: States, (B, C, \*S).

        Returns:
            (B,), or None where nothing is observed at time i.

        Raises:
            AssimilationError: The operator mixes times, or errors at different times are
                correlated.
        """
        if self.times is None:
            raise AssimilationError(
                "this observation operator mixes times, so that observations cannot be given to a "
                "filter one time at a time. Use an operator that acts on each state alone (for a "
                "user function: statewise = true), or a method that smooths, such as 'sda'"
            )
        if self.noise.correlates(self.times.flatten()):
            raise AssimilationError(_CORRELATED)
        entries = (self.times == i).flatten()
        if not entries.any():
            return None
        mean = self._mean_at(entries, y, x_i)
        return self.noise.select(entries).log_prob(y.flatten()[entries], mean)

    def _mean_at(self, entries: Tensor, y: Tensor, x_i: Tensor) -> Tensor:
        r"""The entries of one time of A(x), (B, n), given the state at that time, (B, C, \*S)."""

        def of_all(x_i: Tensor) -> Tensor:
            # Such entries depend on x_i alone, so the other times may hold anything.
            x = x_i[:, None].expand(-1, self.length, *x_i.shape[1:])
            return self._mean(y, x)[:, entries.to(x.device)]

        # Most operators give the same for a trajectory of this state alone, at a fraction of the
        # price; one that goes by the number of the time does not, and is found out by two states.
        noise = torch.randn(x_i[:2].shape, generator=torch.Generator().manual_seed(0))
        few = x_i[:2] + noise.to(x_i)
        try:
            alone = self.operator(few[:, None]).reshape(len(few), -1)
        except Exception:  # noqa: BLE001 - it is made for trajectories of another length
            return of_all(x_i)
        expected = of_all(few)
        if alone.shape != expected.shape or not torch.allclose(alone, expected, equal_nan=True):
            return of_all(x_i)
        return self.operator(x_i[:, None]).reshape(len(x_i), -1)

    def last_times(self, state_shape: Sequence[int]) -> Tensor:
        r"""The last time that each entry of A(x) depends on, (n,), of states (C, \*S).

        Where an operator mixes times, this is found by changing one state after another.
        """
        if self.times is not None:
            return self.times.flatten()
        generator = torch.Generator().manual_seed(0)
        shape = (self.length, *state_shape)
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        change = torch.randn(shape, generator=generator, dtype=torch.float64)
        base = self._flat(self.operator(x))
        last = torch.zeros(base.shape, dtype=torch.long)
        for i in range(self.length):
            changed = x.clone()
            changed[i] += change[i]
            last[self._flat(self.operator(changed)) != base] = i
        return last

    def log_prob_between(
        self, first: int, stop: int, y: Tensor, x: Tensor, last: Tensor
    ) -> Tensor | None:
        r"""log-density of the observations whose last time is in [first, stop).

        Args:
            first: Time index.
            stop: Time index, after ``first``.
            y: All observations, (\*obs).
            x: The states up to ``stop``, (B, stop, C, \*S).
            last: The entries' last times, as of :meth:`last_times`.

        Returns:
            (B,), or None where there are no such observations.

        Raises:
            AssimilationError: Errors at different times are correlated.
        """
        if self.noise.correlates(last):
            raise AssimilationError(_CORRELATED)
        entries = (last >= first) & (last < stop)
        if not entries.any():
            return None
        # Such entries depend on no later state.
        later = x[:, -1:].expand(-1, self.length - stop, *x.shape[2:])
        mean = self._mean(y, torch.cat((x, later), dim=1))[:, entries.to(x.device)]
        return self.noise.select(entries).log_prob(y.flatten()[entries], mean)

    def _mean(self, y: Tensor, x: Tensor) -> Tensor:
        """A(x), flattened to (B..., n)."""
        mean = self.operator(x)
        if mean.shape[mean.ndim - y.ndim :] != y.shape:
            raise ShapeError(
                f"observations have the shape {tuple(y.shape)}, but the operator gives "
                f"{tuple(mean.shape[mean.ndim - y.ndim :])} for trajectories of {self.length} "
                "states"
            )
        return self._flat(mean)

    def _flat(self, values: Tensor) -> Tensor:
        r"""(..., \*obs) -> (..., n)."""
        return values.reshape(*values.shape[: values.ndim - len(self.shape)], -1)
