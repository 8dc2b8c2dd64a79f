r"""Dynamical systems as Markov chains.

Notation
    ============  ==============================================================
    x_i           state at output step i, shape (C, \*S): variables, then grid
    p(x_0)        prior (initial distribution)
    p(x_i|x_i-1)  transition over one output time step dt
    L             trajectory length, in output steps
    ============  ==============================================================

A system states what it is through a :class:`SystemSpec` and how it moves through ``prior`` and
``transition``. What only some systems can do is a protocol of its own, asked for with
``isinstance``: :class:`HasLogProb` (exact transition density), :class:`HasRightHandSide` (an
ODE's dx/dt), :class:`HasTrajectory` (a fast whole-trajectory path), :class:`HasContext` (static
fields for kernels), :class:`LinearGaussian`.

Trajectory number i of a data set is row ``i % block_size`` of block ``i // block_size``, and each
block is simulated whole from a generator seeded by (seed, block). So a trajectory depends on
(seed, i) alone: not on how many are made, nor on the number of workers. A trajectory that leaves
the range of finite numbers is replaced by the same row of the block simulated anew, from a
generator seeded by (seed, block, attempt).
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Protocol, runtime_checkable

import attrs
import numpy as np
import torch
from torch import Generator, Tensor

from sda_core.errors import ConfigError, SimulationError, SimulationWarning
from sda_core.random import seeded_generator

#: How often a trajectory that leaves the range of finite numbers is drawn again.
MAX_REDRAWS = 3


@attrs.frozen
class Variable:
    """A physical variable: its name, unit ("1" for none) and, optionally, a longer name."""

    name: str
    units: str = "1"
    long_name: str = ""

    @classmethod
    def parse(cls, text: str | Variable) -> Variable:
        """Read ``"u [m/s]"`` or ``"u"``."""
        if isinstance(text, Variable):
            return text
        name, _, rest = text.partition("[")
        return cls(name.strip(), rest.rstrip("] ").strip() or "1")


@attrs.frozen(eq=False)
class Axis:
    """A named grid axis.

    Attributes:
        name: Its name.
        values: Coordinates of its points, (n,).
        units: Their unit.
        period: Length of the domain after which coordinates repeat; None if they do not.

    Raises:
        ConfigError: The points do not lie within one period.
    """

    name: str
    values: np.ndarray = attrs.field(converter=np.asarray)
    units: str = "1"
    period: float | None = None

    def __attrs_post_init__(self) -> None:
        if self.period is not None and not np.ptp(self.values) < self.period:
            raise ConfigError(
                f"axis {self.name!r} has a period of {self.period:g}, but points from "
                f"{self.values.min():g} to {self.values.max():g}: leave out those that repeat "
                "others, or give the length of the whole domain"
            )


def _variables(value: Sequence[str | Variable]) -> tuple[Variable, ...]:
    return tuple(Variable.parse(v) for v in value)


def _axes(value: Iterable[Axis]) -> tuple[Axis, ...]:
    return tuple(value)


def _floats(value: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if value is None else tuple(float(v) for v in value)


@attrs.frozen(kw_only=True, eq=False)
class SystemSpec:
    """What a system's states are.

    Attributes:
        variables: The C variables, as :class:`Variable` or ``"name [unit]"``.
        axes: The grid axes S; empty for systems without a grid.
        time_step: Time between two stored states.
        time_units: Unit of time.
        mean: Per-variable mean that maps physical states to model space, (x - mean) / std.
            None: taken from the training data when they are made.
        std: Per-variable standard deviation, likewise.

    Raises:
        ConfigError: Two variables share a name, or mean and std do not have one entry per variable.
    """

    variables: tuple[Variable, ...] = attrs.field(converter=_variables)
    time_step: float
    axes: tuple[Axis, ...] = attrs.field(default=(), converter=_axes)
    time_units: str = "1"
    mean: tuple[float, ...] | None = attrs.field(default=None, converter=_floats)
    std: tuple[float, ...] | None = attrs.field(default=None, converter=_floats)

    def __attrs_post_init__(self) -> None:
        names = self.variable_names
        if len(set(names)) != len(names):
            raise ConfigError(f"variables must have different names, got {list(names)}")
        for label, value in (("mean", self.mean), ("std", self.std)):
            if value is not None and len(value) != len(names):
                raise ConfigError(
                    f"{label} has {len(value)} entries, but there are {len(names)} variables "
                    f"{list(names)}: give one entry per variable"
                )

    @property
    def variable_names(self) -> tuple[str, ...]:
        """Names of the variables, in order."""
        return tuple(v.name for v in self.variables)

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Shape S of the grid."""
        return tuple(len(a.values) for a in self.axes)

    @property
    def state_shape(self) -> tuple[int, ...]:
        r"""Shape (C, \*S) of a state."""
        return (len(self.variables), *self.grid_shape)


