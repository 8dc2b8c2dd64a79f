"""Ensembles over time at one place, along single members, and along a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor

from sda_core.figures.base import (
    BASELINE,
    DIVERGING,
    POSTERIOR,
    REFERENCE,
    SEQUENTIAL,
    STYLE,
    TRUTH,
    state_times,
    time_label,
    with_units,
)
from sda_core.io.xarray import as_tensor
from sda_core.method import Problem

_QUANTILES = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)

#: Indices of a variable at one grid point, in (time, variable, *grid).
Index = tuple[int | slice, ...]


def plot(
    problem: Problem,
    posterior: xr.DataArray | Tensor,
    reference: xr.DataArray | Tensor | None = None,
) -> Figure:
    """The posterior over time, with the truth if it is known.

    Args:
        problem: The problem.
        posterior: The ensemble, as :meth:`sda_core.method.Method.assimilate` gives it.
        reference: An ensemble to compare with.

    Returns:
        A figure: shown by notebooks, otherwise ``.savefig("posterior.png")`` writes it.
    """
    ensembles = {"posterior": as_tensor(posterior)}
    if reference is not None:
        ensembles["reference"] = as_tensor(reference)
    return posterior_series(problem, ensembles)


def posterior_series(problem: Problem, ensembles: Mapping[str, Tensor]) -> Figure:
    """Each variable over time at one place, truth and ensembles; at most 6 panels.

    The middle of the grid is shown for systems that have one. Ensembles are known by their names:
    ``posterior`` and, if there are any, ``baseline`` and ``reference``.
    """
    posterior, reference = ensembles["posterior"], ensembles.get("reference")
    spec = problem.system.spec
    place = tuple(n // 2 for n in spec.grid_shape)
    t = state_times(problem)
    count = min(len(spec.variables), 6)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 1.6 * count + 0.9), layout="constrained")
        axes = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
        for c, axis in enumerate(axes):
            at: Index = (slice(None), c, *place)
            series = posterior[(slice(None), *at)].double()
            low, middle, high = torch.quantile(series, _QUANTILES, dim=0)
            axis.fill_between(
                t, low, high, color=POSTERIOR, alpha=0.25, lw=0, label="posterior, 90 %"
            )
            axis.plot(t, middle, color=POSTERIOR, label="posterior, median")
            if reference is not None:
                series = reference[(slice(None), *at)].double()
                bounds = torch.quantile(series, _QUANTILES[[0, 2]], dim=0)
                for i, bound in enumerate(bounds):
                    label = "reference, 90 %" if i == 0 else None
                    axis.plot(t, bound, color=REFERENCE, ls="--", lw=0.9, label=label)
            if "baseline" in ensembles:
                middle = ensembles["baseline"][(slice(None), *at)].double().quantile(0.5, dim=0)
                axis.plot(t, middle, color=BASELINE, ls="-.", lw=0.9, label="baseline, median")
            if problem.truth is not None:
                axis.plot(t, problem.truth[at], color=TRUTH, lw=0.9, label="truth")
            variable = spec.variables[c]
            axis.set_ylabel(with_units(variable.name, variable.units))
        axes[-1].set_xlabel(time_label(problem))
        where = f" at grid point {place}" if place else ""
        figure.suptitle(f"Posterior of {len(posterior)} members{where}", x=0.02, ha="left")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    return figure


def members(problem: Problem, posterior: Tensor, reference: Tensor | None, n: int = 20) -> Figure:
    """Single members beside the reference's, in the plane or space of the first variables."""
    spec = problem.system.spec
    place = tuple(k // 2 for k in spec.grid_shape)
    spatial = len(spec.variables) >= 3
    panels: list[tuple[str, Tensor, str]] = [("posterior", posterior, POSTERIOR)]
    if reference is not None:
        panels.append(("reference", reference, REFERENCE))
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(3.9 * len(panels) + 0.4, 3.8))
        for i, (name, ensemble, color) in enumerate(panels):
            axis: Any = figure.add_subplot(
                1, len(panels), i + 1, projection="3d" if spatial else None
            )
            columns = range(3 if spatial else min(2, len(spec.variables)))

            def path(x: Tensor, columns: range = columns) -> list[np.ndarray]:
                points: list[Index] = [(slice(None), c, *place) for c in columns]
                series = [x[point].numpy() for point in points]
                return series if len(series) > 1 else [state_times(problem), *series]

            for member in ensemble[:n]:
                axis.plot(*path(member), color=color, lw=0.6, alpha=0.5)
            if problem.truth is not None:
                axis.plot(*path(problem.truth), color=TRUTH, lw=1.6, label="truth")
                axis.legend(fontsize=8, loc="upper left")
            labels = [with_units(spec.variables[c].name, spec.variables[c].units) for c in columns]
            if len(labels) == 1:
                labels = [time_label(problem), *labels]
            axis.set_xlabel(labels[0])
            axis.set_ylabel(labels[1])
            if spatial:
                axis.set_zlabel(labels[2])
                axis.set_box_aspect(None, zoom=0.86)
                axis.tick_params(labelsize=7)
            axis.set_title(f"{min(n, len(ensemble))} members of the {name}", fontsize=9)
        figure.tight_layout()
    return figure


def fields(problem: Problem, posterior: Tensor) -> Figure:
    """Time against place for systems on a line: truth, posterior mean and spread."""
    spec = problem.system.spec
    variable, axis_spec = spec.variables[0], spec.axes[0]
    mean, std = posterior[:, :, 0].double().mean(0), posterior[:, :, 0].double().std(0)
    panels: list[tuple[str, Tensor]] = [("posterior mean", mean)]
    if problem.truth is not None:
        panels.insert(0, ("truth", problem.truth[:, 0].double()))
    limit = max(float(p.abs().max()) for _, p in panels)
    t = state_times(problem)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(3.2 * (len(panels) + 1), 3.6), layout="constrained")
        axes = figure.subplots(1, len(panels) + 1, sharey=True, squeeze=False)[0]
        for axis, (name, field) in zip(axes, panels, strict=False):
            image = axis.pcolormesh(
                axis_spec.values, t, field, cmap=DIVERGING, vmin=-limit, vmax=limit, rasterized=True
            )
            axis.set_title(name, fontsize=9)
        figure.colorbar(
            image, ax=list(axes[:-1]), label=with_units(variable.name, variable.units), shrink=0.9
        )
        image = axes[-1].pcolormesh(axis_spec.values, t, std, cmap=SEQUENTIAL, vmin=0)
        axes[-1].set_title("posterior spread", fontsize=9)
        figure.colorbar(
            image,
            ax=axes[-1],
            label=with_units(f"std of {variable.name}", variable.units),
            shrink=0.9,
        )
        for axis in axes:
            axis.set_xlabel(with_units(axis_spec.name, axis_spec.units))
        axes[0].set_ylabel(time_label(problem))
    return figure
