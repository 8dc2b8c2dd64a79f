"""Whether an ensemble is as uncertain as it is wrong."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from sda_core.figures.base import POSTERIOR, STYLE, TRUTH

#: Bars of a rank histogram, at least, where there are as many ranks.
_FEWEST_BARS = 8


def rank_histogram_figure(counts: Tensor) -> Figure:
    """How often the truth has each rank among the members: flat if they are calibrated.

    Args:
        counts: Of ranks 0 to M, (M + 1,), as of :func:`sda_core.evaluation.metrics.rank_histogram`.
    """
    # Neighbouring ranks together, so that a bar holds ten values or more where they are calibrated.
    bars = min(len(counts), max(_FEWEST_BARS, int(counts.sum()) // 10))
    groups = counts.double().tensor_split(bars)
    widths = np.array([len(group) for group in groups])
    mean = float(counts.double().mean())
    relative = [float(group.mean()) / mean for group in groups]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 3.0))
        axis = figure.subplots()
        left = widths.cumsum() - widths
        axis.bar(left - 0.5, relative, 0.95 * widths, align="edge", color=POSTERIOR, alpha=0.6)
        axis.axhline(1, color=TRUTH, lw=0.9, label="calibrated")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_ylim(top=1.2 * axis.get_ylim()[1])  # room for the legend
        axis.set_xlabel("rank of the truth among the members")
        axis.set_ylabel("relative frequency")
        axis.legend(fontsize=8)
        figure.tight_layout()
    return figure


def spread_skill_figure(spread: Tensor, error: Tensor, units: str = "") -> Figure:
    """Error of the mean against spread, over bins of spread: the diagonal if calibrated.

    Args:
        spread: Root mean variance in each bin, as of
            :func:`sda_core.evaluation.metrics.spread_skill_curve`.
        error: RMSE of the mean in each bin.
        units: Unit of both.
    """
    suffix = f" [{units}]" if units else ""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.6, 3.4))
        axis = figure.subplots()
        limit = 1.05 * float(max(spread.max(), error.max()))
        axis.plot([0, limit], [0, limit], color=TRUTH, lw=0.9, label="calibrated")
        axis.plot(spread.numpy(), error.numpy(), "o-", ms=3.5, color=POSTERIOR, label="posterior")
        axis.set_xlim(0, limit)
        axis.set_ylim(0, limit)
        axis.set_aspect("equal")
        axis.set_xlabel("spread" + suffix)
        axis.set_ylabel("RMSE of the mean" + suffix)
        axis.legend(fontsize=8)
        figure.tight_layout()
    return figure
