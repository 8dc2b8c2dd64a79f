"""Figures of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sda_core.files import replace_file
from sda_core.method import Problem

_QUANTILES = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)

#: Indices of a variable at one grid point, in (time, variable, *grid).
Index = tuple[int | slice, ...]

#: Colours that keep apart in print and for colour-blind readers (Okabe & Ito, 2008).
TRUTH, POSTERIOR, REFERENCE, OBSERVED = "#000000", "#0072B2", "#D55E00", "#009E73"

STYLE: Any = {
    "figure.dpi": 150,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
}


def save(figure: Figure, path: Path) -> None:
    """Write a PNG and rename it into place."""
    with replace_file(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight")


def _label(name: str, units: str) -> str:
    return name if units == "1" else f"{name} [{units}]"


def _time_label(problem: Problem) -> str:
    return _label("time", problem.system.spec.time_units)


def _times(problem: Problem) -> np.ndarray:
    return np.arange(problem.length) * problem.system.spec.time_step


def posterior_series(problem: Problem, posterior: Tensor, reference: Tensor | None) -> Figure:
    """Each variable over time at one place: truth, posterior, reference; at most 6 panels.

    The middle of the grid is shown for systems that have one.
    """
    spec = problem.system.spec
    place = tuple(n // 2 for n in spec.grid_shape)
    t = _times(problem)
    count = min(len(spec.variables), 6)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 1.6 * count + 0.7))
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
            if problem.truth is not None:
                axis.plot(t, problem.truth[at], color=TRUTH, lw=0.9, label="truth")
            variable = spec.variables[c]
            axis.set_ylabel(_label(variable.name, variable.units))
        axes[-1].set_xlabel(_time_label(problem))
        where = f" at grid point {place}" if place else ""
        figure.suptitle(f"Posterior of {len(posterior)} members{where}", x=0.02, ha="left")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper right", ncols=len(labels), fontsize=8)
        figure.tight_layout(rect=(0, 0, 1, 0.99 - 0.02 / count))
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
                return series if len(series) > 1 else [_times(problem), *series]

            for member in ensemble[:n]:
                axis.plot(*path(member), color=color, lw=0.6, alpha=0.5)
            if problem.truth is not None:
                axis.plot(*path(problem.truth), color=TRUTH, lw=1.6, label="truth")
                axis.legend(fontsize=8, loc="upper left")
            labels = [_label(spec.variables[c].name, spec.variables[c].units) for c in columns]
            if len(labels) == 1:
                labels = [_time_label(problem), *labels]
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
    t = _times(problem)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(3.2 * (len(panels) + 1), 3.6), layout="constrained")
        axes = figure.subplots(1, len(panels) + 1, sharey=True, squeeze=False)[0]
        for axis, (name, field) in zip(axes, panels, strict=False):
            image = axis.pcolormesh(
                axis_spec.values, t, field, cmap="RdBu_r", vmin=-limit, vmax=limit, rasterized=True
            )
            axis.set_title(name, fontsize=9)
        figure.colorbar(
            image, ax=list(axes[:-1]), label=_label(variable.name, variable.units), shrink=0.9
        )
        image = axes[-1].pcolormesh(axis_spec.values, t, std, cmap="viridis", vmin=0)
        axes[-1].set_title("posterior spread", fontsize=9)
        figure.colorbar(
            image, ax=axes[-1], label=_label(f"std of {variable.name}", variable.units), shrink=0.9
        )
        for axis in axes:
            axis.set_xlabel(_label(axis_spec.name, axis_spec.units))
        axes[0].set_ylabel(_time_label(problem))
    return figure


def observations(problem: Problem, posterior: Tensor) -> Figure:
    """Observations beside what the posterior says of them, and the misfit in units of the noise.

    The left panel needs to know when each value was observed, and shows the first value of each
    time; it is left out for operators that mix times.
    """
    A = problem.observation.operator(posterior.double()).flatten(1)
    y, std = problem.y.flatten(), problem.observation.std.flatten()
    z = ((y - A) / std).flatten().numpy()
    times = problem.observation.times
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 3.0) if times is not None else (4.0, 3.0))
        if times is None:
            axis = figure.subplots()
        else:
            left, axis = figure.subplots(1, 2, width_ratios=(1.5, 1))
            index, first = np.unique(times.flatten().numpy(), return_index=True)
            t, shown = _times(problem)[index], torch.from_numpy(first)
            low, high = torch.quantile(A[:, shown], _QUANTILES[[0, 2]], dim=0)
            left.fill_between(
                t, low, high, color=POSTERIOR, alpha=0.25, lw=0, label="A(x), 90 % of members"
            )
            left.errorbar(
                t, y[shown], std[shown], color=OBSERVED, fmt=".", ms=5, lw=1, label="y ± std"
            )
            left.set_xlabel(_time_label(problem))
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


def learning_curve(log: Path) -> Figure | None:
    """Training and validation loss over epochs, from ``metrics.jsonl``; None without training."""
    epochs: dict[int, dict[str, float]] = {}
    for line in log.read_text().splitlines():
        event = json.loads(line)
        if event.get("event") == "epoch":
            epochs[event["epoch"]] = event
    if not epochs:
        return None
    x = sorted(epochs)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 3.0))
        axis = figure.subplots()
        axis.plot(x, [epochs[e]["loss"] for e in x], color=POSTERIOR, alpha=0.6, label="training")
        valid = [epochs[e]["valid_loss"] for e in x]
        axis.plot(x, valid, color=REFERENCE, label="validation")
        axis.set_xlabel("epoch")
        axis.set_ylabel("denoising loss")
        axis.legend(fontsize=8)
        figure.tight_layout()
    return figure
