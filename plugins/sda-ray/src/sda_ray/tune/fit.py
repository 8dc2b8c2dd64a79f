"""The call of Ray Tune, which runs the trials of a study."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from ray import tune

from sda_core.errors import ClusterError
from sda_core.experiment import Experiment
from sda_ray.remote import cluster_state
from sda_ray.storage import arrow_file_system, remove
from sda_ray.tune.callbacks import StopFlag
from sda_ray.tune.config import SweepSettings
from sda_ray.tune.context import TrialContext
from sda_ray.tune.recorder import Recorder, Stopper
from sda_ray.tune.schedulers import make_scheduler, replay
from sda_ray.tune.searcher import StudySearcher
from sda_ray.tune.study import Study
from sda_ray.tune.trainable import trainable


def fit(
    study: Study,
    context: TrialContext,
    experiment: Experiment,
    start_timeout: float,
    stopping: Callable[[], bool],
    changed: Callable[[], None],
) -> bool:
    """Run the trials of a study that are missing.

    Args:
        study: The study.
        context: What its trials have in common.
        experiment: The experiment.
        start_timeout: Seconds in which some trial must have started, where none runs.
        stopping: Whether to stop.
        changed: Called after each change of the study.

    Returns:
        Whether the time budget was spent before all were done.

    Raises:
        ClusterError: No trial starts.
    """
    sweep = context.sweep
    end = time.monotonic() + (math.inf if sweep.time_budget is None else sweep.time_budget)
    for left in reversed(range(sweep.retries + 1)):
        flag = StopFlag()
        recorder = Recorder(study, context, changed)
        stopper = Stopper(stopping, end, start_timeout, flag, recorder.running)
        try:
            _fit_once(study, context, experiment, flag, recorder, stopper)
        finally:
            flag.shutdown()
        if not stopper.has_stalled:
            return stopper.is_late
        told = (
            f"no trial has started within {start_timeout:g} s (cluster.start_timeout), and "
            f"{cluster_state()}"
        )
        if left:
            warnings.warn(f"{told}: they are started again", stacklevel=2)
    raise ClusterError(
        f"{told}, in {sweep.retries + 1} attempts (sweep.retries): look at the machines, which may "
        "be busy or out of memory, and pass --resume"
    )


def _fit_once(
    study: Study,
    context: TrialContext,
    experiment: Experiment,
    flag: StopFlag,
    recorder: Recorder,
    stopper: Stopper,
) -> None:
    sweep, is_population = context.sweep, context.is_population
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    scheduler = make_scheduler(sweep, sweep.longest(experiment))
    replay(scheduler, sweep.mode, [trial for trial in study.trials if trial.has_ended])

    def planned_epochs(parameters: Mapping[str, Any]) -> int | None:
        epochs = parameters.get("train.epochs", experiment.train.epochs)
        return int(epochs) if sweep.stage == "train" else None

    searcher = StudySearcher(study, sweep, planned_epochs, stopper.is_stopping)
    # Those of a population learn from each other, and not from trials before them: Tune takes no
    # searcher for them, and all start at once.
    given = list(iter(lambda: searcher.suggest(""), searcher.FINISHED)) if is_population else []
    together = {"trial": tune.grid_search([each["trial"] for each in given])}
    url = f"{context.storage or context.directory}/.tune"
    path, file_system = (url, None) if context.storage is None else arrow_file_system(url)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(trainable, context=context.for_workers(), flag=flag),
            _resources(sweep),
        ),
        param_space=together if is_population else None,
        tune_config=tune.TuneConfig(
            search_alg=None if is_population else searcher,
            scheduler=scheduler,
            num_samples=1 if is_population else -1,
            max_concurrent_trials=sweep.concurrency,
            reuse_actors=False,  # the memory of a GPU is freed with the process
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=path,
            storage_filesystem=file_system,
            stop=stopper,
            callbacks=[recorder],
            failure_config=tune.FailureConfig(max_failures=sweep.retries),
            verbose=0,
        ),
    )
    remove(url)  # a killed call has left it
    try:
        with warnings.catch_warnings():
            # A process for each trial is wanted; see reuse_actors above.
            warnings.filterwarnings("ignore", "Consider boosting PBT performance")
            tuner.fit()
    finally:
        remove(url)


def _resources(sweep: SweepSettings) -> Any:
    """What a trial has: its process, or its workers, whose process needs nothing."""
    if sweep.workers_per_trial == 1:
        return {"cpu": sweep.cpus_per_trial, "gpu": sweep.gpus_per_trial}
    return tune.PlacementGroupFactory([{}, *sweep.workers.bundles])
