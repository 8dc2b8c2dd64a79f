"""What a study leaves for people to read: ``summary.html``, ``summary.md`` and ``figures/``."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
import optuna.visualization.matplotlib as optuna_plots
from matplotlib.figure import Figure
from optuna.trial import TrialState

from sda_core.figures import POSTERIOR, STYLE, Picture
from sda_core.io.files import write_text
from sda_core.io.progress import duration_text
from sda_ray.tune.importance import FEWEST_TRIALS, Importance, importance
from sda_ray.tune.study import State, Study, TrialRecord

#: States in the order of the tables.
_STATES: tuple[State, ...] = ("finished", "pruned", "running", "stopped", "failed")
_NO_IMPORTANCE = (
    f"The importance of parameters is not told: that needs {FEWEST_TRIALS} trials with a value, "
    "which are not all equal, and a parameter that varies."
)


def write_report(study: Study, directory: str | Path, figures: bool = True) -> Path:
    """Write the summaries and figures of a study, and link its best trial.

    Args:
        study: The study.
        directory: Its directory.
        figures: Whether figures are drawn; they take seconds.

    Returns:
        The path of ``summary.html``, which needs no other file and no network.
    """
    directory, trials, best = Path(directory), study.trials, study.best
    found = importance(study)
    with warnings.catch_warnings(), mpl.rc_context():
        warnings.simplefilter("ignore")  # Optuna's are experimental, and of few trials bare
        pictures = [
            (picture, base64.b64encode(picture.save(directory / "figures").read_bytes()).decode())
            for picture in (_pictures(study, found) if figures else ())
        ]
    header, rows = _table(study, trials)
    shown = {
        "study": study,
        "best": best,
        "number": _number,
        "format_value": format_value,
        "facts": _facts(study, trials),
        "importance": found,
        "no_importance": _NO_IMPORTANCE,
        "pages": {trial.number: _pages(directory, trial) for trial in trials},
        "header": header,
        "rows": rows,
        "pictures": pictures,
        "metrics": list(dict.fromkeys(name for trial in trials for name in trial.metrics)),
        "settings": json.dumps(study.settings, indent=2),
        "versions": json.dumps(study.versions, indent=2),
    }
    for name, escape in (("summary.md", False), ("summary.html", True)):
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("sda_ray.tune", ""),
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=escape,
        )
        environment.filters["cell"] = _cell
        template = environment.get_template(f"{name}.jinja")
        write_text(directory / name, template.render(shown))
    if best is not None:
        _link(directory / "best", best.directory)
    return directory / "summary.html"


def _pictures(study: Study, found: dict[str, Importance]) -> Iterator[Picture]:
    known = study.optuna.get_trials(deepcopy=False)
    finished = [trial for trial in known if trial.state == TrialState.COMPLETE]
    named = {"target_name": study.metric}
    if finished:
        figure = _figure_of(optuna_plots.plot_optimization_history(study.optuna, **named))
        yield Picture(name="history", caption="Each finished trial by its number.", figure=figure)
    if any(trial.intermediate_values for trial in known):
        caption = "All trials over their epochs; pruned ones end early."
        figure = _figure_of(optuna_plots.plot_intermediate_values(study.optuna))
        yield Picture(name="learning-curves", caption=caption, figure=figure)
    if found:
        caption = (
            "How differently a parameter is spread in the best trials and in all of them "
            "(PED-ANOVA). Pale bars are not longer than chance alone would make them: they tell "
            "nothing, which with few trials is usual."
        )
        yield Picture(name="importance", caption=caption, figure=importance_bars(found))
    common = set.intersection(*(set(trial.params) for trial in finished)) if finished else None
    if len(finished) > 1 and common:
        caption = "Each line is a finished trial, over the parameters that all of them have."
        draw = optuna_plots.plot_parallel_coordinate
        figure = _figure_of(draw(study.optuna, params=sorted(common), **named))
        yield Picture(name="parallel-coordinates", caption=caption, figure=figure)


def _figure_of(axes: Any) -> Figure:
    """The figure that Optuna has drawn, which pyplot then forgets."""
    from matplotlib import pyplot

    figure: Figure = np.ravel(axes)[0].figure
    pyplot.close(figure)
    return figure


def importance_bars(found: dict[str, Importance]) -> Figure:
    """Importance of each parameter, beside what chance would give."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.9 + 0.3 * len(found)), layout="constrained")
        axis = figure.subplots()
        shares = [each.share for each in found.values()]
        chances = [each.by_chance for each in found.values()]
        colors = [POSTERIOR if s > c else "#b9cfdf" for s, c in zip(shares, chances, strict=True)]
        bars = axis.barh(list(found), shares, color=colors, height=0.62)
        axis.bar_label(bars, [f"{100 * share:.0f} %" for share in shares], padding=4, fontsize=8)
        label = "chance alone gives less, 19 times of 20"
        axis.plot(chances, list(found), "|", color="black", ms=12, mew=1.4, label=label)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.12 * max([*shares, *chances]))
        axis.set_xlabel("share of the importance of all parameters")
        figure.legend(loc="outside lower right", fontsize=8)
    return figure


