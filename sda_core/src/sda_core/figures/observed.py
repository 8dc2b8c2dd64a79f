r"""What was observed, as maps.

An observation can be drawn on a plane in two ways. Where y is itself an image of the whole plane,
(T, C', h, w), it is shown as it is. Otherwise its values are put back to their places by the
operator's adjoint, (J^T y) / (J^T 1) with J the Jacobian of A: the observed value where each is of
one place, a weighted mean where they overlap. No operator needs to say what it is.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sda_core.figures.base import with_units
from sda_core.figures.maps import Maps
from sda_core.method import Problem


def shown_times(problem: Problem, count: int = 4) -> list[int]:
    """Indices of some times, evenly spaced among those observed, and others if these are few."""
    times = problem.observation.times
    every = torch.arange(problem.length)
    observed = every if times is None else times.unique()
    if len(observed) >= count:
        return observed[torch.linspace(0, len(observed) - 1, count).round().long()].tolist()
    others = every[~torch.isin(every, observed)]
    fill = min(count - len(observed), len(others))
    middles = (torch.arange(fill) + 0.5) * len(others) / max(fill, 1)
    return sorted([*observed.tolist(), *others[middles.long()].tolist()])


def observed_images(problem: Problem, x: Tensor) -> list[Tensor | None] | None:
    r"""The observation, if it has the form of images of the whole plane.

    It has if moving the trajectory by one of the image's pixels moves the image by one pixel.

    Args:
        problem: A problem on a plane, S = (n, m).
        x: Some trajectory, (L, C, n, m), physical units.

    Returns:
        For each of L times (C', h, w), or None where nothing was observed.
    """
    y, times, grid = problem.y, problem.observation.times, problem.system.spec.grid_shape
    if times is None or y.ndim != 4:
        return None
    if any(n % pixels for n, pixels in zip(grid, y.shape[2:], strict=True)):
        return None
    A, x = problem.observation.operator, x.double()
    pixel = [n // pixels for n, pixels in zip(grid, y.shape[2:], strict=True)]
    moved, image = A(x.roll(pixel, (-2, -1))), A(x).roll((1, 1), (-2, -1))
    if not torch.allclose(moved, image, rtol=1e-4, atol=1e-6):
        return None
    images = dict(zip(times[:, 0, 0, 0].tolist(), y, strict=True))
    return [images.get(i) for i in range(problem.length)]


def observed_places(problem: Problem, x: Tensor) -> Tensor | None:
    r"""The observed values at their places, by the operator's adjoint.

    Args:
        problem: The problem.
        x: The trajectory where A is linearised, (L, C, \*S), physical units.

    Returns:
        (L, C, \*S), NaN where nothing was observed, or None where A takes differences, so that its
        values have no places.
    """
    x = x.detach().clone().double().requires_grad_()
    A = problem.observation.operator(x)
    (weight,) = torch.autograd.grad(A.sum(), x, retain_graph=True)
    (value,) = torch.autograd.grad((A * problem.y.to(A)).sum(), x)
    small = 1e-6 * weight.abs().max()
    if (weight < -small).any():
        return None
    return torch.where(weight > small, value / weight, torch.nan)


def is_variable(problem: Problem, variable: int) -> Tensor:
    r"""Which entries of y are values, or means of values, of a variable: (\*obs), bool."""
    x = torch.zeros(problem.shape, dtype=torch.float64)
    of_zeros = problem.observation.operator(x)
    x[:, variable] = -2  # which neither the square nor the magnitude leaves as it is
    of_twos = problem.observation.operator(x)
    return ((of_twos + 2).abs() < 1e-6) & (of_zeros.abs() < 1e-6)


def observed_maps(problem: Problem, x: Tensor, variable: int = 0) -> Maps | None:
    r"""What was observed of a variable, as maps at all L times.

    Args:
        problem: A problem on a plane.
        x: Some trajectory, (L, C, n, m), physical units.
        variable: Number of the variable.

    Returns:
        Maps with the variable's label where y holds its values, "observed value" otherwise; None
        where nothing was observed of it, or what was cannot be drawn.
    """
    own = is_variable(problem, variable)
    images, places = observed_images(problem, x), observed_places(problem, x)
    shown: list[np.ndarray | None]
    if images is not None:
        channels = own.all(3).all(2).all(0).nonzero().flatten().tolist()
        channel = channels[0] if channels else 0
        shown = [None if y is None else y[channel].numpy() for y in images]
    elif places is not None:
        at = places[:, variable]
        shown = [None if bool(y.isnan().all()) else y.numpy() for y in at]
    else:
        return None
    if all(image is None for image in shown):
        return None
    quantity = problem.system.spec.variables[variable]
    label = with_units(quantity.name, quantity.units) if own.any() else "observed value"
    return Maps(name="observation", images=shown, label=label)
