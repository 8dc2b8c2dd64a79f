"""Figures of a study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from sda_core.figures import OBSERVED, POSTERIOR, REFERENCE, SEQUENTIAL, STYLE
from sda_ray.importance import Importance
from sda_ray.parameters import Parameter, parameters_of, spelled
from sda_ray.study import Study, Trial, is_finite

_PRUNED = "#888888"

#: Where parallel coordinates have the trials without a parameter, below its axis.
_ABSENT = -0.13

#: Categories or whole numbers that an axis has at most to show trials of one next to each other.
_SLOTS = 12

#: Characters of a category's name that are shown.
_LETTERS = 13


def history(study: Study) -> Figure | None:
    """Value of each trial by its number, and the best so far; None if no trial has a value."""
    valued = [trial for trial in study.trials if is_finite(trial.value)]
    if not valued:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        axis = figure.subplots()
        finished = [trial for trial in valued if trial.state == "finished"]
        pruned = [trial for trial in valued if trial.state == "pruned"]
        others = [trial for trial in valued if trial.state in ("stopped", "running")]
        size = 5 if len(study.trials) <= 60 else 3.5
        if finished:
            sign = 1 if study.mode == "min" else -1
            so_far = sign * np.minimum.accumulate([sign * (t.value or 0.0) for t in finished])
            numbers = [trial.number for trial in finished]
            axis.step(
                [*numbers, study.trials[-1].number],
                [*so_far, so_far[-1]],
                where="post",
                color=OBSERVED,
                label="best so far",
            )
        _points(axis, finished, "o", color=POSTERIOR, ms=size, label="finished")
        _points(axis, pruned, "X", color=_PRUNED, ms=size, mec="none", label="pruned")
        _points(axis, others, "o", color=POSTERIOR, mfc="white", ms=size, label="not ended")
        failed = [trial.number for trial in study.trials if trial.state == "failed"]
        if failed:
            axis.plot(
                failed,
                np.full(len(failed), 0.025),
                "|",
                ms=9,
                mew=1.6,
                color=REFERENCE,
                transform=axis.get_xaxis_transform(),
                label=f"failed ({len(failed)})",
            )
        if study.best is not None:
            _star(axis, study.best.number, study.best)
        _scale(axis, [trial.value or 0.0 for trial in valued])
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("trial")
        axis.set_title("Value of each trial", fontsize=9)
        axis.set_ylabel(f"{study.metric} ({_wanted(study)})")
        figure.legend(loc="outside right upper", fontsize=8)
    return figure


def learning_curves(study: Study) -> Figure | None:
    """The metric over the epochs of all trials; None if no trial has a curve."""
    drawn = [trial for trial in study.trials if any(is_finite(value) for _, value in trial.curve)]
    if not drawn:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        axis = figure.subplots()
        looks: dict[str, dict[str, Any]] = {
            "finished": {"color": POSTERIOR, "marker": "o"},
            "pruned": {"color": _PRUNED, "marker": "X", "zorder": 1.8},
            "failed": {"color": REFERENCE, "marker": "|", "ms": 8, "mew": 1.6},
            "not ended": {"color": POSTERIOR, "marker": "o", "mfc": "white", "ls": "--"},
        }
        alpha = float(np.clip(12 / len(drawn), 0.35, 0.9))
        best = study.best
        for label, look in looks.items():
            chosen = [t for t in drawn if (t.state if t.state in looks else "not ended") == label]
            for i, trial in enumerate(t for t in chosen if t is not best):
                epochs, values = np.array(trial.curve, dtype=float).T
                common: dict[str, Any] = {"lw": 0.9, "ms": 4, "alpha": alpha}
                if i == 0:
                    common["label"] = f"{label} ({len(chosen)})"
                axis.plot(epochs, values, markevery=[len(epochs) - 1], **common | look)
        if best is not None and best in drawn:
            epochs, values = np.array(best.curve, dtype=float).T
            axis.plot(epochs, values, color=OBSERVED, lw=2, label=f"best: trial {best.number}")
        _scale(axis, [value for trial in drawn for _, value in trial.curve])
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("epoch")
        axis.set_title("Learning curves of all trials", fontsize=9)
        axis.set_ylabel(f"{study.metric} ({_wanted(study)})")
        figure.legend(loc="outside right upper", fontsize=8)
    return figure


def importance_bars(found: Mapping[str, Importance]) -> Figure:
    """Importance of each parameter, beside what chance would give."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.9 + 0.3 * len(found)), layout="constrained")
        axis = figure.subplots()
        rows = np.arange(len(found))
        shares = [each.share for each in found.values()]
        chances = [each.by_chance for each in found.values()]
        tells = [each.share > each.by_chance for each in found.values()]
        colors = [POSTERIOR if told else "#b9cfdf" for told in tells]
        axis.barh(rows, shares, color=colors, height=0.62)
        axis.plot(
            chances,
            rows,
            "|",
            color="black",
            ms=12,
            mew=1.4,
            label="chance alone gives less, 19 times of 20",
        )
        for row, share, chance in zip(rows, shares, chances, strict=True):
            axis.annotate(
                f"{100 * share:.0f} %",
                (max(share, chance), row),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axis.set_yticks(rows, list(found))
        axis.invert_yaxis()
        axis.set_xlim(0, 1.12 * max([*shares, *chances]))
        axis.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
        axis.grid(axis="y", visible=False)
        axis.set_xlabel("share of the importance of all parameters")
        axis.set_title("How much a parameter decides whether a trial is among the best", fontsize=9)
        figure.legend(loc="outside lower right", fontsize=8)
    return figure


def parallel_coordinates(study: Study) -> Figure | None:
    """Each trial as a line over the axes of all parameters; None without values or parameters."""
    trials = [trial for trial in study.trials if is_finite(trial.value)]
    axes = parameters_of(study, trials)
    if not axes:
        return None
    sign = 1 if study.mode == "min" else -1
    trials.sort(key=lambda trial: -sign * (trial.value or 0.0))  # the best are drawn last
    norm, colors = _coloring(study, trials)
    with mpl.rc_context(STYLE):
        width = float(np.clip(2.2 + 1.15 * len(axes), 7.2, 14.0))
        figure = Figure(figsize=(width, 4.2), layout="constrained")
        axis = figure.subplots()
        axis.spines[:].set_visible(False)
        axis.grid(visible=False)
        axis.set(xticks=[], yticks=[])
        heights = np.stack([_heights(each, trials) for each in axes], axis=1)
        places = np.arange(len(axes) + 1)
        for i, trial in enumerate(trials):
            path = [*heights[i], float(norm(trial.value or 0.0))]
            best = trial is study.best
            axis.plot(
                places,
                path,
                color=colors(norm(trial.value or 0.0)),
                lw=2.4 if best else 1.1,
                alpha=1.0 if best else float(np.clip(30 / len(trials), 0.35, 0.85)),
                ls="-" if trial.state == "finished" else (0, (4, 2)),
            )
        for place, each in enumerate(axes):
            _draw_axis(
                axis, place, each, absent=any(each.path not in trial.parameters for trial in trials)
            )
        names = [each.path for each in axes]
        for place, name in enumerate([*names, f"{study.metric}\n({_wanted(study)})"]):
            axis.text(place, 1.08, name.replace(".", ".\n"), ha="center", va="bottom", fontsize=8)
        bar = axis.inset_axes((len(axes), 0, 0.1, 1), transform=axis.transData)
        figure.colorbar(ScalarMappable(norm, colors), cax=bar)
        _scale(bar, [trial.value or 0.0 for trial in trials])
        bar.yaxis.set_minor_formatter(NullFormatter())
        bar.tick_params(labelsize=8)
        axis.set_xlim(-0.3, len(axes) + 0.5)
        axis.set_ylim(_ABSENT - 0.05, 1.05)
        axis.set_title("Parameters and value of each trial", fontsize=9, pad=42)
    return figure


def _wanted(study: Study) -> str:
    return "lower is better" if study.mode == "min" else "higher is better"


def _points(axis: Axes, trials: Sequence[Trial], marker: str, label: str, **look: Any) -> None:
    """Values by number, with their standard errors."""
    if not trials:
        return
    axis.errorbar(
        [trial.number for trial in trials],
        [trial.value or 0.0 for trial in trials],
        yerr=[trial.error or 0.0 for trial in trials],
        fmt=marker,
        elinewidth=0.8,
        label=f"{label} ({len(trials)})",
        **look,
    )


def _star(axis: Axes, x: float, best: Trial) -> None:
    label = f"best: trial {best.number}, {best.value:.3g}"
    axis.plot(x, best.value or 0.0, "*", ms=12, color=OBSERVED, mec="white", zorder=5, label=label)


def _scale(axis: Axes, values: Iterable[float]) -> None:
    """A logarithmic axis for positive values that span more than a decade."""
    finite = np.array([value for value in values if is_finite(value)])
    if finite.min() > 0 and finite.max() > 10 * finite.min():
        axis.set_yscale("log")
        if finite.max() < 1e3 * finite.min():
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axis.yaxis.set_major_formatter("{x:g}")


def _coloring(study: Study, trials: Sequence[Trial]) -> tuple[Normalize, Colormap]:
    """Values to heights on the last axis, and these to colours: the best is the darkest."""
    values = np.array([trial.value for trial in trials])
    low, high = values.min(), values.max()
    if low == high:  # the only value is in the middle
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    norm = LogNorm(low, high) if 0 < 10 * low < high else Normalize(low, high)
    # Without its brightest part, which is hard to see on white.
    shades = mpl.colormaps[SEQUENTIAL](np.linspace(0, 0.92, 256))
    return norm, ListedColormap(shades if study.mode == "min" else shades[::-1])


def _heights(axis: Parameter, trials: Sequence[Trial]) -> np.ndarray:
    """Where the trials cross an axis; those of equal values next to each other, in their order."""
    heights = np.full(len(trials), _ABSENT)
    for i, trial in enumerate(trials):
        if axis.path in trial.parameters:
            heights[i] = axis.position(trial.parameters[axis.path])
    slots = len(axis.categories) or (axis.high - axis.low + 1 if axis.integer else 0)
    if 0 < slots <= _SLOTS:
        for height in np.unique(heights):
            (equal,) = np.nonzero(heights == height)
            spread = min(0.04, 0.25 / slots)
            heights[equal] += np.linspace(-spread, spread, len(equal) + 2)[1:-1]
    return heights


def _draw_axis(axis: Axes, place: int, of: Parameter, *, absent: bool) -> None:
    """The line of a parameter with its marks."""
    axis.plot([place, place], [0, 1], color="black", lw=0.9, zorder=3)
    marks = [(of.position(value), _shortened(value)) for value in _ticks(of)]
    if absent:
        marks.append((_ABSENT, "-"))
    outline = [withStroke(linewidth=3.5, foreground="white")]
    for height, label in marks:
        axis.plot([place, place - 0.03], [height, height], color="black", lw=0.9, zorder=3)
        axis.text(
            place - 0.06,
            height,
            label,
            ha="right",
            va="center",
            fontsize=7.5,
            zorder=4,
            path_effects=outline,
        )


def _ticks(of: Parameter) -> list[Any]:
    """Values that are marked on an axis: its ends, and round ones between."""
    if of.categories:
        return list(of.categories)
    if of.low == of.high:
        return [of.low]
    if of.log:
        found = LogLocator(numticks=6).tick_values(of.low, of.high)
    else:
        found = MaxNLocator(5, integer=of.integer).tick_values(of.low, of.high)
    inner = [t for t in found if (0.06 < of.position(t) < 0.94 and t > 0) or not of.log]
    return [of.low, *(t for t in inner if 0.06 < of.position(t) < 0.94), of.high]


def _shortened(value: Any) -> str:
    text = spelled(value) if isinstance(value, str | int) else f"{value:.4g}"
    return text if len(text) <= _LETTERS else text[: _LETTERS - 1] + "…"
