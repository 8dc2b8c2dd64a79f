"""What a trial does, in a process of its own: a function that reports to Ray Tune.

Each report waits until the scheduler has decided; a trial that is pruned ends there, and keeps its
last checkpoint.
"""

from __future__ import annotations

import json
import math
import shutil
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray import tune

from sda_core import stages
from sda_core.cluster import SyncedDirectory
from sda_core.config import component
from sda_core.errors import SDAError, SweepError
from sda_core.evaluation.denoiser import denoise, denoising_scores
from sda_core.experiment import Experiment, Run
from sda_core.model import TrainedModel
from sda_core.plugins import default_manager
from sda_ray.cluster import Ray
from sda_ray.remote import exit_with_raylet, hide_gpus
from sda_ray.storage import upload
from sda_ray.sync import RemoteDirectory, synced
from sda_ray.tune.assimilation import assimilate_sets, no_metric
from sda_ray.tune.callbacks import (
    Report,
    StopFlag,
    StudyStopped,
    TrialCallback,
    forwarding,
)
from sda_ray.tune.context import TrialContext, TrialUploader
from sda_ray.tune.searcher import TIME, VALUE


def trainable(config: dict[str, Any], context: TrialContext, flag: StopFlag) -> None:
    """Run a trial, and report what it found; what goes wrong is reported, too."""
    exit_with_raylet()
    if not ray.get_gpu_ids():
        hide_gpus()
    number, parameters = config["trial"]["number"], config["trial"]["parameters"]
    last: dict[str, Any] = {TIME: 0, VALUE: math.nan}  # no scheduler compares with it

    def report(epoch: int, value: float, metrics: Mapping[str, float]) -> None:
        last.update({TIME: epoch, VALUE: value, "metrics": dict(metrics)})
        with TemporaryDirectory() as folder:
            has_checkpoint = here.is_population and _copy_training(here.trial(number), Path(folder))
            checkpoint = tune.Checkpoint.from_directory(folder) if has_checkpoint else None
            tune.report(dict(last), checkpoint=checkpoint)

    with context.opened(number) as here:
        if (checkpoint := tune.get_checkpoint()) is not None:  # its own, or that of a better trial
            with checkpoint.as_directory() as written:
                _copy_training(Path(written), here.trial(number))
        outcome = run_trial(here, number, parameters, report, flag)
        here.upload(number)
        tune.report({**last, "done": True, "outcome": outcome})


def run_trial(
    context: TrialContext,
    number: int,
    parameters: Mapping[str, Any],
    report: Report,
    flag: StopFlag,
) -> dict[str, Any]:
    """Run a trial, or resume it.

    Args:
        context: What all trials have in common.
        number: The number of the trial.
        parameters: Its values, by path.
        report: Called with (epochs or observation sets, the metric, all metrics) after each, those
            of an earlier start included.
        flag: Whether the study is stopped.

    Returns:
        ``state``, and as far as there are some ``value``, ``error``, ``metrics`` and ``cause``.
    """
    directory = context.trial(number)
    try:
        flag.check()
        experiment = context.experiment(parameters)
        run = _train if context.sweep.stage == "train" else assimilate_sets
        return {"state": "finished", **run(context, number, experiment, report, flag)}
    except StudyStopped:
        return {"state": "stopped"}
    except Exception as error:  # noqa: BLE001 - whatever it is, other trials go on
        (directory / "error.txt").write_text(traceback.format_exc())
        kind = "" if isinstance(error, SDAError) else f"{type(error).__name__}: "
        return {"state": "failed", "cause": f"{kind}{error}"}


