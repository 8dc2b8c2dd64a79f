"""What a study leaves for people to read."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import jinja2

from sda_core.figures import Picture
from sda_core.io.files import write_text
from sda_core.io.progress import duration_text
from sda_ray import figures as draw
from sda_ray.importance import FEWEST_TRIALS, Importance, importance
from sda_ray.parameters import parameters_of, spelled
from sda_ray.study import State, Study, Trial, is_finite

#: States in the order of the tables.
_STATES: tuple[State, ...] = ("finished", "pruned", "running", "stopped", "failed")

_NO_IMPORTANCE = (
    f"The importance of parameters is not told: that needs {FEWEST_TRIALS} trials with a value, "
    "which are not all equal, and a parameter that varies."
)


def write_summary(study: Study, directory: str | Path, figures: bool = True) -> Path:
    """Write ``study.json``, ``summary.md``, ``summary.html`` and ``figures/``, and link ``best``.

    Args:
        study: The study.
        directory: Its directory.
        figures: Whether figures are drawn; they take seconds.

    Returns:
        The path of ``summary.html``, which needs no other file and no network.
    """
    directory = Path(directory)
    study.save(directory)
    found = importance(study)
    pictures = [
        (picture, base64.b64encode(picture.save(directory / "figures").read_bytes()).decode())
        for picture in (_pictures(study, found) if figures else ())
    ]
    header, rows = _table(study)
    pages = {trial.number: _pages(directory, trial) for trial in study.trials}
    shown = {
        "study": study,
        "best": study.best,
        "number": _number,
        "spelled": spelled,
        "facts": _facts(study),
        "importance": found,
        "no_importance": _NO_IMPORTANCE,
        "pages": pages,
        "header": header,
        "rows": rows,
    }
    write_text(directory / "summary.md", _MARKDOWN.render(shown))
    page = _PAGE.render(
        shown,
        pictures=pictures,
        metrics=list(dict.fromkeys(name for trial in study.trials for name in trial.metrics)),
        settings=json.dumps(study.settings, indent=2),
        versions=json.dumps(study.versions, indent=2),
    )
    write_text(directory / "summary.html", page)
    if study.best is not None:
        _link(directory / "best", study.best.directory)
    return directory / "summary.html"


def _pictures(study: Study, found: dict[str, Importance]) -> Iterator[Picture]:
    history = draw.history(study)
    if history is not None:
        yield Picture(
            name="history",
            caption="Each trial by its number. A pruned one has the best value that it had until "
            "then; bars are standard errors over observation sets, where there are several.",
            figure=history,
        )
    curves = draw.learning_curves(study)
    if curves is not None:
        yield Picture(
            name="learning-curves",
            caption="All trials over their epochs; pruned ones end early.",
            figure=curves,
        )
    if found:
        yield Picture(
            name="importance",
            caption="How differently a parameter is spread in the best trials and in all of them "
            "(PED-ANOVA). Pale bars are not longer than chance alone would make them: they tell "
            "nothing, which with few trials is usual.",
            figure=draw.importance_bars(found),
        )
    coordinates = draw.parallel_coordinates(study)
    if coordinates is not None:
        yield Picture(
            name="parallel-coordinates",
            caption="Each line is a trial with a value, the best one thick; dashed ones did not "
            'finish. "-": the trial has no such parameter. Lines of equal choices or whole numbers '
            "lie next to each other.",
            figure=coordinates,
        )


def _facts(study: Study) -> list[str]:
    """The study in sentences."""
    counts = ", ".join(f"{study.counts[s]} {s}" for s in _STATES if s in study.counts)
    wanted = "lower" if study.mode == "min" else "higher"
    facts = [
        f"{len(study.trials)} trials ({counts or 'none yet'}) in {duration_text(study.seconds)}; "
        f"the metric is {study.metric} (stage {study.stage}), {wanted} is better."
    ]
    planned = sum(trial.planned_epochs or 0 for trial in study.trials)
    if planned:
        facts.append(
            f"Pruning saved {study.epochs_saved} of {planned} epochs "
            f"({100 * study.epochs_saved / planned:.0f} %)."
        )
    if study.resumed:
        facts.append(f"It was resumed {study.resumed} time{'s' * (study.resumed > 1)}.")
    if study.best is None:
        facts.append("No trial finished with a finite value, so there is no best one.")
    return facts


def _table(study: Study) -> tuple[list[str], list[tuple[Trial, list[str]]]]:
    """The table of all trials, the best first: its header, and its cells but the number."""
    paths = [axis.path for axis in parameters_of(study, study.trials)]
    with_epochs = any(trial.planned_epochs is not None for trial in study.trials)
    header = ["state", study.metric, *(["epochs"] if with_epochs else []), *paths, "time", "cause"]
    sign = 1 if study.mode == "min" else -1

    def place(trial: Trial) -> tuple[int, bool, float, int]:
        value = sign * (trial.value or 0.0) if is_finite(trial.value) else 0.0
        return _STATES.index(trial.state), not is_finite(trial.value), value, trial.number

    rows = []
    for trial in sorted(study.trials, key=place):
        value = _number(trial.value) + ("" if trial.error is None else f" ± {trial.error:.2g}")
        epochs = [f"{trial.epochs or 0}/{trial.planned_epochs}"] if with_epochs else []
        values = [spelled(trial.parameters[p]) if p in trial.parameters else "-" for p in paths]
        time = duration_text(trial.seconds)
        rows.append((trial, [trial.state, value, *epochs, *values, time, trial.cause or ""]))
    return header, rows


def _pages(directory: Path, trial: Trial) -> dict[str, str]:
    """What there is to look at of a trial, and where."""
    there = {"report": "report.html", "figures": "figures"}
    return {
        name: f"{trial.directory}/{path}"
        for name, path in there.items()
        if (directory / trial.directory / path).exists()
    }


def _number(value: float | None) -> str:
    return f"{value:.4g}" if value is not None and is_finite(value) else "-"


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


_ENVIRONMENT = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
_ENVIRONMENT.filters["cell"] = _cell

_MARKDOWN = _ENVIRONMENT.from_string("""\
# {{ study.title | cell }}

