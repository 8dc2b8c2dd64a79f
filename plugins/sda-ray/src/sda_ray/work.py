"""What a trial does, in a process of its own, whatever runs that process.

A trial has a run directory, ``trials/00000`` in that of the study. What it found is written to
``result.json`` there, once; without that file it has not ended by itself.
"""

from __future__ import annotations

import json
import math
import statistics
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs

from sda_core import stages
from sda_core.cluster import Lent
from sda_core.config import component, structure
from sda_core.errors import SDAError, SweepError, TrainingError
from sda_core.evaluation.scores import evaluate_ensemble
from sda_core.experiment import Experiment, Run
from sda_core.io import xarray as xarray_io
from sda_core.io.files import plain, write_text
from sda_core.plugins import hookimpl
from sda_core.random import seeded_generator
from sda_core.stages.assimilation import infer
from sda_core.stages.common import POSTERIOR, REFERENCE, stream
from sda_ray.appraisal import appraise, drawing
from sda_ray.cluster import Ray
from sda_ray.desk import Report, desk
from sda_ray.lent import Copy
from sda_ray.mirror import Mirror
from sda_ray.room import Workers
from sda_ray.scores import variable_scores
from sda_ray.scratch import at_hand
from sda_ray.space import Space

#: Why a trial is ended.
PRUNED = "pruned by the sweep"


class LeftError(Exception):
    """The study is left; not of the library, so that a training keeps what it has done."""


@attrs.frozen(kw_only=True)
class Job:
    """What all trials of a study have in common.

    Attributes:
        directory: The directory of the study, absolute.
        table: The table of the experiment, without its sweep.
        space: The leaves of the space, by path.
        stage: What a trial does.
        metric: What is reported.
        sets: Number of observation sets of an assimilation.
        shares_data: Whether the study's data are the trial's.
        predictions: Whether posteriors are kept.
        evaluate: Whether what is trained is evaluated on observations.
        interval: Epochs between two checkpoints, of trials that learn from each other, and report
            when they have written one; None for others.
        storage: URL of the study, where its directory is not on all machines.
        model: The pretrained model, where it is not the one that the table names.
        workers: The processes that train a model together; None for that of the trial alone.
        retries: How often they go on when one is lost.
    """

    directory: str
    table: dict[str, Any]
    space: dict[str, Any]
    stage: str
    metric: str
    sets: int = 1
    shares_data: bool = True
    predictions: bool = False
    evaluate: bool = False
    interval: int | None = None
    storage: str | None = None
    model: str | None = None
    workers: Workers | None = None
    retries: int = 0

    @property
    def leaving(self) -> Mirror:
        """The file that says that the study is left."""
        return Mirror(self.storage or self.directory) / ".leaving"

    def trial(self, number: int) -> Path:
        """The run directory of a trial."""
        return Path(self.directory) / "trials" / f"{number:05d}"

    def reference(self, number: int) -> Path:
        """The reference ensemble of an observation set."""
        return Path(self.directory) / "reference" / f"{number}.nc"

    def experiment(self, parameters: Mapping[str, Any]) -> Experiment:
        """The experiment of a trial."""
        table = Space.parse(self.space).apply(self.table, parameters)
        return structure(Experiment, table)

    def observed(self, experiment: Experiment, number: int) -> Experiment:
        """An experiment that infers the trajectory of an observation set."""
        whole: Any = experiment  # to mypy components are no attrs classes
        assimilate = attrs.evolve(whole.assimilate, trajectory=number)
        model = attrs.evolve(whole.model, pretrained=self.model or whole.model.pretrained)
        return attrs.evolve(whole, assimilate=assimilate, model=model)

    def link_data(self, number: int) -> None:
        """Let the study's data be those of a trial, where they are."""
        link = self.trial(number) / "data"
        if self.shares_data and not link.exists():
            link.symlink_to(Path("..") / ".." / "data")


