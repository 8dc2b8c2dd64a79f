"""Samples of the learned prior."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from sda_core.figures.base import POSTERIOR, STYLE, TRUTH, with_units
from sda_core.system import SystemSpec


def sampled_trajectories(samples: Tensor, data: Tensor, spec: SystemSpec, count: int = 4) -> Figure:
    """Some samples over time, beside as many trajectories of the data; at most 4 variables.

    Args:
        samples: Samples of a system without a grid, (M, L, C), physical units.
        data: Trajectories of its data, (N, L', C).
        spec: What the states are.
        count: How many of both are drawn.
    """
    variables = spec.variables[:4]
    with mpl.rc_context(STYLE):
        size = (7.5, 1.1 * len(variables) + 0.8)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(variables), 2, sharex=True, sharey="row", squeeze=False)
        columns = (("samples", samples, POSTERIOR), ("training data", data, TRUTH))
        for (name, trajectories, color), column in zip(columns, axes.T, strict=True):
            times = np.arange(trajectories.shape[1]) * spec.time_step
            for c, axis in enumerate(column):
                axis.plot(times, trajectories[:count, :, c].T, color=color, lw=0.9, alpha=0.6)
            column[0].set_title(name, fontsize=9)
            column[-1].set_xlabel(with_units("time", spec.time_units))
        for variable, axis in zip(variables, axes[:, 0], strict=True):
            axis.set_ylabel(with_units(variable.name, variable.units))
    return figure
