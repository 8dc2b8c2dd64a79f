"""The trials of a sweep, done by Ray Tune."""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import attrs

# Tune reads these when it is imported or starts: files, signals, folder and text are ours.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

from ray import tune  # noqa: E402
from ray.tune.schedulers import (  # noqa: E402
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from sda_ray.book import Book  # noqa: E402
from sda_ray.mirror import Mirror  # noqa: E402
from sda_ray.searcher import NotKept, OptunaSearcher, config_of  # noqa: E402
from sda_ray.space import Space  # noqa: E402
from sda_ray.space_parameter import Parameter  # noqa: E402
from sda_ray.worker import TIME, VALUE, Worker  # noqa: E402

if TYPE_CHECKING:
    from sda_ray.sweep import RayTune
    from sda_ray.work import Job

#: Where Tune keeps its own files, beside those of the study; they go at the end.
_SCRATCH = ".tune"


def do_trials(job: Job, book: Book, longest: int, stopping: Callable[[], bool]) -> bool:
    """Do the trials that a study lacks.

    Args:
        job: What all trials have in common.
        book: The trials.
        longest: The most epochs, or observation sets, of a trial.
        stopping: Whether to leave the study.

    Returns:
        Whether the time budget was spent before all were done.
    """
    sweep = book.sweep
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    scratch, leaving = Mirror(job.storage or job.directory) / _SCRATCH, job.leaving
    scratch.remove()
    leaving.remove()
    stopper = _Stopper(stopping, sweep.time_budget, lambda: leaving.put_text(""))
    scheduler = make_scheduler(sweep, longest)
    replay(scheduler, book)
    trainable = tune.with_resources(
        tune.with_parameters(Worker, job=job),
        _resources(sweep),
    )
    # Those of a population learn from each other, and not from trials before them: Tune takes no
    # search for them, and all start at once.
    population = sweep.scheduler.name == "pbt"
    given = [config_of(trial) for trial in iter(book.start, None)] if population else []
    tuner = tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search(given)} if population else None,
        tune_config=tune.TuneConfig(
            search_alg=None if population else OptunaSearcher(book),
            scheduler=scheduler,
            num_samples=1 if population else -1,
            max_concurrent_trials=_concurrency(sweep),
            reuse_actors=False,  # the memory of a GPU is freed with the process
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=scratch.path,
            storage_filesystem=None if job.storage is None else scratch.arrow(),
            stop=stopper,
            callbacks=[_Recorder(book)],
            # A trial writes its checkpoints itself, in its own directory.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=sweep.retries),
            verbose=0,
        ),
    )
    try:
        with warnings.catch_warnings():
            # A process for each trial is wanted; see reuse_actors above.
            warnings.filterwarnings("ignore", "Consider boosting PBT performance")
            tuner.fit()
    finally:
        book.leave()
        leaving.remove()
        scratch.remove()
    return stopper.is_late


def _resources(sweep: RayTune) -> dict[str, float]:
    """What the process of a trial has."""
    if sweep.workers_per_trial > 1:
        return {"memory": 1.0}  # a byte: its workers have the CPUs, and Tune takes no empty request
    return {"cpu": sweep.cpus_per_trial, "gpu": sweep.gpus_per_trial}


def _concurrency(sweep: RayTune) -> int | None:
    """How many trials there are at a time: as many as have room with all their workers."""
    if sweep.workers_per_trial == 1:
        return sweep.concurrency
    room = max(1, sweep.workers.room() // sweep.workers_per_trial)
    return min(room, sweep.concurrency or room)


def make_scheduler(sweep: RayTune, longest: int) -> TrialScheduler:
    """The scheduler that a sweep asks for."""
    asked = sweep.scheduler
    if asked.name == "asha":
        return ASHAScheduler(
            time_attr=TIME,
            max_t=longest,
            grace_period=asked.grace_period,
            reduction_factor=asked.reduction_factor,
            stop_last_trials=False,  # who has come so far writes the model
        )
    if asked.name == "median":
        return MedianStoppingRule(
            time_attr=TIME,
            grace_period=asked.grace_period,
            min_samples_required=max(1, sweep.startup_trials),
            min_time_slice=cast(int, math.inf),  # no trial waits for others
        )
    if asked.name == "pbt":
        parameters = Space.parse(sweep.space).parameters
        return _Population(
            time_attr=TIME,
            perturbation_interval=asked.interval,
            burn_in_period=asked.grace_period,
            hyperparam_mutations={"trial": {"parameters": {p.path: _again(p) for p in parameters}}},
            log_config=False,
            parameters=parameters,
        )
    return FIFOScheduler()


def _again(parameter: Parameter) -> Any:
    """How a population draws a value anew, or moves it."""
    if parameter.kind == "range":
        return tune.uniform(*parameter.ends)
    if parameter.kind == "log_range":
        return tune.loguniform(*parameter.ends)
    return list(parameter.all())


class _Population(PopulationBasedTraining):
    """Values stay in their ranges, and a trial that takes another's settings keeps its number."""

    def __init__(self, *, parameters: Sequence[Parameter], **settings: Any) -> None:
        super().__init__(**settings)
        self._parameters = parameters

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> Any:
        config, operations = super()._get_new_config(trial, trial_to_clone)
        moved = config["trial"]["parameters"]
        for parameter in self._parameters:
            if parameter.kind in ("range", "log_range"):
                low, high = parameter.ends
                moved[parameter.path] = min(max(moved[parameter.path], low), high)
        number = trial.config["trial"]["number"]
        return {**config, "trial": {"number": number, "parameters": moved}}, operations


@attrs.frozen
class _Earlier:
    """What a scheduler has to know of a trial of an earlier call."""

    trial_id: str


def replay(scheduler: TrialScheduler, book: Book) -> None:
    """Tell a scheduler of the trials that have ended, so that others are compared with them."""
    scheduler.set_search_properties(VALUE, book.sweep.mode)
    controller: Any = None  # these schedulers do not ask it here
    for trial in book.earlier:
        stub: Any = _Earlier(f"earlier-{trial.number}")
        for epoch, value in trial.curve:
            scheduler.on_trial_add(controller, stub)
            scheduler.on_trial_complete(controller, stub, {TIME: epoch, VALUE: value})


class _Stopper(NotKept, tune.Stopper):
    """Ends all trials when that is asked for, or the time is over."""

    def __init__(
        self, stopping: Callable[[], bool], budget: float | None, leave: Callable[[], None]
    ) -> None:
        self._stopping, self._leave = stopping, leave
        self._end = math.inf if budget is None else time.monotonic() + budget
        self.is_late = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        self.is_late = self.is_late or time.monotonic() > self._end
        if self._stopping() or self.is_late:
            self._leave()
            return True
        return False


class _Recorder(NotKept, tune.Callback):
    """Tells the book what Tune hears of the trials."""

    def __init__(self, book: Book) -> None:
        self._book = book

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        given, seconds = trial.config["trial"], result["time_total_s"]
        self._book.report(
            given["number"], result[TIME], result[VALUE], seconds, given["parameters"]
        )

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._book.end(trial.config["trial"]["number"])

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        # It has lost its process for good; others say themselves why they failed.
        last = Path(trial.error_file).read_text().strip().splitlines()[-1]
        self._book.end(trial.config["trial"]["number"], f"its process was lost: {last.strip()}")
