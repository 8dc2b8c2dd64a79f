r"""Forced two-dimensional Navier-Stokes flow on jax-cfd's staggered grid, compiled.

The simulated grid has N = m size cells of width dx = 2 pi / N per side, m being the coarsening.
jax-cfd keeps u on the right face of a cell and v on its upper one; stored states hold both at cell
centres. Waves are moved there exactly,

    centre(u)_k = exp(-i k dx / 2) u_k   along x, and likewise v along y,

but for the shortest, k = N/2, which has no value half a cell beside its points: it stays as it is,
so that moving back gives what there was. Means over m x m cells then make the stored grid.

Back to the simulated grid, a stored field is continued by the sum of its waves, each divided by
what the means leave of it,

    r_k = sin(k h / 2) / (m sin(k dx / 2)),   h = m dx,   2 / pi < r_k <= 1,

so that coarsening the continued field gives the stored one. Waves shorter than the stored grid's
are not in a stored state and start from zero.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import attrs
import einops
import numpy as np

from sda_kolmogorov.jax_compat import cfd, jax, jnp

#: Largest (|u| + |v|) dt / dx at which upwind steps are stable in two dimensions. They are what the
#: flux limiter falls back to at steep gradients.
COURANT_LIMIT = 1.0


@attrs.frozen(kw_only=True)
class Solver:
    """A flow on a grid; equal solvers share what is compiled.

    Attributes:
        size: Stored grid points per side, an even number.
        coarsening: Simulated grid points per stored one along a side.
        steps: Number of inner steps between two stored states.
        dt: Length of an inner step.
        viscosity: Kinematic viscosity.
        forcing_wavenumber: k of the forcing sin(k y).
        forcing_amplitude: Its amplitude.
        drag: Coefficient of the linear drag.
    """

    size: int
    coarsening: int
    steps: int
    dt: float
    viscosity: float
    forcing_wavenumber: int
    forcing_amplitude: float
    drag: float

    @functools.partial(jax.jit, static_argnums=0)
    def initial(self, key: jax.Array, max_velocity: float, peak_wavenumber: float) -> jax.Array:
        """A random divergence-free field, (2, size, size)."""
        v = cfd.initial_conditions.filtered_velocity_field(
            key, self._grid, max_velocity, peak_wavenumber
        )
        return coarsen(to_centres(_data(v)), self.coarsening)

    # The burn-in is no static argument, so that one compilation does for all.
    @functools.partial(jax.jit, static_argnums=(0, 2))
    def trajectories(self, x: jax.Array, length: int, burn_in: int) -> jax.Array:
        """Simulate; only the stored states of the last ``length`` output steps are held in memory.

        A member that exceeds :data:`COURANT_LIMIT`, or is not finite, at the start or after any
        output step is NaN at all times.

        Args:
            x: Initial states, (B, 2, size, size).
            length: Number L of states returned.
            burn_in: Number of output steps before them.

        Returns:
            (B, L, 2, size, size).
        """
        v = to_faces(x, self.coarsening)
        states = jnp.zeros((length, *x.shape), x.dtype)

        def advance(i: int, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            v, stable, states = carry
            v = jax.vmap(self._output_step)(v)
            stored = coarsen(to_centres(v), self.coarsening)
            # During the burn-in the first place is written over and over.
            states = states.at[jnp.maximum(i - burn_in, 0)].set(stored)
            return v, stable & self._is_stable(v), states

        start = (v, self._is_stable(v), states)
        _, stable, states = jax.lax.fori_loop(0, burn_in + length, advance, start)
        return jnp.where(stable[:, None, None, None, None], states.swapaxes(0, 1), jnp.nan)

    @property
    def _grid(self) -> Any:
        n = self.size * self.coarsening
        return cfd.grids.Grid((n, n), domain=((0, 2 * math.pi), (0, 2 * math.pi)))

    def _output_step(self, v: jax.Array) -> jax.Array:
        """Velocities on faces, one output step later: (2, N, N) -> (2, N, N)."""
        grid = self._grid
        step = cfd.equations.semi_implicit_navier_stokes(
            density=1.0,
            viscosity=self.viscosity,
            dt=self.dt,
            grid=grid,
            forcing=cfd.forcings.simple_turbulence_forcing(
                grid,
                constant_magnitude=self.forcing_amplitude,
                constant_wavenumber=self.forcing_wavenumber,
                linear_coefficient=-self.drag,
            ),
        )
        periodic = cfd.boundaries.periodic_boundary_conditions(2)
        start = cfd.initial_conditions.wrap_variables(tuple(v), grid, (periodic, periodic))
        return _data(jax.lax.fori_loop(0, self.steps, lambda _, v: step(v), start))

    def _is_stable(self, v: jax.Array) -> jax.Array:
        """Whether members are finite and within the limit: (B, 2, N, N) -> (B,)."""
        courant = jnp.abs(v).sum(1).max((1, 2)) * self.dt / self._grid.step[0]
        return courant <= COURANT_LIMIT  # not so for NaN


def _data(v: Any) -> jax.Array:
    return jnp.stack([component.data for component in v])


def to_centres(v: jax.Array) -> jax.Array:
    """Velocities on faces, moved to the centres of the cells: (..., 2, N, N) -> (..., 2, N, N)."""
    u, v = v[..., 0, :, :], v[..., 1, :, :]
    return jnp.stack((_resample(u, -2, shift=-0.5), _resample(v, -1, shift=-0.5)), axis=-3)


def coarsen(v: jax.Array, m: int) -> jax.Array:
    """Means over m x m cells: (..., m n, m n) -> (..., n, n)."""
    return einops.reduce(v, "... (i a) (j b) -> ... i j", "mean", a=m, b=m)


def to_faces(x: jax.Array, m: int) -> jax.Array:
    """Stored velocities on simulated faces: (..., 2, n, n) -> (..., 2, m n, m n)."""
    u, v = x[..., 0, :, :], x[..., 1, :, :]
    u = _resample(_resample(u, -1, m), -2, m, shift=0.5)
    v = _resample(_resample(v, -2, m), -1, m, shift=0.5)
    return jnp.stack((u, v), axis=-3)


def _resample(x: jax.Array, axis: int, m: int = 1, shift: float = 0.0) -> jax.Array:
    """The field that has the means x over m cells, ``shift`` cells beside their centres."""
    n = x.shape[axis]
    k = np.arange(n // 2 + 1)
    phase = np.exp(2j * np.pi * k / (m * n) * (shift + (1 - m) / 2))
    factor = m * phase * np.sinc(k / (m * n)) / np.sinc(k / n)
    # The shortest wave: see the module's docstring; on a finer grid it counts for k and -k.
    factor[-1] = 1 if m == 1 else factor[-1] / 2
    waves = jnp.moveaxis(jnp.fft.rfft(x, axis=axis), axis, -1) * factor.astype(np.complex64)
    return jnp.moveaxis(jnp.fft.irfft(waves, n=m * n), -1, axis)