class System(ABC):
    r"""A dynamical system as a first-order, time-invariant Markov chain.

    Subclasses are frozen attrs classes (:func:`sda_core.config.component`) whose fields are the
    system's parameters. States are in physical units.
    """

    sda_kind: ClassVar[str] = "system"

    #: How many trajectories are simulated together (see the module docstring).
    block_size: int = 128

    #: What to do when states are not finite, for the error.
    advice: ClassVar[str] = (
        "Use a smaller time step or more sub-steps, or check parameters and prior."
    )

    #: Distributions that compute the numbers, besides torch; their versions go with the data.
    computed_by: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def spec(self) -> SystemSpec:
        """What the states are."""

    @abstractmethod
    def prior(self, shape: Sequence[int], generator: Generator) -> Tensor:
        r"""Draw initial states.

        Args:
            shape: Batch shape (B...).
            generator: Source of randomness.

        Returns:
            States of shape (B..., C, \*S).
        """

    @abstractmethod
    def transition(self, x: Tensor, generator: Generator) -> Tensor:
        r"""Draw x_i ~ p(x_i | x_i-1), one output time step ahead.

        Args:
            x: States of shape (B..., C, \*S).
            generator: Source of randomness (unused by deterministic systems).

        Returns:
            States of the same shape.
        """


@runtime_checkable
class HasLogProb(Protocol):
    """A system whose transition density is known."""

    def log_prob(self, x: Tensor, x_next: Tensor) -> Tensor:
        r"""log p(x_next | x): (B..., C, \*S) twice -> (B...)."""
        ...


@runtime_checkable
class HasRightHandSide(Protocol):
    """A system that is an ordinary differential equation."""

    def rhs(self, x: Tensor) -> Tensor:
        r"""dx/dt at states x, (B..., C, \*S) -> the same shape."""
        ...


@runtime_checkable
class HasTrajectory(Protocol):
    """A system with a faster way to whole trajectories than one transition after another."""

    def trajectory(self, x: Tensor, length: int, burn_in: int, generator: Generator) -> Tensor:
        r"""States after the initial state x: discard ``burn_in``, return the next ``length``.

        Args:
            x: Initial states, (B, C, \*S).
            length: Number L of states returned.
            burn_in: Number of steps taken first and thrown away.
            generator: Source of randomness.

        Returns:
            Trajectories of shape (B, L, C, \*S).
        """
        ...


@runtime_checkable
class HasContext(Protocol):
    """A system with known static fields that a kernel can be given, such as a forcing."""

    def context(self) -> dict[str, Tensor]:
        r"""The fields by name, each of the grid's shape (\*S) and of order 1."""
        ...


