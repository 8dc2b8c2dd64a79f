"""Pictures of a scalar field on a plane."""

from __future__ import annotations

from torch import Tensor

from sda_core.figures.base import Picture, state_times, with_units
from sda_core.figures.maps import Maps, Plane, ensemble_maps
from sda_core.figures.observed import observed_maps, shown_times
from sda_core.figures.panels import animation, ensemble_panels
from sda_core.method import Problem


def plane_pictures(
    problem: Problem,
    ensemble: Tensor,
    truth: Tensor | None,
    observed: Maps | None,
    *,
    name: str,
    label: str,
    plane: Plane,
) -> list[Picture]:
    """Panels of an ensemble at some times, and an animation.

    Args:
        problem: The problem.
        ensemble: The field, (M, L, n, m).
        truth: The true field, (L, n, m), if known.
        observed: What was observed, at all L times, if it can be drawn.
        name: What the field is called in names of files.
        label: The field with its unit.
        plane: Where it lies.
    """
    rows = ensemble_maps(ensemble, label, truth, observed)
    shown, times = shown_times(problem), state_times(problem)
    units = problem.system.spec.time_units
    panels = ensemble_panels([maps.at(shown) for maps in rows], times[shown], plane, units)
    moving = [maps for maps in rows if maps.name not in ("member 2", "spread")]
    return [
        Picture(
            name=f"{name}-panels",
            caption=f"Posterior of {len(ensemble)} members. Grey: not observed.",
            figure=panels,
        ),
        Picture(
            name=f"{name}-animation",
            caption="The same over time. A member is as rough as the truth; the mean is smooth "
            "where the members disagree.",
            figure=animation(moving, times, plane, units),
        ),
    ]


def variable_pictures(problem: Problem, ensemble: Tensor, variable: int = 0) -> list[Picture]:
    r"""The pictures of :func:`plane_pictures` of a variable of a system with two grid axes.

    Args:
        problem: The problem.
        ensemble: (M, L, C, n, m), physical units.
        variable: Number of the variable.
    """
    spec = problem.system.spec
    quantity = spec.variables[variable]
    return plane_pictures(
        problem,
        ensemble[:, :, variable],
        None if problem.truth is None else problem.truth[:, variable],
        observed_maps(problem, ensemble[0], variable),
        name=quantity.name,
        label=with_units(quantity.name, quantity.units),
        plane=Plane.of(spec),
    )