def _train(
    context: TrialContext, number: int, experiment: Experiment, report: Report, flag: StopFlag
) -> dict[str, Any]:
    directory, sweep, learns = context.trial(number), context.sweep, context.is_population
    known = reported(directory, sweep.metric)
    for epoch, value, metrics in known[-1:] if learns else known:
        report(epoch, value, metrics)
    if not context.shares_data:
        stages.simulate(experiment, directory, progress=False)
    is_alone = sweep.workers_per_trial == 1
    with nullcontext(report) if is_alone else forwarding(report) as sent:
        hooks: list[object] = [flag, TrialCallback(sweep.metric, sent, at_checkpoints=learns)]
        options: dict[str, Any] = {}
        if not is_alone:
            workers, cluster = sweep.workers, _cluster_of(context, number)
            options = {"workers": workers.number, "gpus_per_worker": workers.gpus}
            options["cluster"] = cluster
        elif context.storage is not None:
            hooks.append(TrialUploader(context, number))
        model = stages.train(
            experiment,
            directory,
            progress=False,
            may_change=sweep.search_space.paths if learns else (),
            hooks=hooks,
            **options,
        )
    result = evaluate_trial(
        Run(experiment, directory, progress=False), model, flag, with_posterior=sweep.evaluate
    )
    known = reported(directory, sweep.metric)
    result["metrics"] = (known[-1][2] if known else {}) | result["metrics"]
    if not known:  # no epoch has it: it is one of what comes after the training
        if sweep.metric not in result["metrics"]:
            raise SweepError(no_metric(sweep.metric, result["metrics"]))
        result["value"] = result["metrics"][sweep.metric]
    return result


def _cluster_of(context: TrialContext, number: int) -> Ray:
    """The cluster whose workers train a trial's model."""
    options: dict[str, Any] = {
        "worker_cpus": context.sweep.cpus_per_trial,
        "retries": context.sweep.retries,
    }
    if context.storage is None:
        return Ray(**options)
    return _TrialRay(remote=context.remote(number), **options)


@component
class _TrialRay(Ray):
    """A cluster whose storage has the trial already."""

    remote: RemoteDirectory

    @contextmanager
    def sync_directory(self, directory: Path, **_: Any) -> Iterator[SyncedDirectory]:
        """Sync what is there; see :meth:`sda_core.cluster.Cluster.sync_directory`."""
        own = directory / "data"
        if not own.is_symlink():
            upload(own, f"{self.remote.storage}/{self.remote.data}")
        with synced(self.remote, directory):
            yield self.remote, lambda: None  # nobody asks for it before the end


def reported(directory: Path, metric: str) -> list[tuple[int, float, dict[str, float]]]:
    """What a training has recorded: epochs that were validated, the metric and all numbers."""
    path, found = directory / "metrics.jsonl", {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        with suppress(ValueError):  # a kill has cut it short
            event = json.loads(line)
            numbers = {k: v for k, v in event.items() if isinstance(v, int | float)}
            if event["event"] == "epoch" and "valid_loss" in numbers and metric in numbers:
                epoch = int(numbers.pop("epoch"))
                del numbers["step"]
                found[epoch] = (epoch, numbers[metric], numbers)
    return [found[epoch] for epoch in sorted(found)]


def evaluate_trial(
    run: Run, model: TrainedModel, flag: StopFlag, *, with_posterior: bool
) -> dict[str, Any]:
    """Score a trained model, and draw the figures of its trial.

    Returns:
        ``metrics``: those of the denoiser, and, if asked for, as ``"posterior/crps"`` those of the
        posterior; and ``cause`` where there are none of these.
    """
    found = denoise(run.data, model)
    if found:
        try:
            from sda_core.figures.denoiser import denoising_pictures  # matplotlib takes a while

            for picture in denoising_pictures(found, model.spec):
                picture.save(run.directory / "figures")
        except Exception as error:  # noqa: BLE001 - no trial is lost for a picture
            warnings.warn(f"figures cannot be drawn: {type(error).__name__}: {error}", stacklevel=2)
    result: dict[str, Any] = {"metrics": denoising_scores(found)}
    if not with_posterior:
        return result
    try:
        with default_manager().with_plugins([flag]):
            stages.assimilate(run.experiment, run.directory, progress=False)
            scores = stages.evaluate(run.experiment, run.directory, progress=False)["posterior"]
    except SDAError as error:  # the training is not lost with it
        return result | {"cause": f"trained, and not evaluated: {error}"}
    result["metrics"] |= {f"posterior/{name}": float(value) for name, value in scores.items()}
    return result


def _copy_training(source: Path, target: Path) -> bool:
    """Copy what a training is resumed from, in the place of another; whether there is something."""
    if not (source / "checkpoints").is_dir():
        return False
    old, new = target / "checkpoints", target / ".checkpoints.new"
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(source / "checkpoints", new)
    for name in ("history.json", "metrics.jsonl"):
        shutil.copyfile(source / name, target / name)
    shutil.rmtree(old, ignore_errors=True)
    new.replace(old)
    return True
