"""Maps side by side: strips, panels and animations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import attrs
import matplotlib as mpl
import numpy as np
from matplotlib.animation import FuncAnimation
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from sda_core.figures.base import DIVERGING, SEQUENTIAL, STYLE
from sda_core.figures.maps import Maps, Plane

_STYLE = {**STYLE, "axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}

#: Colour of what is not known.
_UNKNOWN = "#d0d0d0"

#: Colour scales hold this share of the values.
_SHARE = 0.995

#: Observed places are drawn as dots where they are fewer than this share of the grid.
_SPARSE = 0.1


def field_strip(
    maps: Maps, times: Sequence[float] | np.ndarray, plane: Plane, time_units: str = "1"
) -> Figure:
    """One quantity over time, side by side.

    Args:
        maps: The quantity.
        times: Time of each image.
        plane: Where they lie.
        time_units: Unit of time.
    """
    return ensemble_panels([attrs.evolve(maps, name="")], times, plane, time_units)


def ensemble_panels(
    rows: Sequence[Maps], times: Sequence[float] | np.ndarray, plane: Plane, time_units: str = "1"
) -> Figure:
    """Several quantities over time: a row for each, a column for each time.

    Args:
        rows: The quantities, as of :func:`ensemble_maps`.
        times: Time of each column.
        plane: Where they lie.
        time_units: Unit of time.
    """
    with mpl.rc_context(_STYLE):
        size = (1.75 * len(times) + 1.6, (1.6 * plane.ratio + 0.1) * len(rows) + 0.5)
        figure = Figure(figsize=size, layout="compressed")
        axes = figure.subplots(len(rows), len(times), sharex=True, sharey=True, squeeze=False)
        scales = _scales(rows)
        for maps, line in zip(rows, axes, strict=True):
            for axis, image in zip(line, maps.images, strict=True):
                _draw(axis, image, plane, scales[maps.label])
            line[0].set_ylabel(plane.labels[1])
            line[0].annotate(
                maps.name,
                (0, 0.5),
                (-34, 0),
                xycoords="axes fraction",
                textcoords="offset points",
                rotation=90,
                ha="right",
                va="center",
                weight="bold",
            )
        for axis, time in zip(axes[0], times, strict=True):
            axis.set_title(_time_title(time, time_units), fontsize=9)
        for axis in axes[-1]:
            axis.set_xlabel(plane.labels[0])
        _colorbars(figure, rows, axes, scales)
    return figure


def animation(
    panels: Sequence[Maps], times: Sequence[float] | np.ndarray, plane: Plane, time_units: str = "1"
) -> FuncAnimation:
    """Several quantities side by side, moving.

    Args:
        panels: The quantities, as of :func:`ensemble_maps`.
        times: Time of each frame.
        plane: Where they lie.
        time_units: Unit of time.
    """
    scales = _scales(panels)
    with mpl.rc_context(_STYLE):
        size = (2.1 * len(panels) + 0.9 * len(scales) + 0.3, 2.0 * plane.ratio + 0.9)
        figure = Figure(figsize=size, layout="compressed")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for maps, axis in zip(panels, axes, strict=True):
            axis.set_title(maps.name, fontsize=9)
            axis.set_xlabel(plane.labels[0])
        axes[0].set_ylabel(plane.labels[1])
        _colorbars(figure, panels, axes[:, None], scales)
    drawn: list[Artist] = []

    def frame(i: int) -> list[Artist]:
        while drawn:
            drawn.pop().remove()
        for maps, axis in zip(panels, axes, strict=True):
            drawn.append(_draw(axis, maps.images[i], plane, scales[maps.label]))
        figure.suptitle(_time_title(times[i], time_units), fontsize=9)
        return drawn

    with mpl.rc_context(_STYLE):
        frame(0)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # so that panels keep their places
    return FuncAnimation(figure, frame, frames=len(times), blit=False)


def _time_title(time: float, units: str) -> str:
    return f"t = {time:.4g}" + ("" if units == "1" else f" {units}")


def _scales(rows: Sequence[Maps]) -> dict[str, ScalarMappable]:
    """A colour scale for each label, symmetric about zero for values of both signs."""
    scales = {}
    for label in dict.fromkeys(maps.label for maps in rows):
        group = [maps for maps in rows if maps.label == label]
        images = [image for maps in group for image in maps.images if image is not None]
        values = np.concatenate([np.zeros(0), *(i[np.isfinite(i)] for i in images)])
        if not len(values):
            values = np.ones(1)
        low, high = np.quantile(values, [1 - _SHARE, _SHARE])
        signed = low < 0 < high
        if signed:
            high = np.quantile(np.abs(values), _SHARE)
            low = -high
        elif group[0].sequential:
            low = 0
        norm = Normalize(low, high if high > low else low + 1)
        scales[label] = ScalarMappable(norm, DIVERGING if signed else SEQUENTIAL)
    return scales


def _draw(axis: Axes, image: np.ndarray | None, plane: Plane, scale: ScalarMappable) -> Artist:
    axis.set_facecolor(_UNKNOWN)
    axis.set_aspect("equal")
    left, right, bottom, top = plane.extent
    axis.set_xlim(left, right)
    axis.set_ylim(bottom, top)
    if image is None:
        middle = ((left + right) / 2, (bottom + top) / 2)
        return axis.text(
            *middle, "not observed", ha="center", va="center", color="#666666", fontsize=8
        )
    colors: Any = {"cmap": scale.cmap, "norm": scale.norm}
    known = np.isfinite(image)
    if known.mean() < _SPARSE:
        i, j = known.nonzero()
        x = left + (i + 0.5) * (right - left) / image.shape[0]
        y = bottom + (j + 0.5) * (top - bottom) / image.shape[1]
        return axis.scatter(x, y, c=image[known], s=16, lw=0.4, edgecolor="white", **colors)
    return axis.imshow(
        np.asarray(image).T, origin="lower", extent=plane.extent, interpolation="nearest", **colors
    )


def _colorbars(
    figure: Figure, rows: Sequence[Maps], axes: np.ndarray, scales: dict[str, ScalarMappable]
) -> None:
    """A colour bar beside each run of rows with the same label."""
    for label, run in groupby(zip(rows, axes, strict=True), key=lambda pair: pair[0].label):
        group = [axis for _, line in run for axis in line]
        heights = {axis.get_subplotspec().rowspan.start for axis in group}
        extend = "max" if scales[label].norm.vmin == 0 else "both"
        figure.colorbar(
            scales[label],
            ax=group,
            label=label,
            extend=extend,
            extendfrac=0.04 / len(heights),
            aspect=14 * len(heights),
            pad=0.02,
        )
