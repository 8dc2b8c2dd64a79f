"""The report of a run: figures and one HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jinja2
from torch import Tensor

from sda_core import figures
from sda_core.config import dump_toml, unstructure
from sda_core.evaluation import SCORES
from sda_core.files import write_text
from sda_core.method import Problem
from sda_core.rundir import Run

Scores = Mapping[str, Mapping[str, float]]


def write_report(
    run: Run, problem: Problem, posterior: Tensor, reference: Tensor | None, scores: Scores
) -> None:
    """Write ``figures/`` and ``report.html``.

    Args:
        run: The run.
        problem: The problem.
        posterior: Posterior ensemble, physical units.
        reference: Reference ensemble, if there is one.
        scores: Scores by name for each ensemble.
    """
    spec = problem.system.spec
    made: list[tuple[str, str, Any]] = [
        (
            "posterior",
            "Each variable over time. The band holds 90 % of the members; dashed lines hold 90 % "
            "of the reference.",
            figures.posterior_series(problem, posterior, reference),
        ),
        (
            "observations",
            "Left: what was observed, and what the members say of it. Right: the misfit in units "
            "of the noise; a calibrated posterior fits its observations a little more closely than "
            "N(0, 1).",
            figures.observations(problem, posterior),
        ),
        (
            "learning-curve",
            "Denoising loss.",
            figures.learning_curve(run.directory / "metrics.jsonl"),
        ),
    ]
    if len(spec.axes) == 1:
        made.insert(1, ("fields", "Truth, mean and spread.", figures.fields(problem, posterior)))
    if not spec.axes:
        caption = "Single members: each is a trajectory that the data allow."
        made.insert(1, ("members", caption, figures.members(problem, posterior, reference)))
    pictures = []
    for name, caption, figure in made:
        if figure is not None:
            figures.save(figure, run.directory / "figures" / f"{name}.png")
            pictures.append((f"figures/{name}.png", name, caption))
    page = _TEMPLATE.render(
        title=run.experiment.title or str(run.directory),
        columns=list(scores),
        rows=score_rows(scores),
        pictures=pictures,
        config=dump_toml(unstructure(run.experiment, manager=run.manager)),
        provenance=json.dumps(run.provenance(), indent=2),
        reference=run.experiment.evaluate.reference is not None,
    )
    write_text(run.directory / "report.html", page)


def score_rows(scores: Scores) -> list[tuple[str, list[str]]]:
    """Rows of a table of scores: what it is, and its value for each ensemble."""
    rows = []
    for key, label in SCORES.items():
        values = [s.get(key) for s in scores.values()]
        if any(v is not None for v in values):
            rows.append((label, ["" if v is None else f"{v:.3g}" for v in values]))
    return rows


_TEMPLATE = jinja2.Environment(autoescape=True).from_string("""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
         padding: 0 1rem; color: #1a1a1a; }
  h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
  table { border-collapse: collapse; } th, td { padding: .25rem 1.2rem .25rem 0; }
  th { text-align: left; border-bottom: 1px solid #999; }
  td + td { font-variant-numeric: tabular-nums; }
  figure { margin: 1.5rem 0; } img { max-width: 100%; } figcaption { color: #555; }
  pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: .85rem; }
  summary { cursor: pointer; margin: .6rem 0; }
</style>
<h1>{{ title }}</h1>
<h2>Scores</h2>
<table>
<tr><th></th>{% for c in columns %}<th>{{ c }}</th>{% endfor %}</tr>
{% for label, values in rows %}
<tr><td>{{ label }}</td>{% for v in values %}<td>{{ v }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% if reference %}<p>W1 is the distance to one run of the reference method; the column "reference"
is a second, independent run of it, so its W1 is what a perfect posterior of this size would
have.</p>{% endif %}
<h2>Figures</h2>
{% for path, name, caption in pictures %}
<figure><img src="{{ path }}" alt="{{ name }}"><figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
<h2>How it was made</h2>
<details><summary>Configuration</summary><pre>{{ config }}</pre></details>
<details><summary>Provenance</summary><pre>{{ provenance }}</pre></details>
</html>
""")