def _facts(study: Study, trials: list[TrialRecord]) -> list[str]:
    """The study in sentences."""
    states = study.counts
    counts = ", ".join(f"{states[s]} {s}" for s in _STATES if s in states)
    wanted = "lower" if study.mode == "min" else "higher"
    facts = [
        f"{len(trials)} trials ({counts or 'none yet'}) in {duration_text(study.seconds)}; "
        f"the metric is {study.metric} (stage {study.stage}), {wanted} is better."
    ]
    if planned := sum(trial.planned_epochs or 0 for trial in trials):
        saved = study.epochs_saved
        facts.append(f"Pruning saved {saved} of {planned} epochs ({100 * saved / planned:.0f} %).")
    if study.resumed:
        facts.append(f"It was resumed {study.resumed} time{'s' * (study.resumed > 1)}.")
    if study.best is None:
        facts.append("No trial finished with a finite value, so there is no best one.")
    return facts


def _table(
    study: Study, trials: list[TrialRecord]
) -> tuple[list[str], list[tuple[TrialRecord, list[str]]]]:
    """The table of all trials, the best first: its header, and its cells but the number."""
    space = study.settings["space"]
    paths = [path for path in space if any(path in trial.parameters for trial in trials)]
    with_epochs = any(trial.planned_epochs is not None for trial in trials)
    header = ["state", study.metric, *(["epochs"] if with_epochs else []), *paths, "time", "cause"]
    sign = 1 if study.mode == "min" else -1

    def place(trial: TrialRecord) -> tuple[int, bool, float, int]:
        state = _STATES.index(trial.state)
        return state, trial.value is None, sign * (trial.value or 0.0), trial.number

    rows = []
    for trial in sorted(trials, key=place):
        value = _number(trial.value) + ("" if trial.error is None else f" ± {trial.error:.2g}")
        epochs = [f"{trial.epochs or 0}/{trial.planned_epochs}"] if with_epochs else []
        values = [
            format_value(trial.parameters[p]) if p in trial.parameters else "-" for p in paths
        ]
        took = duration_text(trial.seconds)
        rows.append((trial, [trial.state, value, *epochs, *values, took, trial.cause or ""]))
    return header, rows


def _pages(directory: Path, trial: TrialRecord) -> dict[str, str]:
    """What there is to look at of a trial, and where: predictions are among it."""
    folder = directory / trial.directory
    predictions = sorted(path.name for path in folder.glob("*.nc"))
    names = ("report.html", "figures", "metrics.json", *predictions)
    there = [name for name in names if (folder / name).exists()]
    return {Path(name).stem: f"{trial.directory}/{name}" for name in there}


def format_value(value: Any) -> str:
    """A value as text."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value)


def _number(value: float | None) -> str:
    return f"{value:.4g}" if value is not None and math.isfinite(value) else "-"


def _link(path: Path, target: str) -> None:
    """Let a relative link point elsewhere, at once."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with suppress(OSError):  # some file systems have no links; the summaries name the trial too
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.replace(path)


def _cell(text: str) -> str:
    """Text as it is, in one cell of a Markdown table."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split()))
