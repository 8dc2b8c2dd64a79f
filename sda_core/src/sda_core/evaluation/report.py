"""The report of a run: figures and one HTML page."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jinja2
from torch import Tensor

from sda_core import figures
from sda_core.config import dump_toml, unstructure
from sda_core.evaluation.denoiser import VARIABLE_SCORES, Denoised, denoising_scores
from sda_core.evaluation.metrics import rank_histogram, spread_skill_curve
from sda_core.evaluation.scores import SCORES
from sda_core.evaluation.verification import OBSERVATION_SCORES
from sda_core.experiment import Run
from sda_core.figures import Picture
from sda_core.figures.denoiser import denoising_pictures
from sda_core.io.files import write_text
from sda_core.method import Problem
from sda_core.system import SystemSpec

Scores = Mapping[str, Mapping[str, float]]

_LABELS = SCORES | OBSERVATION_SCORES

#: Smaller ensembles have too few ranks to tell whether they are calibrated.
_CALIBRATION_MEMBERS = 8


def write_report(
    run: Run,
    problem: Problem,
    ensembles: Mapping[str, Tensor],
    scores: Scores,
    denoised: Sequence[Denoised] = (),
) -> None:
    """Write ``figures/`` and ``report.html``.

    Args:
        run: The run.
        problem: The problem.
        ensembles: Ensembles in physical units: ``posterior`` and, if there are any, ``baseline``
            and ``reference``.
        scores: Scores by name for each ensemble.
        denoised: What the run's model makes of held-out windows.
    """
    spec = problem.system.spec

    def saved(made: Iterable[Picture]) -> list[tuple[str, Picture]]:
        return [(picture.save(run.directory / "figures").name, picture) for picture in made]

    given = run.manager.call("sda_figures", saved, run=run, problem=problem, ensembles=ensembles)
    pictures = [picture for more in given for picture in more]
    if not pictures and len(spec.axes) == 2:
        pictures = saved(figures.variable_pictures(problem, ensembles["posterior"]))
    pictures += saved(_pictures(run, problem, ensembles))
    names = {}
    if run.experiment.evaluate.baseline is not None:
        _, names["baseline"] = run.manager.name_of(type(run.experiment.evaluate.baseline))
    page = _TEMPLATE.render(
        title=run.experiment.title or str(run.directory),
        columns=[names.get(column, column) for column in scores],
        rows=score_rows(scores),
        statuses=_status_rows(problem),
        variables=spec.variable_names,
        pictures=pictures,
        model_pictures=saved(_model_pictures(run, denoised, spec)),
        model_columns=list(VARIABLE_SCORES.values()),
        model_rows=_model_rows(denoised, spec.variable_names),
        noise_levels=", ".join(f"{each.level:g}" for each in denoised),
        config=dump_toml(unstructure(run.experiment, manager=run.manager)),
        provenance=json.dumps(run.provenance(), indent=2),
        baseline=names.get("baseline") if "baseline" in scores else None,
        reference="reference" in scores,
    )
    write_text(run.directory / "report.html", page)


def _pictures(run: Run, problem: Problem, ensembles: Mapping[str, Tensor]) -> Iterator[Picture]:
    """What is shown of every system."""
    posterior, reference = ensembles["posterior"], ensembles.get("reference")
    axes = problem.system.spec.axes
    yield Picture(
        name="posterior",
        caption="Each variable over time. The band holds 90 % of the members; dashed lines hold "
        "90 % of the reference.",
        figure=figures.posterior_series(problem, ensembles),
    )
    if not axes:
        yield Picture(
            name="members",
            caption="Single members: each is a trajectory that the data allow.",
            figure=figures.members(problem, posterior, reference),
        )
    if len(axes) == 1:
        yield Picture(
            name="fields",
            caption="Truth, mean and spread.",
            figure=figures.fields(problem, posterior),
        )
    yield Picture(
        name="observations",
        caption="Left: what was observed, and what the members say of it. Right: the misfit in "
        "units of the noise; that of a calibrated posterior is N(0, 1), on average over many "
        "observations.",
        figure=figures.observations(problem, posterior),
    )
    if problem.truth is not None and len(posterior) >= _CALIBRATION_MEMBERS:
        yield Picture(
            name="rank-histogram",
            caption="Rank of the truth among the members, over all times, variables and places. "
            "U-shaped: the members are too sure. A hump: not sure enough. A slope: biased.",
            figure=figures.rank_histogram_figure(rank_histogram(posterior, problem.truth)),
        )
        yield Picture(
            name="spread-skill",
            caption="Where the members disagree more, the mean should be wrong by as much. Above "
            "the diagonal they are too sure.",
            figure=figures.spread_skill_figure(*spread_skill_curve(posterior, problem.truth)),
        )


def _model_pictures(run: Run, denoised: Sequence[Denoised], spec: SystemSpec) -> Iterator[Picture]:
    """What is shown of the run's model."""
    if denoised:
        yield from denoising_pictures(denoised, spec)
    loss = figures.learning_curve(run.directory / "metrics.jsonl")
    if loss is not None:
        yield Picture(name="learning-curve", caption="Denoising loss.", figure=loss)


