"""What a trial of inference does: it infers and scores trajectories of the test split.

Those of all trials are compared with the same reference ensembles, drawn before the first one.
"""

from __future__ import annotations

import json
import statistics
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sda_core import stages
from sda_core.errors import StoppedError, SweepError
from sda_core.evaluation.denoiser import variable_scores
from sda_core.evaluation.scores import evaluate_ensemble, plugin_scores
from sda_core.experiment import Experiment, Run
from sda_core.io import xarray as xarray_io
from sda_core.io.files import replace_file, write_text
from sda_core.io.progress import ProgressOption, reporting
from sda_core.random import seeded_generator
from sda_core.stages.assimilation import infer
from sda_core.stages.common import POSTERIOR, REFERENCE, stream
from sda_ray.cluster import Ray
from sda_ray.tune.callbacks import Report, StopFlag
from sda_ray.tune.context import TrialContext


def no_metric(metric: str, there: Mapping[str, Any]) -> str:
    """The message that there is no such metric."""
    return f"sweep.metric = {metric!r} is no metric of this experiment: it has {', '.join(there)}"


def assimilate_sets(
    context: TrialContext, number: int, experiment: Experiment, report: Report, flag: StopFlag
) -> dict[str, Any]:
    """Infer all observation sets of a trial, or those that are missing."""
    directory, metric = context.trial(number), context.sweep.metric
    Run(experiment, directory).write_config()
    path = directory / "sets.json"
    done: list[dict[str, float]] = json.loads(path.read_text()) if path.is_file() else []
    for index in range(context.sweep.observation_sets):
        if index == len(done):
            done.append(_scores(context, experiment, directory, index, flag))
            write_text(path, json.dumps(done, indent=1) + "\n")
            context.upload(number)
        means = _means(done[: index + 1])
        report(index + 1, means[metric], means)
    values = [scores[metric] for scores in done]
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return {"value": statistics.fmean(values), "error": error, "metrics": _means(done)}


def _means(done: list[dict[str, float]]) -> dict[str, float]:
    names = [name for name in done[0] if all(name in scores for scores in done)]
    return {name: statistics.fmean(scores[name] for scores in done) for name in names}


def _scores(
    context: TrialContext, experiment: Experiment, directory: Path, number: int, flag: StopFlag
) -> dict[str, float]:
    """Infer the trajectory of one observation set, and score the ensemble."""
    run = Run(context.observed(experiment, number), directory, progress=False)
    problem = stages.make_problem(run)
    x = infer(
        run,
        experiment.require("method", "assimilation"),
        problem,
        experiment.assimilate.members,
        stream(experiment.seed, POSTERIOR),
        lambda step, steps: flag.check(),
    )
    if context.sweep.predictions:
        array = xarray_io.trajectories(x, problem.system.spec).rename("posterior")
        xarray_io.save(array, directory / f"posterior-{number}.nc")
    reference = None
    if context.reference(number).is_file():
        reference = xarray_io.load_array(context.reference(number), "sweep")
    scores = evaluate_ensemble(problem, x, reference)
    scores |= plugin_scores(run.manager, problem, x)
    assert problem.truth is not None  # since it is a trajectory of the test split
    scores |= variable_scores(problem.system.spec.variable_names, x.mean(0), problem.truth)
    if context.sweep.metric not in scores:
        raise SweepError(no_metric(context.sweep.metric, scores))
    if number == 0:
        ensembles = {"posterior": x} | ({} if reference is None else {"reference": reference})
        try:
            from sda_core.evaluation.report import write_report  # matplotlib takes a while

            write_report(Run(experiment, directory), problem, ensembles, {"posterior": scores})
        except Exception as error:  # noqa: BLE001 - no trial is lost for a picture
            warnings.warn(f"figures cannot be drawn: {type(error).__name__}: {error}", stacklevel=2)
    return scores


def make_references(
    context: TrialContext, cluster: Ray, progress: ProgressOption, stopping: Callable[[], bool]
) -> None:
    """Draw the reference ensembles that are missing.

    Raises:
        StoppedError: A stop was asked for.
    """
    sets = context.sweep.observation_sets
    missing = [n for n in range(sets) if not context.reference(n).is_file()]
    workers = context.sweep.concurrency or len(missing)
    with reporting(progress, "references", sets, sets - len(missing)) as report:
        drawn = cluster.map(
            partial(_draw_reference, context.for_workers()), missing, workers=workers
        )
        for done, (index, data) in enumerate(drawn, sets - len(missing) + 1):
            with replace_file(context.reference(missing[index])) as temporary:
                temporary.write_bytes(data)
            report(done)
            if stopping():
                raise StoppedError(
                    "sweep stopped before its first trial; pass --resume to continue it"
                )


def _draw_reference(context: TrialContext, number: int) -> bytes:
    """Draw the ensemble that counts as the truth for an observation set, and give it as a file."""
    here = context.staged()
    experiment = here.observed(here.experiment({}), number)
    run = Run(experiment, here.directory, progress=False)
    method: Any = experiment.evaluate.reference
    seed = seeded_generator(experiment.seed, REFERENCE, 0).initial_seed()
    problem, members = stages.make_problem(run), experiment.assimilate.members
    x = infer(run, method, problem, members, seed, lambda step, steps: None)
    array = xarray_io.trajectories(x, problem.system.spec).rename("reference")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "reference.nc"
        xarray_io.save(array, path)
        return path.read_bytes()