def do_trial(
    job: Job,
    number: int,
    parameters: Mapping[str, Any],
    report: Report,
    check: Callable[[], None],
) -> None:
    """Do a trial, or go on with it, and write what it found; what goes wrong is written, too.

    Args:
        job: What all trials have in common.
        number: The number of the trial.
        parameters: Its values, by path.
        report: Called with each value of the metric, those of an earlier start included.
        check: Called often; raises :class:`LeftError` when the trial is to be left as it is.
    """
    directory = job.trial(number)
    if not Path(job.directory).is_dir():
        raise SweepError(
            f"{job.directory} is not there for a worker of the cluster: all its machines must have "
            "the directory of the study, by shared storage, or cluster.storage must be set"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        job.link_data(number)
        experiment = job.experiment(parameters)
        do = _train if job.stage == "train" else _assimilate
        result = do(job, experiment, directory, report, check)
    except LeftError:
        return
    except Exception as error:  # noqa: BLE001 - whatever it is, other trials go on
        (directory / "error.txt").write_text(traceback.format_exc())
        kind = "" if isinstance(error, SDAError) else f"{type(error).__name__}: "
        result = {"state": "failed", "cause": f"{kind}{error}"}
    if result is not None:
        write_text(directory / "result.json", json.dumps(plain(result), indent=1) + "\n")


def reported(directory: Path, stage: str, metric: str) -> list[tuple[int, float]]:
    """What a trial has written of what it has reported: epochs, or sets, and the metric."""
    path = directory / ("history.json" if stage == "train" else "sets.json")
    if not path.is_file():
        return []
    found = json.loads(path.read_text())
    if stage != "train":
        values = [scores[metric] for scores in found]
        return [(n, statistics.fmean(values[:n])) for n in range(1, len(values) + 1)]
    rows = zip(found["epoch"], found["valid_loss"], found[metric], strict=True)
    return [(epoch, v) for epoch, valid, v in rows if valid is not None and v is not None]


def _train(
    job: Job, experiment: Experiment, directory: Path, report: Report, check: Callable[[], None]
) -> dict[str, Any] | None:
    run = Run(experiment, directory, progress=False)
    before = run.checkpoints.newest()
    if before is not None and before.state.get("ended") == PRUNED:
        return {"state": "pruned", "cause": PRUNED}
    for epoch, value in reported(directory, "train", job.metric):
        if report(epoch, value) is not None:
            return None
    if not job.shares_data:
        stages.simulate(experiment, directory, progress=False)
    reasons: list[str | None] = []

    def tell(epoch: int, value: float) -> str | None:
        reasons.append(report(epoch, value))
        return reasons[-1]

    learns = job.interval is not None
    options: dict[str, Any] = {"progress": False, "may_change": job.space if learns else ()}
    with nullcontext((tell, check)) if job.workers is None else desk(tell, check) as asked:
        watcher = _Watcher(job.metric, *asked, at_checkpoints=learns)
        if job.workers is not None:
            options |= {
                "workers": job.workers.number,
                "gpus_per_worker": job.workers.gpus,
                "cluster": _group_of(job, job.workers, directory.name),
            }
        model = stages.train(experiment, directory, hooks=[watcher], **options)
    if any(reasons):
        return None
    return {"state": "finished", **appraise(run, model, check, evaluate=job.evaluate)}


def _group_of(job: Job, workers: Workers, name: str) -> Ray:
    """The cluster that trains a trial together."""
    if job.storage is None:
        return Ray(worker_cpus=workers.cpus, retries=job.retries)
    copy = Copy(job.storage, f"trials/{name}")
    return _RayOfTrial(worker_cpus=workers.cpus, retries=job.retries, copy=copy)


@component
class _RayOfTrial(Ray):
    """A cluster whose storage has the trial already."""

    copy: Copy

    @contextmanager
    def lend(self, directory: Path, **_: Any) -> Iterator[Lent]:
        """Lend what is there; see :meth:`sda_core.cluster.Cluster.lend`."""
        self.copy.mirror.push(directory, is_fetched=True)
        try:
            yield self.copy, lambda: None  # nobody asks for it before the end
        finally:
            self.copy.mirror.pull(directory)


class _Watcher:
    """A plugin that reports a training, and ends it where that is asked for."""

    sda_interface = 1

    def __init__(
        self, metric: str, report: Report, check: Callable[[], None], *, at_checkpoints: bool
    ) -> None:
        self._metric, self._report, self._check = metric, report, check
        self._at_checkpoints = at_checkpoints
        self._last: tuple[int, float] | None = None
        self.reason: str | None = None

    @hookimpl
    def sda_epoch_ended(self, metrics: Mapping[str, Any]) -> None:
        """Report, after each validation."""
        self._check()
        if metrics["valid_loss"] is None:
            return
        epoch, value = metrics["epoch"], metrics[self._metric]
        if not math.isfinite(value):
            raise TrainingError(f"{self._metric} is {value} after epoch {epoch}")
        self._last = (epoch, value)
        if not self._at_checkpoints:
            self._tell()

    @hookimpl
    def sda_checkpoint_written(self) -> None:
        """Report, where others may go on from the checkpoint."""
        if self._at_checkpoints:
            self._tell()

    def _tell(self) -> None:
        if self._last is not None:
            (epoch, value), self._last = self._last, None
            self.reason = self._report(epoch, value)

    @hookimpl
    def sda_metrics_logged(self) -> None:
        """Leave, in mid-epoch too."""
        self._check()

    @hookimpl
    def sda_stop_training(self) -> str | None:
        """End the training."""
        return self.reason


def _assimilate(
    job: Job, experiment: Experiment, directory: Path, report: Report, check: Callable[[], None]
) -> dict[str, Any] | None:
    Run(experiment, directory).write_config()
    path = directory / "sets.json"
    done: list[dict[str, float]] = json.loads(path.read_text()) if path.is_file() else []
    for number in range(job.sets):
        if number == len(done):
            done.append(_scores(job, experiment, directory, number, check))
            write_text(path, json.dumps(done, indent=1) + "\n")
        values = [scores[job.metric] for scores in done[: number + 1]]
        if report(number + 1, statistics.fmean(values)) is not None:
            return None
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    names = [name for name in done[0] if all(name in scores for scores in done)]
    means = {name: statistics.fmean(scores[name] for scores in done) for name in names}
    return {"state": "finished", "value": means.pop(job.metric), "error": error, "metrics": means}


def _scores(
    job: Job, experiment: Experiment, directory: Path, number: int, check: Callable[[], None]
) -> dict[str, float]:
    """Infer the trajectory of one observation set, and score the ensemble."""
    run = Run(job.observed(experiment, number), directory, progress=False)
    problem = stages.make_problem(run)
    x = infer(
        run,
        experiment.require("method", "assimilation"),
        problem,
        experiment.assimilate.members,
        stream(experiment.seed, POSTERIOR),
        lambda step, steps: check(),
    )
    if job.predictions:
        array = xarray_io.trajectories(x, problem.system.spec).rename("posterior")
        xarray_io.save(array, directory / f"posterior-{number}.nc")
    reference = None
    if job.reference(number).is_file():
        reference = xarray_io.load_array(job.reference(number), "sweep")
    scores = evaluate_ensemble(problem, x, reference)
    for more in run.manager.hook.sda_scores(problem=problem, ensemble=x):
        scores |= more
    assert problem.truth is not None  # since it is a trajectory of the test split
    scores |= variable_scores(problem.system.spec.variable_names, x.mean(0), problem.truth)
    if job.metric not in scores:
        raise SweepError(
            f"sweep.metric = {job.metric!r} is no score of this experiment: it has "
            f"{', '.join(scores)}"
        )
    if number == 0:
        ensembles = {"posterior": x} | ({} if reference is None else {"reference": reference})
        with drawing():
            from sda_core.evaluation.report import (
                write_report,  # matplotlib takes a while to import
            )

            official = Run(experiment, directory)
            write_report(official, problem, ensembles, {"posterior": scores})
    return scores


def make_reference(job: Job, number: int) -> bytes:
    """Draw the ensemble that counts as the truth for an observation set, and give it as a file."""
    job = at_hand(job)
    experiment = job.observed(job.experiment({}), number)
    run = Run(experiment, job.directory, progress=False)
    method: Any = experiment.evaluate.reference
    seed = seeded_generator(experiment.seed, REFERENCE, 0).initial_seed()
    problem, members = stages.make_problem(run), experiment.assimilate.members
    x = infer(run, method, problem, members, seed, lambda step, steps: None)
    array = xarray_io.trajectories(x, problem.system.spec).rename("reference")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "reference.nc"
        xarray_io.save(array, path)
        return path.read_bytes()
