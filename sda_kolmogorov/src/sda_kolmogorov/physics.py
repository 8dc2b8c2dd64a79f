r"""Derived quantities of two-dimensional velocity fields.

Conventions
    A velocity field is (..., 2, n, m): x[..., c, i, j] is component c of the velocity (u, v) at
    (x_i, y_j), where x_i = (i + 1/2) length / n and y_j = (j + 1/2) length / m are the centres of
    the cells of the periodic square [0, length)^2. Both components are at the same points. (jax-cfd
    keeps velocities on a staggered grid: u on the faces of the cells that look in x, half a cell
    further in x, and v likewise in y. What is stored and what these functions take is centred.)

Derivatives
    ``spectral``: the Fourier coefficient of wavenumber k is multiplied by i k, which is exact for
    fields without a Nyquist mode; that mode (k = n/2 for even n), whose derivative vanishes on the
    grid, is dropped. ``finite-difference``: (f_i+1 - f_i-1) / 2h, of order 2 in the grid spacing h.

Every function is differentiable, takes batches in the leading dimensions, and keeps type and
device.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from sda_core.errors import ConfigError, ShapeError
from sda_core.observation import block_means

Derivative = Literal["spectral", "finite-difference"]
Interpolation = Literal["fourier", "linear"]


def vorticity(x: Tensor, method: Derivative = "spectral", *, length: float = 2 * math.pi) -> Tensor:
    """Vorticity w = dv/dx - du/dy.

    Args:
        x: Velocity, (..., 2, n, m).
        method: How derivatives are taken.
        length: Period of the domain.

    Returns:
        (..., n, m).

    Raises:
        ShapeError: x is no velocity field.
        ConfigError: There is no such method.
    """
    u, v = _components(x)
    return _derivative(v, -2, method, length) - _derivative(u, -1, method, length)


def divergence(
    x: Tensor, method: Derivative = "spectral", *, length: float = 2 * math.pi
) -> Tensor:
    """Divergence du/dx + dv/dy, (..., 2, n, m) -> (..., n, m); see :func:`vorticity`."""
    u, v = _components(x)
    return _derivative(u, -2, method, length) + _derivative(v, -1, method, length)


def kinetic_energy(x: Tensor) -> Tensor:
    """Mean of (u^2 + v^2) / 2 over the domain, (..., 2, n, m) -> (...)."""
    u, v = _components(x)
    return (u**2 + v**2).mean((-2, -1)) / 2


def enstrophy(x: Tensor, method: Derivative = "spectral", *, length: float = 2 * math.pi) -> Tensor:
    """Mean of w^2 / 2 over the domain, (..., 2, n, m) -> (...); see :func:`vorticity`."""
    return (vorticity(x, method, length=length) ** 2).mean((-2, -1)) / 2


def energy_spectrum(x: Tensor, *, length: float = 2 * math.pi) -> tuple[Tensor, Tensor]:
    r"""Isotropic energy spectrum E(k): the kinetic energy of each shell of wavevectors.

    Shell number s is s - 1/2 <= \|k\| < s + 1/2 in units of 2 pi / length. All wavevectors are
    counted, those in the corners beyond n/2 too, so that E sums to :func:`kinetic_energy`.

    Args:
        x: Velocity, (..., 2, n, m).
        length: Period of the domain.

    Returns:
        The wavenumbers k of the shells, (K,), from 0, and E, (..., K).

    Raises:
        ShapeError: x is no velocity field.
    """
    n, m = _components(x)[0].shape[-2:]
    # Counted in integers and double precision, so that no wavevector is put in the wrong shell.
    k_x, k_y = (torch.fft.fftfreq(i, 1 / i, dtype=torch.float64, device=x.device) for i in (n, m))
    shell = (torch.hypot(k_x[:, None], k_y) + 0.5).floor().long().flatten()
    number = int(shell.max()) + 1
    modes = (torch.fft.fft2(x, norm="forward").abs() ** 2).sum(-3) / 2
    E = x.new_zeros(*x.shape[:-3], number).index_add(-1, shell, modes.flatten(-2))
    return torch.arange(number, device=x.device).to(x) * (2 * math.pi / length), E


def velocity_from_vorticity(w: Tensor, *, length: float = 2 * math.pi) -> Tensor:
    """The velocity without divergence and mean whose spectral vorticity is w.

    With the streamfunction psi, - laplace(psi) = w, it is (u, v) = (dpsi/dy, -dpsi/dx). The mean of
    w, which no periodic velocity has, is dropped.

    Args:
        w: Vorticity, (..., n, m).
        length: Period of the domain.

    Returns:
        Velocity, (..., 2, n, m).
    """
    n, m = w.shape[-2:]
    k_x, k_y = _wavenumbers(n, length, w, real=False)[:, None], _wavenumbers(m, length, w)
    square = k_x**2 + k_y**2
    psi = torch.fft.rfft2(w) / torch.where(square == 0, 1, square)
    return torch.fft.irfft2(torch.stack((1j * k_y * psi, -1j * k_x * psi), dim=-3), s=(n, m))


def coarsen(x: Tensor, factor: int) -> Tensor:
    """Means over blocks of factor x factor cells, (..., n, m) -> (..., n / factor, m / factor).

    Raises:
        ShapeError: The factor does not divide n and m.
    """
    return block_means(x, factor, 2)


def upsample(x: Tensor, factor: int, method: Interpolation = "fourier") -> Tensor:
    """Periodic interpolation from the cell centres of a grid to those of a finer one.

    Each cell is split into factor x factor cells, whose centres are not those of the coarse grid
    unless the factor is odd. ``fourier`` is exact for fields without a Nyquist mode, ``linear``
    (bilinear) is of order 2.

    Args:
        x: Fields, (..., n, m).
        factor: Fine cells per coarse cell along each axis.
        method: How to interpolate.

    Returns:
        (..., n factor, m factor).

    Raises:
        ConfigError: The factor is below 1, or there is no such method.
    """
    _check_choice(method, get_args(Interpolation))
    if factor < 1:
        raise ConfigError(f"factor: got {factor}, allowed: 1 or greater")
    if factor == 1:
        return x
    interpolate = _fourier if method == "fourier" else _linear
    for dim in (-2, -1):
        x = interpolate(x.movedim(dim, -1), factor).movedim(-1, dim)
    return x


def _components(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.ndim < 3 or x.shape[-3] != 2:
        raise ShapeError(
            f"a velocity field has the shape (..., 2, n, m), with u and v, but got {tuple(x.shape)}"
        )
    u, v = x.unbind(-3)
    return u, v


def _check_choice(method: str, allowed: tuple[str, ...]) -> None:
    if method not in allowed:
        raise ConfigError(f"method: got {method!r}, allowed: {' or '.join(map(repr, allowed))}")


def _wavenumbers(n: int, length: float, like: Tensor, real: bool = True) -> Tensor:
    """Wavenumbers of the (real) Fourier transform for derivatives: the Nyquist mode has 0."""
    frequencies = torch.fft.rfftfreq if real else torch.fft.fftfreq
    k = frequencies(n, length / (2 * math.pi * n), dtype=like.dtype, device=like.device)
    if n % 2 == 0:
        k[n // 2] = 0
    return k


def _derivative(f: Tensor, dim: int, method: Derivative, length: float) -> Tensor:
    _check_choice(method, get_args(Derivative))
    n = f.shape[dim]
    if method == "finite-difference":
        return (f.roll(-1, dim) - f.roll(1, dim)) * (n / (2 * length))
    f = f.movedim(dim, -1)
    k = _wavenumbers(n, length, f)
    return torch.fft.irfft(1j * k * torch.fft.rfft(f), n).movedim(-1, dim)


def _fourier(x: Tensor, factor: int) -> Tensor:
    """Trigonometric interpolation along the last dimension."""
    n = x.shape[-1]
    # The first fine centre lies half a coarse cell less half a fine one before the first coarse.
    shift = (1 / factor - 1) / 2
    angle = torch.arange(n // 2 + 1, device=x.device).to(x) * (2 * math.pi / n * shift)
    modes = torch.fft.rfft(x) * torch.polar(torch.ones_like(angle), angle)
    if n % 2 == 0:
        # On the finer grid the Nyquist mode is two modes, of wavenumbers n/2 and -n/2.
        modes = torch.cat((modes[..., :-1], modes[..., -1:] / 2), dim=-1)
    return torch.fft.irfft(modes, n * factor) * factor


def _linear(x: Tensor, factor: int) -> Tensor:
    """Linear interpolation along the last dimension."""
    # Where the fine centres of a coarse cell lie, in coarse cells from its centre.
    s = ((torch.arange(factor, device=x.device) + 0.5) / factor - 0.5).to(x)
    left, right = x.roll(1, -1)[..., None], x.roll(-1, -1)[..., None]
    fine = x[..., None] * (1 - s.abs()) + left * (-s).clamp(min=0) + right * s.clamp(min=0)
    return fine.flatten(-2)
