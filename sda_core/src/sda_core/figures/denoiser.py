"""Pictures of what a denoiser makes of noised windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor

from sda_core.evaluation.denoiser import Denoised
from sda_core.figures.base import (
    OBSERVED,
    POSTERIOR,
    SEQUENTIAL,
    STYLE,
    TRUTH,
    Picture,
    with_units,
)
from sda_core.figures.maps import Maps, Plane
from sda_core.figures.panels import ensemble_panels
from sda_core.system import SystemSpec

#: Most variables, and most times, that are drawn.
_VARIABLES, _TIMES = 6, 5
#: Noise level that maps are drawn of; there is no room for all.
_LEVEL = 1.0
#: Spreads of a variable by which axes are wider than the window; noise beyond is cut off.
_MARGIN = 2.0

_GUIDE = "#888888"


def denoising_pictures(found: Sequence[Denoised], spec: SystemSpec) -> Iterator[Picture]:
    """Error against noise level, and a held-out window with noise and without.

    Args:
        found: A denoiser's results, by noise level; at least one.
        spec: What the states are, with their std.
    """
    yield Picture(
        name="denoising-error",
        caption="Error of the denoised state on held-out windows, by the level of the noise, both "
        "in units of the spread of the states. Below the dotted line the denoiser knows more than "
        "what a value alone tells of itself, were it Gaussian.",
        figure=denoising_error(found, spec),
    )
    maps = len(spec.axes) == 2
    yield Picture(
        name="denoised-window",
        caption=f"A held-out window with noise of level {_LEVEL:g}, and what the denoiser makes of "
        "it: the mean of all states that could be behind it."
        if maps
        else "A held-out window with noise of several levels, and what the denoiser makes of it: "
        "the mean of all states that could be behind it. Noise beyond the axes is cut off.",
        figure=denoised_maps(found, spec) if maps else denoised_lines(found, spec),
    )


def denoising_error(found: Sequence[Denoised], spec: SystemSpec) -> Figure:
    """RMSE of each variable over its spread, against the noise level."""
    levels = np.array([each.level for each in found])
    shown = spec.variable_names[:_VARIABLES]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axis = figure.subplots()
        grid = np.geomspace(levels.min() / 1.6, levels.max() * 1.6, 200)
        axis.plot(grid, grid, color=_GUIDE, lw=0.9, ls="--", label="the noise itself")
        axis.axhline(1, color=_GUIDE, lw=0.9, ls="-.", label="the mean of all states")
        alone = grid / np.sqrt(1 + grid**2)
        axis.plot(grid, alone, color=_GUIDE, lw=1.1, ls=":", label="each value alone")
        # Without its brightest part, which is hard to see on white.
        colors = mpl.colormaps[SEQUENTIAL](np.linspace(0, 0.8, len(shown)))
        lowest = 1.0
        for name, color, marker in zip(shown, colors, "osD^vX", strict=False):
            errors = [max(1 - each.scores.get(f"r2/{name}", np.nan), 0.0) ** 0.5 for each in found]
            axis.plot(levels, errors, color=color, marker=marker, ms=5, lw=1.6, label=name)
            lowest = np.nanmin([lowest, *(error for error in errors if error > 0)])
        axis.set(xscale="log", yscale="log")
        axis.set_xlim(grid[0], grid[-1])
        axis.set_ylim(0.7 * min(lowest, alone[0]), 2.0)
        axis.set_xticks(levels, [f"{level:g}" for level in levels])
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_xlabel("noise level, in spreads of the states")
        axis.set_ylabel("RMSE over spread")
        axis.set_title("Error of the denoised state (held-out windows)", fontsize=9)
        figure.legend(loc="outside right upper", fontsize=8)
    return figure


def denoised_lines(found: Sequence[Denoised], spec: SystemSpec) -> Figure:
    """Truth, noised and denoised: a row for each variable, a column for each noise level.

    Over time, in the middle of the grid if there is one; of a system on a line over the line, in
    the middle of the window.
    """
    along = spec.axes[0] if len(spec.axes) == 1 else None
    place = tuple(n // 2 for n in spec.grid_shape)
    variables = spec.variables[:_VARIABLES]
    spreads = spec.std or [1.0] * len(variables)

    def line(x: Tensor, c: int) -> np.ndarray:
        chosen: Any = (len(x) // 2, c) if along else (slice(None), c, *place)
        return x[chosen].numpy()

    window = len(found[0].x)
    over = np.asarray(along.values) if along else np.arange(window) * spec.time_step
    dots = {"ls": "none", "marker": "o", "ms": 3 if len(over) <= 40 else 1.8}
    with mpl.rc_context(STYLE):
        size = (2.4 * len(found) + 0.8, 1.35 * len(variables) + 1.0)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(variables), len(found), sharex=True, sharey="row", squeeze=False)
        for c, row in enumerate(axes):
            clean = np.concatenate([line(each.x, c) for each in found])
            room = _MARGIN * spreads[c]
            row[0].set_ylim(clean.min() - room, clean.max() + room)
            row[0].set_ylabel(with_units(variables[c].name, variables[c].units))
            for axis, each in zip(row, found, strict=True):
                axis.plot(over, line(each.noised, c), color=OBSERVED, alpha=0.6, **dots)
                axis.plot(over, line(each.x, c), color=TRUTH, lw=1.2)
                axis.plot(over, line(each.estimate, c), color=POSTERIOR, lw=1.8)
        for axis, each in zip(axes[0], found, strict=True):
            axis.set_title(f"noise level {each.level:g}", fontsize=9)
        label = (
            with_units(along.name, along.units) if along else with_units("time", spec.time_units)
        )
        for axis in axes[-1]:
            axis.set_xlabel(label)
        dotted, black, blue = axes[0][0].lines
        named = {"truth": black, "noised": dotted, "denoised": blue}
        figure.legend(named.values(), named, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def denoised_maps(found: Sequence[Denoised], spec: SystemSpec) -> Figure:
    """Truth, noised and denoised: a row for each, a column for each time; the first variable."""
    each = min(found, key=lambda each: abs(np.log(each.level / _LEVEL)))
    quantity = spec.variables[0]
    label = with_units(quantity.name, quantity.units)
    times = np.unique(np.linspace(0, len(each.x) - 1, _TIMES).round().astype(int))
    images = {"truth": each.x, "noised": each.noised, "denoised": each.estimate}
    rows = [
        Maps(name=name, images=list(x[times, 0].numpy()), label=label) for name, x in images.items()
    ]
    return ensemble_panels(rows, times * spec.time_step, Plane.of(spec), spec.time_units)
