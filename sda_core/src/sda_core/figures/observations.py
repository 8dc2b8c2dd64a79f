"""Observations beside what an ensemble says of them."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sda_core.figures.base import OBSERVED, POSTERIOR, STYLE, TRUTH, state_times, time_label
from sda_core.method import Problem

_BAND = torch.tensor([0.05, 0.95], dtype=torch.float64)


def observations(problem: Problem, posterior: Tensor) -> Figure:
    """Observations beside what the posterior says of them, and the misfit in units of the noise.

    The left panel needs to know when each value was observed, and shows the first value of each
    time; it is left out for operators that mix times.
    """
    A = torch.stack([problem.observation.operator(x.double()).flatten() for x in posterior])
    y, std = problem.y.flatten(), problem.observation.std_at(problem.y).flatten()
    z = ((y - A) / std).flatten().numpy()
    times = problem.observation.times
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 3.0) if times is not None else (4.0, 3.0))
        if times is None:
            axis = figure.subplots()
        else:
            left, axis = figure.subplots(1, 2, width_ratios=(1.5, 1))
            index, first = np.unique(times.flatten().numpy(), return_index=True)
            t, shown = state_times(problem)[index], torch.from_numpy(first)
            low, high = torch.quantile(A[:, shown], _BAND, dim=0)
            left.fill_between(
                t, low, high, color=POSTERIOR, alpha=0.25, lw=0, label="A(x), 90 % of members"
            )
            left.errorbar(
                t, y[shown], std[shown], color=OBSERVED, fmt=".", ms=5, lw=1, label="y ± std"
            )
            left.set_xlabel(time_label(problem))
            left.set_ylabel("observed value")
            left.legend(fontsize=8)
        limit = max(4.0, float(np.quantile(np.abs(z), 0.999)))
        bins = np.linspace(-limit, limit, 61).tolist()
        axis.hist(z, bins=bins, density=True, color=POSTERIOR, alpha=0.5, label="all members")
        grid = np.linspace(-limit, limit, 200)
        normal = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi)
        axis.plot(grid, normal, color=TRUTH, label="N(0, 1)")
        axis.set_xlabel("(y - A(x)) / std")
        axis.set_ylabel("density")
        axis.set_ylim(top=1.3 * axis.get_ylim()[1])  # room for the legend
        axis.legend(fontsize=8)
        figure.tight_layout()
    return figure
