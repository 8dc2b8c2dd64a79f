"""Base classes for differential equations of one's own, and their integrators."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Generator, Tensor

from sda_core.system.base import HasRightHandSide, System


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
