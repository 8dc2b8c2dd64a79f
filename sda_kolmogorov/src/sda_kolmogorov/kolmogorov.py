r"""Kolmogorov flow: two-dimensional turbulence driven by a sine.

References:
    - Chandler & Kerswell, "Invariant recurrent solutions embedded in a turbulent two-dimensional
      Kolmogorov flow", 2013, https://doi.org/10.1017/jfm.2013.122
    - Kochkov et al., "Machine learning accelerated computational fluid dynamics", 2021,
      https://arxiv.org/abs/2102.01010 (the solver, jax-cfd; linear drag).
    - Rozet & Louppe, "Score-based Data Assimilation", 2023, https://arxiv.org/abs/2306.10574,
      appendix D (Reynolds number, grids, time step, initial fields).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Generator, Tensor

from sda_core.config import Check, at_least, component, non_negative, option, positive
from sda_core.errors import ShapeError
from sda_core.system import Axis, System, SystemSpec, Variable

if TYPE_CHECKING:
    from sda_kolmogorov.solver import Solver

#: Courant number for which the inner step is chosen, as in the SDA paper's code.
_DESIGN_COURANT = 0.5

_even = Check("an even number, 4 or greater", lambda v: v >= 4 and v % 2 == 0)


@component
class KolmogorovFlow(System):
    r"""du/dt = -(u . grad) u + lap u / Re - grad p + a sin(k y) e_x - drag u, div u = 0.

    On the periodic square (2 pi)^2, with finite volumes on a staggered grid: van Leer's flux
    limiter for advection, explicit steps, and the pressure that keeps the divergence zero. Inner
    steps are as long as ``design_velocity`` at Courant number 0.5 allows (or diffusion, where that
    is stricter). All quantities are dimensionless. A state is (2, size, size): x- and y-velocity at
    cell centres, x[c, i, j] at (x_i, y_j), x_i = (i + 1/2) 2 pi / size, so that the forcing
    varies along the last axis. States are means over coarsening x coarsening simulated cells.

    With coarsening > 1 a stored state does not say all about the simulated one: ``transition`` is a
    closure that starts the unresolved scales from zero, and differs from ``trajectory``, which
    keeps them from step to step. With coarsening = 1 the two agree.

    A trajectory that grows beyond what the inner steps can follow is NaN as a whole, so that it is
    reported. Computed in float32 by JAX, on its device. No gradients pass through.

    Good values: the defaults are the SDA paper's, 256 x 256 simulated and 64 x 64 stored at
    Reynolds number 1000. The initial fields' kinetic energy of 0.6 grows to about 1 in some 20
    output steps and stays near it; discard the first 64 states. In two trajectories of 64 more,
    velocities had standard deviations of 1.07 (u) and 0.95 (v), speeds reached 4.5, and states 1,
    4 and 16 steps apart correlated by 0.96, 0.67 and 0.17. The flux limiter dissipates as well:
    0.8 times as much as viscosity at 256 x 256, 1.8 times at 128 x 128 and 4.6 times at 64 x 64
    (some energy budgets over 1 to 2 time units). An output step takes 82 inner ones, and 128 of
    them roughly half a minute of a CPU core per trajectory; with coarsening = 1 about a second.
    """

    advice: ClassVar[str] = (
        "The flow became too fast for its inner steps, or its parameters let it grow without "
        "bounds: raise design_velocity, or check forcing, drag and max_velocity."
    )
    computed_by: ClassVar[tuple[str, ...]] = ("jax", "jaxlib", "jax-cfd")

    size: int = option(default=64, check=_even, help="stored grid points per side")
    coarsening: int = option(
        default=4, check=at_least(1), help="simulated grid points per stored one, along a side"
    )
    time_step: float = option(default=0.2, check=positive, help="time between two stored states")
    reynolds: float = option(default=1000.0, check=positive, help="1 / viscosity")
    forcing_wavenumber: int = option(default=4, check=at_least(1), help="k of the forcing sin(k y)")
    forcing_amplitude: float = option(default=1.0, check=non_negative, help="a of the forcing")
    drag: float = option(default=0.1, check=non_negative, help="linear drag coefficient")
    max_velocity: float = option(default=3.0, check=positive, help="largest initial speed")
    peak_wavenumber: float = option(
        default=4.0, check=positive, help="where the initial spectrum has its peak"
    )
    design_velocity: float = option(
        default=5.0,
        check=positive,
        help="speed that inner steps are made for; lost is a flow where |u| + |v| is twice that",
    )
    block_size: int = option(
        default=16, check=at_least(1), help="trajectories simulated together; numbers depend on it"
    )

    @property
    def spec(self) -> SystemSpec:
        """Two velocities on the stored grid; standardized by the data."""
        centres = (np.arange(self.size) + 0.5) * 2 * math.pi / self.size
        return SystemSpec(
            variables=(
                Variable("u", long_name="x-velocity"),
                Variable("v", long_name="y-velocity"),
            ),
            axes=[Axis(name, centres, period=2 * math.pi) for name in ("grid_x", "grid_y")],
            time_step=self.time_step,
        )

    def context(self) -> dict[str, Tensor]:
        """The forcing's shape sin(k y), (size, size)."""
        y = torch.from_numpy(self.spec.axes[1].values)
        wave = torch.sin(self.forcing_wavenumber * y).float()
        return {"forcing": wave.repeat(self.size, 1)}

    @property
    def inner_steps(self) -> int:
        """Number of simulated steps in one output step."""
        dx = 2 * math.pi / (self.size * self.coarsening)
        advection = _DESIGN_COURANT * dx / self.design_velocity
        diffusion = dx**2 * self.reynolds / 4
        return math.ceil(self.time_step / min(advection, diffusion))

    def prior(self, shape: Sequence[int], generator: Generator) -> Tensor:
        """Random divergence-free fields with a log-normal spectrum: (B..., 2, size, size)."""
        from sda_kolmogorov.jax_compat import from_jax, random_keys

        members = [
            from_jax(
                self._solver.initial(key, self.max_velocity, self.peak_wavenumber), generator.device
            )
            for key in random_keys(math.prod(shape), generator)
        ]
        return torch.stack(members).reshape(*shape, *self.spec.state_shape)

    def transition(self, x: Tensor, generator: Generator) -> Tensor:
        """One output step, (B..., 2, size, size) -> the same shape; deterministic.

        Raises:
            ShapeError: As ``trajectory``.
        """
        flat = x.reshape(-1, *x.shape[-3:])
        return self.trajectory(flat, 1, 0, generator).reshape(x.shape)

    def trajectory(self, x: Tensor, length: int, burn_in: int, generator: Generator) -> Tensor:
        """Discard ``burn_in`` states, return the next ``length``, in one call of JAX.

        Args:
            x: Initial states, (B, 2, size, size).
            length: Number L of states returned.
            burn_in: Number of output steps taken first and thrown away.
            generator: Not used.

        Returns:
            Trajectories of shape (B, L, 2, size, size), with the dtype and device of ``x``.

        Raises:
            ShapeError: States do not have the shape (2, size, size).
        """
        if x.shape[1:] != self.spec.state_shape:
            raise ShapeError(
                f"the states given have the shape {tuple(x.shape[1:])}, but a Kolmogorov flow of "
                f"size {self.size} has states of shape {self.spec.state_shape}: (u and v, x, y)"
            )
        from sda_kolmogorov.jax_compat import from_jax, to_jax

        states = self._solver.trajectories(to_jax(x), length, burn_in)
        return from_jax(states, x.device).to(x.dtype)

    @property
    def _solver(self) -> Solver:
        # Imported late: a trained model and stored data are used without JAX.
        from sda_kolmogorov.solver import Solver

        return Solver(
            size=self.size,
            coarsening=self.coarsening,
            steps=self.inner_steps,
            dt=self.time_step / self.inner_steps,
            viscosity=1 / self.reynolds,
            forcing_wavenumber=self.forcing_wavenumber,
            forcing_amplitude=self.forcing_amplitude,
            drag=self.drag,
        )
