"""The loss over a training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from sda_core.figures.base import OBSERVED, POSTERIOR, REFERENCE, SEQUENTIAL, STYLE, Picture
from sda_core.io.files import read_events
from sda_core.training.meter import LEVELS

#: Points that a curve of reports has at most; more of them are averaged, since each is noisy.
_POINTS = 100

_MARK = "#888888"


def learning_curve(log: Path) -> Figure | None:
    """Loss over the steps of a training, from ``metrics.jsonl``; None without training.

    Training and validation loss, with the best validation, skipped batches and roll-backs marked,
    and beside them the training loss by noise level, where it was reported.
    """
    events = list(_read(log))
    epochs, reports = _by_step(events, "epoch"), _by_step(events, "report")
    if not epochs and not reports:
        return None
    levels = [f"loss_t{i}" for i in range(LEVELS)]
    by_level = any(level in e for e in reports for level in levels)
    with mpl.rc_context(STYLE):
        size = (9.0 if by_level else 4.8, 3.2)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, 1 + by_level, sharex=True, squeeze=False)[0]
        # Whichever is finer: epochs can be long.
        training = _curve(epochs if len(epochs) >= len(reports) else reports, "loss")
        _draw_losses(axes[0], training, _curve(epochs, "valid_loss"), epochs)
        _mark(axes[0], events)
        axes[0].legend(fontsize=8, frameon=True, edgecolor="none", framealpha=0.85)
        if by_level:
            _draw_levels(axes[1], [_averaged(_curve(reports, level)) for level in levels])
            for event in _of_kind(events, "rollback"):
                axes[1].axvline(event["step"], color=_MARK, ls="--", lw=0.9)
        axes[0].set_ylabel("denoising loss")
        axes[0].set_title("all noise levels", fontsize=9)
        for axis in axes:
            axis.set_xlabel("optimizer step")
            axis.set_xlim(left=0)
            axis.xaxis.set_major_formatter("{x:,.0f}")
    return figure


def write_learning_curve(directory: Path) -> Path | None:
    """Write ``figures/learning-curve.png`` of a run; None without training.

    Args:
        directory: The run directory.
    """
    figure = learning_curve(directory / "metrics.jsonl")
    if figure is None:
        return None
    picture = Picture(name="learning-curve", caption="Denoising loss.", figure=figure)
    return picture.save(directory / "figures")


def _read(log: Path) -> Iterable[dict[str, Any]]:
    """The events of a log that have a step."""
    for _, event in read_events(log):
        if event is not None and isinstance(event.get("step"), int):
            yield event


def _of_kind(events: Iterable[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event.get("event") == kind]


def _by_step(events: Iterable[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The events of a kind in the order of their steps, of each step the last."""
    found = {event["step"]: event for event in _of_kind(events, kind)}
    return [found[step] for step in sorted(found)]


def _curve(events: Iterable[Mapping[str, Any]], name: str) -> np.ndarray:
    """Steps, and the values that are there, (2, n)."""
    pairs = [(e["step"], e[name]) for e in events if isinstance(e.get(name), int | float)]
    return np.array(pairs, dtype=float).reshape(-1, 2).T


def _averaged(curve: np.ndarray) -> np.ndarray:
    """Means over neighbours, so that few enough points are left."""
    if curve.shape[1] <= _POINTS:
        return curve
    return np.stack([part.mean(1) for part in np.array_split(curve, _POINTS, axis=1)], axis=1)


def _draw_losses(
    axis: Axes, training: np.ndarray, valid: np.ndarray, epochs: Iterable[Mapping[str, Any]]
) -> None:
    axis.plot(*training, color=POSTERIOR, lw=0.8, marker=_dot(training), ms=3, label="training")
    if valid.size:
        axis.plot(*valid, color=REFERENCE, marker=_dot(valid), ms=3, label="validation")
    if np.isfinite(valid[1]).any():
        step, loss = valid[:, np.nanargmin(valid[1])]
        epoch = next(e.get("epoch") for e in epochs if e["step"] == step)
        label = f"best: {loss:.3g}, epoch {epoch}"
        axis.plot(step, loss, "*", ms=11, color=OBSERVED, mec="white", zorder=5, label=label)
    _scale(axis, [training, valid])


def _draw_levels(axis: Axes, curves: Sequence[np.ndarray]) -> None:
    # Without its brightest part, which is hard to see on white.
    colors = mpl.colormaps[SEQUENTIAL](np.linspace(0, 0.92, len(curves)))
    for curve, color in zip(curves, colors, strict=True):
        axis.plot(*curve, color=color, lw=1.0, marker=_dot(curve, few=8), ms=3)
    _scale(axis, curves)
    edges = np.linspace(0, 1, len(curves) + 1)
    scale = ScalarMappable(BoundaryNorm(edges, len(curves)), ListedColormap(colors))
    label = "diffusion time t (1: noise)"
    axis.figure.colorbar(scale, ax=axis, ticks=edges[::2], label=label, format="{x:g}", pad=0.02)
    axis.set_title("training, by noise level", fontsize=9)


def _mark(axis: Axes, events: Sequence[dict[str, Any]]) -> None:
    """Where batches were skipped, and the training was rolled back."""
    for i, event in enumerate(_of_kind(events, "rollback")):
        label = "rolled back" if i == 0 else None
        axis.axvline(event["step"], color=_MARK, ls="--", lw=0.9, label=label)
    skipped = [event["step"] for event in _of_kind(events, "skipped")]
    if skipped:
        axis.plot(
            skipped,
            np.full(len(skipped), 0.02),
            "|",
            ms=9,
            mew=1.4,
            color="black",
            transform=axis.get_xaxis_transform(),
            label=f"skipped batches ({len(skipped)})",
        )


def _dot(curve: np.ndarray, few: int = 40) -> str | None:
    """A marker for curves of few points."""
    return "o" if curve.shape[1] <= few else None


def _scale(axis: Axes, curves: Iterable[np.ndarray]) -> None:
    """A logarithmic axis for values that span more than a decade."""
    values = np.concatenate([curve[1] for curve in curves])
    values = values[np.isfinite(values) & (values > 0)]
    if len(values) and values.max() > 10 * values.min():
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.yaxis.set_major_formatter("{x:g}")
