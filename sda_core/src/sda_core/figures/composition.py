"""What composing windows costs, over blankets and strides."""

from __future__ import annotations

from typing import get_args

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sda_core.denoiser import FoldName
from sda_core.denoiser.composition_error import CompositionError
from sda_core.figures.base import POSTERIOR, REFERENCE, SEQUENTIAL, STYLE

_FOLDS: tuple[FoldName, ...] = get_args(FoldName)
_COLORS = dict(zip(_FOLDS, (POSTERIOR, REFERENCE), strict=True))


def composition_figure(error: CompositionError, tolerance: float) -> Figure:
    """Excess error by blanket for each noise level, and by stride for each fold.

    Args:
        error: What was measured.
        tolerance: Excess error that is accepted, marked by a line.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_blankets(left, error)
        _draw_strides(right, error, tolerance)
        for axis in (left, right):
            axis.axhline(100 * tolerance, color="black", ls=":", lw=0.9)
            # Linear about zero: where blankets do not matter, the excess is noise of either sign.
            axis.set_yscale("symlog", linthresh=100 * tolerance or 0.1)
            axis.yaxis.set_major_formatter("{x:g}")
        left.legend(title="sigma / alpha", fontsize=7, title_fontsize=8, ncols=2)
        right.legend(fontsize=8)
    return figure


def _draw_blankets(axis: Axes, error: CompositionError) -> None:
    blankets = range((error.window + 1) // 2)
    excess = 100 * np.stack([error.excess_at(b).value.numpy() for b in blankets])
    colors = mpl.colormaps[SEQUENTIAL](np.linspace(0, 0.92, excess.shape[1]))
    for curve, noise, color in zip(excess.T, error.noise.tolist(), colors, strict=True):
        axis.plot(blankets, curve, color=color, marker="o", ms=2.5, label=f"{noise:.2g}")
    axis.set_xlabel("blanket: states to the nearer end of the window")
    axis.set_ylabel("excess error of one state [%]")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_strides(axis: Axes, error: CompositionError, tolerance: float) -> None:
    strides = range(1, error.window + 1)
    for fold in _FOLDS:
        color = _COLORS[fold]
        excess = [100 * error.worst_excess(s, fold) for s in strides]
        axis.plot(strides, excess, color=color, label=f"excess error, {fold}")
        apart = [100 * float(error.difference(s, fold).value.max()) for s in strides]
        axis.plot(strides, apart, color=color, ls="--", lw=0.9)
        best = error.recommended_stride(tolerance, fold)
        if best is not None:
            axis.plot(best, excess[best - 1], "*", ms=10, color=color, mec="white", zorder=5)
    axis.plot([], [], color="grey", ls="--", lw=0.9, label="distance to full width")
    axis.set_xlabel("stride")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylabel("largest over the noise levels [%]")