@runtime_checkable
class LinearGaussian(Protocol):
    """A system x_0 ~ N(m_0, P_0), x_i = F x_i-1 + b + N(0, Q): exact answers exist."""

    def linear_gaussian(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The matrices (m_0, P_0, F, b, Q), float64, on flattened states."""
        ...


def trajectory(
    system: System, x: Tensor, length: int, generator: Generator, burn_in: int = 0
) -> Tensor:
    r"""Simulate from initial states.

    Args:
        system: The system.
        x: Initial states x_0, (B, C, \*S).
        length: Number L of states kept.
        generator: Source of randomness.
        burn_in: Number of steps taken first and thrown away.

    Returns:
        (x_b+1, ..., x_b+L) with b = ``burn_in``, shape (B, L, C, \*S).

    Raises:
        SimulationError: A state is not finite.
    """
    out = _advance(system, x, length, generator, burn_in)
    if lost := _not_finite(out):
        raise SimulationError(_not_finite_text(system, out, lost, burn_in + length))
    return out


def _advance(system: System, x: Tensor, length: int, generator: Generator, burn_in: int) -> Tensor:
    if isinstance(system, HasTrajectory):
        return system.trajectory(x, length, burn_in, generator)
    for _ in range(burn_in):
        x = system.transition(x, generator)
    states = []
    for _ in range(length):
        x = system.transition(x, generator)
        states.append(x)
    return torch.stack(states, dim=1)


def _not_finite(x: Tensor) -> list[int]:
    """The members with a value that is not finite."""
    if x.isfinite().all():
        return []
    return (~x.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()


def _not_finite_text(system: System, x: Tensor, lost: list[int], steps: int) -> str:
    return (
        f"{type(system).__name__}: members {lost} of {len(x)} left the range of finite numbers "
        f"within {steps} steps of dt = {system.spec.time_step}. {system.advice}"
    )


def _warn(message: str) -> None:
    warnings.warn(message, SimulationWarning, stacklevel=3)


def simulate_block(
    system: System,
    seed: int,
    block: int,
    length: int,
    burn_in: int = 0,
    on_redraw: Callable[[str], None] = _warn,
) -> Tensor:
    r"""Simulate block number ``block`` of the data set with this seed.

    A member that leaves the range of finite numbers is taken from the same block drawn anew, up to
    three times; the others stay as they are.

    Args:
        system: The system.
        seed: Seed of the data set.
        block: Number of the block.
        length: Number L of states kept.
        burn_in: Number of steps taken first and thrown away.
        on_redraw: Told of each redraw, in words; by default a
            :class:`~sda_core.errors.SimulationWarning` is given.

    Returns:
        ``system.block_size`` trajectories, (block_size, L, C, \*S), in physical units.

    Raises:
        SimulationError: More than half of the members are not finite, or one is not after three
            redraws; says the seed and the trajectories' numbers.
    """
    first = block * system.block_size

    def draw(*attempt: int) -> Tensor:
        generator = seeded_generator(seed, block, *attempt)
        x = system.prior((system.block_size,), generator)
        return _advance(system, x, length, generator, burn_in)

    try:
        x, attempt = draw(), 0
        while lost := _not_finite(x):
            # If most members are lost, it is not the draw that is wrong.
            if attempt == MAX_REDRAWS or 2 * len(lost) > len(x):
                again = f"drawn again {attempt} times, " if attempt else ""
                text = _not_finite_text(system, x, lost, burn_in + length)
                raise SimulationError(again + text)
            attempt += 1
            on_redraw(
                f"seed {seed}, trajectories {[first + member for member in lost]}: "
                f"{type(system).__name__} left the range of finite numbers; drawn again, attempt "
                f"{attempt} of {MAX_REDRAWS}"
            )
            rows = torch.tensor(lost, device=x.device)
            x = x.index_copy(0, rows, draw(attempt)[rows])
    except SimulationError as error:
        raise SimulationError(
            f"seed {seed}, trajectories {first} to {first + system.block_size - 1}: {error}"
        ) from error
    return x


def rk4_step(f: HasRightHandSide, x: Tensor, h: float) -> Tensor:
    """One step of the classical fourth-order Runge-Kutta scheme for dx/dt = f.rhs(x)."""
    k1 = f.rhs(x)
    k2 = f.rhs(x + h / 2 * k1)
    k3 = f.rhs(x + h / 2 * k2)
    k4 = f.rhs(x + h * k3)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


class ODESystem(System):
    r"""An ordinary differential equation dx/dt = rhs(x), integrated with RK4.

    Give ``spec``, ``prior`` and ``rhs``. ``substeps`` (a field or class attribute of the subclass)
    is the number of RK4 steps in one output step, ``spec.time_step`` their total length.
    """

    substeps: int = 1

    @abstractmethod
    def rhs(self, x: Tensor) -> Tensor:
        r"""dx/dt at states x, (B..., C, \*S) -> the same shape."""

    def transition(self, x: Tensor, generator: Generator) -> Tensor:
        """Integrate over one output step; deterministic."""
        h = self.spec.time_step / self.substeps
        for _ in range(self.substeps):
            x = rk4_step(self, x, h)
        return x


class SDESystem(System):
    r"""A stochastic differential equation dx = drift(x) dt + diffusion(x) dW (Ito).

    Give ``spec``, ``prior``, ``drift`` and ``diffusion`` (a number or a tensor that broadcasts
    against x: diagonal noise). Integrated with Euler-Maruyama in ``substeps`` per output step,
    of strong order 1/2 (1 where the diffusion does not depend on x).
    """

    substeps: int = 10

    @abstractmethod
    def drift(self, x: Tensor) -> Tensor:
        r"""Drift at states x, (B..., C, \*S) -> the same shape."""

    @abstractmethod
    def diffusion(self, x: Tensor) -> Tensor | float:
        """Diffusion coefficient at states x, broadcastable against x."""

    def transition(self, x: Tensor, generator: Generator) -> Tensor:
        """Draw the state one output step ahead."""
        h = self.spec.time_step / self.substeps
        for _ in range(self.substeps):
            dW = h**0.5 * torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
            x = x + self.drift(x) * h + self.diffusion(x) * dW
        return x
