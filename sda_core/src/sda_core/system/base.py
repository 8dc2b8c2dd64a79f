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
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

from torch import Generator, Tensor

from sda_core.system.spec import SystemSpec


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