{% for fact in facts %}
- {{ fact | cell }}
{% endfor %}
{% if best %}

## Best trial

[Trial {{ best.number }}]({{ best.directory }}/): {{ study.metric | cell }} = \
{{ number(best.value) }}{% if best.error is not none %} ± {{ "%.2g" | format(best.error) }}\
{% endif %}


{% for path, value in best.parameters.items() %}
- `{{ path }}` = {{ spelled(value) | cell }}
{% endfor %}
{% if best.metrics %}

| metric | value |
| --- | --- |
{% for name, value in best.metrics.items() %}
| {{ name | cell }} | {{ number(value) }} |
{% endfor %}
{% endif %}
{% endif %}

## Importance of parameters

{% if importance %}
| parameter | share | chance alone gives, at most |
| --- | --- | --- |
{% for path, each in importance.items() %}
| {{ path | cell }} | {{ "%.0f" | format(100 * each.share) }} % | \
{{ "%.0f" | format(100 * each.by_chance) }} % |
{% endfor %}
{% else %}
{{ no_importance }}
{% endif %}

## All trials

| trial |{% for name in header %} {{ name | cell }} |{% endfor %}

| --- |{% for name in header %} --- |{% endfor %}

{% for trial, cells in rows %}
| [{{ trial.number }}]({{ trial.directory }}/)\
{% for name, path in pages[trial.number].items() %} [{{ name }}]({{ path }}){% endfor %} |\
{% for cell in cells %} {{ cell | cell }} |\
{% endfor %}

{% endfor %}
""")

_PAGE = _ENVIRONMENT.overlay(autoescape=True).from_string("""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ study.title }}</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
         padding: 0 1rem; color: #1a1a1a; }
  h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
  .wide { overflow-x: auto; } .wide table { font-size: .85rem; }
  table { border-collapse: collapse; } th, td { padding: .25rem 1.2rem .25rem 0; }
  th { text-align: left; border-bottom: 1px solid #999; vertical-align: bottom; }
  td { vertical-align: top; white-space: nowrap; font-variant-numeric: tabular-nums; }
  .cause { white-space: normal; min-width: 16rem; }
  .best { font-weight: 600; } .pruned { color: #666; } .failed { color: #a44400; }
  figure { margin: 1.5rem 0; } img { max-width: 100%; } figcaption { color: #555; }
  pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: .85rem; }
  summary { cursor: pointer; margin: .6rem 0; }
</style>
<h1>{{ study.title }}</h1>
{% for fact in facts %}
<p>{{ fact }}</p>
{% endfor %}
{% if best %}
<h2>Best trial</h2>
<p><a href="{{ best.directory }}/">Trial {{ best.number }}</a>\
{% for name, path in pages[best.number].items() %}, <a href="{{ path }}">{{ name }}</a>\
{% endfor %}: {{ study.metric }} =
{{ number(best.value) }}{% if best.error is not none %} ± {{ "%.2g" | format(best.error) }}\
{% endif %}</p>
<table>
{% for path, value in best.parameters.items() %}
<tr><td>{{ path }}</td><td>{{ spelled(value) }}</td></tr>
{% endfor %}
</table>
{% endif %}
{% if pictures %}
<h2>Figures</h2>
{% for picture, data in pictures %}
<figure><img src="data:image/png;base64,{{ data }}" alt="{{ picture.name }}">
<figcaption>{{ picture.caption }}</figcaption></figure>
{% endfor %}
{% endif %}
{% if not importance %}
<p>{{ no_importance }}</p>
{% endif %}
<h2>All trials</h2>
<div class="wide"><table>
<tr><th>trial</th>{% for name in header %}<th>{{ name }}</th>{% endfor %}</tr>
{% for trial, cells in rows %}
<tr class="{{ "best" if trial is sameas best else trial.state }}">
<td><a href="{{ trial.directory }}/">{{ trial.number }}</a>\
{% for name, path in pages[trial.number].items() %} <a href="{{ path }}">{{ name }}</a>\
{% endfor %}</td>\
{% for cell in cells %}<td{% if loop.last %} class="cause"{% endif %}>{{ cell }}</td>{% endfor %}
</tr>
{% endfor %}
</table></div>
{% if metrics %}
<details><summary>All metrics</summary><div class="wide"><table>
<tr><th>trial</th>{% for name in metrics %}<th>{{ name }}</th>{% endfor %}</tr>
{% for trial, _ in rows %}
<tr><td>{{ trial.number }}</td>\
{% for name in metrics %}<td>{{ number(trial.metrics.get(name)) }}</td>{% endfor %}</tr>
{% endfor %}
</table></div></details>
{% endif %}
<h2>How it was made</h2>
<details><summary>Settings</summary><pre>{{ settings }}</pre></details>
<details><summary>Versions</summary><pre>{{ versions }}</pre></details>
</html>
""")
