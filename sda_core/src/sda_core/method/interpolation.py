r"""Smoothing-spline interpolation of the observations in space and time.

References:
    - Wahba, "Spline Models for Observational Data", 1990,
      https://doi.org/10.1137/1.9781611970128
    - Morozov, "Methods for Solving Incorrectly Posed Problems", 1984,
      https://doi.org/10.1007/978-1-4612-5280-1 (the discrepancy principle)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from sda_core.config import component, option, positive
from sda_core.errors import AssimilationError
from sda_core.method.base import Execution, Method, Problem
from sda_core.random import seeded_generator

#: lambda is looked for between 10^-DECADES and 10^DECADES, by bisection in so many solves.
DECADES, SOLVES = 10, 12
#: Iterations of L-BFGS in a solve, which starts from the solution of the one before.
ITERATIONS = 60


@component
class Interpolation(Method):
    r"""The smoothest trajectory that fits the observations: a baseline that knows no dynamics.

    x minimizes |(A(x) - y) / std|^2 / c + lambda (|Laplacian x|^2 + time_weight |d^2x/dt^2|^2),

    with second differences in units of the grid spacing and of the time step, periodic in space,
    of variables divided by the system's standard deviation if it has one. c is the mean square of
    the derivatives of A(x) / std, so that lambda is dimensionless; it is the largest with
    rms((A(x) - y) / std) <= 1 (the discrepancy principle), or the smallest that is tried if none
    fits. What the observations say nothing about stays at the system's mean.

    A may be any differentiable operator. Where it is not linear, the minimum is the one that L-BFGS
    finds from the mean. It is a point estimate: all members are the same, and the spread is 0.
    """

    point_estimate: ClassVar[bool] = True

    time_weight: float = option(
        default=1.0, check=positive, help="weight of roughness in time over that in space"
    )

    def draw(
        self, problem: Problem, members: int, seed: int, execution: Execution = Execution()
    ) -> Tensor:
        """Interpolate, and repeat the result ``members`` times.

        Raises:
            AssimilationError: The operator has no gradient at the mean, or is not finite there or
                where the search leads.
        """
        spec, observation = problem.system.spec, problem.observation
        per_variable = (-1, *(1,) * len(spec.axes))
        mean, std = (
            torch.tensor(value or [default], dtype=torch.float64).reshape(per_variable)
            for value, default in ((spec.mean, 0.0), (spec.std, 1.0))
        )

        errors = observation.std_at(problem.y.double())

        def misfit(z: Tensor) -> Tensor:
            return (observation.operator(mean + std * z) - problem.y) / errors

        bases, roughness = _modes(problem.shape, self.time_weight)
        z = torch.zeros(problem.shape, dtype=torch.float64)
        curvature = _curvature(misfit, z)
        best, low, high = None, float(-DECADES), float(DECADES)
        for i in range(SOLVES):
            exponent = (low + high) / 2
            z = _minimize(misfit, curvature, 10**exponent * roughness, bases, z)
            if misfit(z).square().mean() <= 1:
                low, best = exponent, z
            else:
                high = exponent
            if execution.on_step:
                execution.on_step(i + 1, SOLVES)
        x = mean + std * (z if best is None else best)
        if not x.isfinite().all():
            raise AssimilationError(
                "method 'interpolation' came to states where the observation operator is not "
                "finite: use an operator that is finite everywhere, or another method"
            )
        return x.float().repeat(members, *(1,) * x.ndim)


def _modes(shape: Sequence[int], time_weight: float) -> tuple[list[Tensor], Tensor]:
    r"""Orthonormal modes in which the roughness is diagonal.

    Returns:
        The modes along time and each grid axis, (n, n), as columns; roughness, (L, 1, \*S).
    """
    length, _, *grid = shape
    second = torch.eye(length, dtype=torch.float64).diff(n=2, dim=0)
    values, modes = torch.linalg.eigh(second.T @ second)
    values[:2] = 0  # constant and linear, but for rounding
    bases, laplacian = [modes], torch.zeros(1, dtype=torch.float64)
    for n in grid:
        one = torch.eye(n, dtype=torch.float64)
        along, modes = torch.linalg.eigh(one.roll(1, 0) + one.roll(-1, 0) - 2 * one)
        bases.append(modes)
        laplacian = laplacian[..., None] + along
    return bases, time_weight * values.reshape(-1, *(1,) * laplacian.ndim) + laplacian**2


def _change_basis(z: Tensor, bases: Sequence[Tensor]) -> Tensor:
    r"""Multiply by a matrix along time and each grid axis, (L, C, \*S)."""
    for axis, matrix in zip((0, *range(2, z.ndim)), bases, strict=True):
        z = torch.tensordot(matrix, z, dims=([1], [axis])).movedim(0, axis)
    return z


def _minimize(
    misfit: Callable[[Tensor], Tensor],
    curvature: float,
    penalty: Tensor,
    bases: Sequence[Tensor],
    start: Tensor,
) -> Tensor:
    """Minimize |misfit(z)|^2 / curvature + sum of penalty (coefficient of z in its mode)^2."""
    # Coordinates in which no curvature of the penalty exceeds 1, that of the data on average.
    scale = (1 + penalty).rsqrt()
    w = (_change_basis(start, [V.T for V in bases]) / scale).contiguous().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [w],
        max_iter=ITERATIONS,
        history_size=10,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        fit = misfit(_change_basis(scale * w, bases)).square().sum() / curvature
        loss = fit + (penalty * (scale * w) ** 2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return _change_basis(scale * w, bases).detach()


def _curvature(misfit: Callable[[Tensor], Tensor], z: Tensor) -> float:
    """Mean diagonal entry of J^T J, J = d misfit / dz, estimated with one random vector of signs.

    Raises:
        AssimilationError: It is zero or not finite.
    """
    z = z.clone().requires_grad_()
    values = misfit(z)
    signs = torch.randint(0, 2, values.shape, generator=seeded_generator(0)) * 2.0 - 1
    (gradient,) = torch.autograd.grad(values, z, signs.to(values))
    curvature = float(gradient.square().mean())
    if not 0 < curvature < float("inf"):
        raise AssimilationError(
            "method 'interpolation' starts from the system's mean, and the gradient of the "
            f"observation operator there is {'zero' if curvature == 0 else 'not finite'}: use an "
            "operator that has one, or another method"
        )
    return curvature