def _model_rows(
    denoised: Sequence[Denoised], variables: Sequence[str]
) -> list[tuple[str, list[str]]]:
    """Scores of the denoiser, by variable."""
    scores = denoising_scores(denoised)
    return [
        (name, [_number(scores.get(f"{score}/{name}", math.nan)) for score in VARIABLE_SCORES])
        for name in (variables if denoised else ())
    ]


def score_rows(scores: Scores) -> list[tuple[str, list[str]]]:
    """Rows of a table of scores: what it is, and its value for each ensemble."""
    given = dict.fromkeys(key for values in scores.values() for key in values)
    rows = []
    for key in sorted(given, key=_position):
        values = [s.get(key) for s in scores.values()]
        label = _LABELS.get(key, key.replace("_", " "))
        rows.append((label, ["" if v is None else _number(v) for v in values]))
    return rows


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def _position(key: str) -> int:
    """The core's scores in their order, then those of plugins."""
    return list(_LABELS).index(key) if key in _LABELS else len(_LABELS)


def _status_rows(problem: Problem) -> list[tuple[str, list[int]]]:
    """Numbers of the observations of a table by status: of each variable, and of all."""
    if problem.matched is None:
        return []
    frame, names = problem.matched.frame, problem.system.spec.variable_names
    rows = []
    for status, count in problem.matched.counts.items():
        of = frame["variable"][frame["status"] == status]
        rows.append((status, [*(int((of == name).sum()) for name in names), count]))
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
{% if baseline %}<p>"{{ baseline }}" is a baseline: a simple method on the same observations.</p>
{% endif %}
{% if reference %}<p>W1 is the distance to one run of the reference method; the column "reference"
is a second, independent run of it, so its W1 is what a perfect posterior of this size would
have.</p>{% endif %}
{% if statuses %}<h2>Observations</h2>
<table>
<tr><th></th>{% for v in variables %}<th>{{ v }}</th>{% endfor %}<th>all</th></tr>
{% for status, counts in statuses %}
<tr><td>{{ status }}</td>{% for n in counts %}<td>{{ n }}</td>{% endfor %}</tr>
{% endfor %}
</table>
<p>Each one with its status, and what the posterior says of it, stands in
<code>observations.csv</code>. Withheld observations were not used, so that they can tell how good
the posterior is: their chi-square should be near 1, and of those used it is less.</p>{% endif %}
<h2>Figures</h2>
{% for file, picture in pictures %}
<figure><img src="figures/{{ file }}" alt="{{ picture.name }}">
<figcaption>{{ picture.caption }}</figcaption></figure>
{% endfor %}
{% if model_pictures %}<h2>Model</h2>{% endif %}
{% if model_rows %}<table>
<tr><th></th>{% for c in model_columns %}<th>{{ c }}</th>{% endfor %}</tr>
{% for label, values in model_rows %}
<tr><td>{{ label }}</td>{% for v in values %}<td>{{ v }}</td>{% endfor %}</tr>
{% endfor %}
</table>
<p>Errors of the denoised state on held-out windows, averaged over the noise levels
{{ noise_levels }} (in units of the states' spread).</p>{% endif %}
{% for file, picture in model_pictures %}
<figure><img src="figures/{{ file }}" alt="{{ picture.name }}">
<figcaption>{{ picture.caption }}</figcaption></figure>
{% endfor %}
<h2>How it was made</h2>
<details><summary>Configuration</summary><pre>{{ config }}</pre></details>
<details><summary>Provenance</summary><pre>{{ provenance }}</pre></details>
</html>
""")
