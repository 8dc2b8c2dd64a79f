"""A study from its start, or its resumption, to its report.

Ray Tune's own ``Tuner.restore`` is not used: it unpickles files. A study is resumed from its
database and the checkpoints of its trials.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

import optuna  # noqa: E402
import ray  # noqa: E402
from ray import tune  # noqa: E402

from sda_core.config import dump_toml, unstructure  # noqa: E402
from sda_core.errors import StoppedError, SweepError  # noqa: E402
from sda_core.experiment import Experiment, Run  # noqa: E402
from sda_core.io.files import file_lock  # noqa: E402
from sda_core.io.interrupt import stop_request  # noqa: E402
from sda_core.io.progress import ProgressOption, announce, reporting  # noqa: E402
from sda_ray.cache import clean_caches  # noqa: E402
from sda_ray.cluster import Ray  # noqa: E402
from sda_ray.storage import arrow_file_system, newest, remove, upload  # noqa: E402
from sda_ray.tune.callbacks import StopFlag  # noqa: E402
from sda_ray.tune.directory import check_directory  # noqa: E402
from sda_ray.tune.inputs import (  # noqa: E402
    check_storage,
    for_workers,
    make_context,
    prepare_inputs,
)
from sda_ray.tune.recorder import Recorder, Stopper  # noqa: E402
from sda_ray.tune.report import write_report  # noqa: E402
from sda_ray.tune.schedulers import make_scheduler, replay  # noqa: E402
from sda_ray.tune.searcher import StudySearcher, Suggestions, config_of  # noqa: E402
from sda_ray.tune.study import Study  # noqa: E402
from sda_ray.tune.trainable import trainable  # noqa: E402

if TYPE_CHECKING:
    from sda_ray.tune.config import RayTune


def run(
    sweep: RayTune,
    experiment: Experiment,
    directory: Path,
    *,
    resume: bool,
    progress: ProgressOption,
) -> Path:
    """Run the trials of a sweep that was checked; see :meth:`sda_core.sweep.Sweep.run`."""
    cluster = experiment.cluster or Ray()
    assert isinstance(cluster, Ray)  # since it was checked
    if resume and not directory.exists():  # it may be in the storage, from another machine
        make_context(sweep, experiment, directory).download_study()
    check_directory(experiment, directory, resume)
    if cluster.storage is not None:
        check_storage(cluster.storage, directory, resume)
    with cluster.connected(), stop_request() as stopping:
        sweep.workers.checked("sweep.workers_per_trial, sweep.cpus_per_trial, sweep.gpus_per_trial")
        directory.mkdir(parents=True, exist_ok=True)
        with file_lock(directory / ".sweep.lock", "sweep", SweepError):
            dump_toml(unstructure(experiment), directory / "config.toml")
            return _Sweep(sweep, experiment, directory, progress, cluster).run(stopping)


class _Sweep:
    def __init__(
        self,
        sweep: RayTune,
        experiment: Experiment,
        directory: Path,
        progress: ProgressOption,
        cluster: Ray,
    ) -> None:
        self.sweep, self.directory, self.cluster = sweep, directory, cluster
        self.experiment: Any = experiment  # to mypy components are no attrs classes
        self.progress = progress
        self.context = make_context(sweep, experiment, directory)
        versions = {"ray": ray.__version__, "optuna": optuna.__version__}
        self.study = Study.create(
            directory,
            {
                "title": experiment.title,
                "metric": sweep.metric,
                "mode": sweep.mode,
                "stage": sweep.stage,
                "settings": sweep.settings,
                "versions": Run(experiment, directory).versions() | versions,
            },
        )
        self._began = time.monotonic() - self.study.seconds
        self.suggestions = Suggestions(self.study, sweep, self._epochs)

    def run(self, stopping: Callable[[], bool]) -> Path:
        """Run the trials that are missing, and write the report."""
        study, planned = self.study, self.suggestions.planned
        if study.resumed:
            announce(
                self.progress,
                f"resuming {self.directory}: {self._ended()} of {planned} trials are done",
            )
        prepare_inputs(self.experiment, self.context, self.cluster, self.progress, stopping)
        self._upload_stopped()
        is_late = False
        if self._ended() < planned:
            with reporting(self.progress, "trials", planned, self._ended()) as report:
                try:
                    is_late = self._fit(stopping, lambda: report(self._ended(), self._note()))
                finally:
                    study.stop(time.monotonic() - self._began)
        if self.context.storage is not None:
            for trial in study.trials:
                self.context.download(trial.number)
            clean_caches(self.context.storage)
        report_path = write_report(study, self.directory)
        self.context.upload_study()
        return self._checked(report_path, planned, is_late, stopping())

    def _checked(self, path: Path, planned: int, is_late: bool, is_stopped: bool) -> Path:
        done = self._ended()
        if done < planned and is_stopped:
            raise StoppedError(
                f"sweep stopped: {done} of {planned} trials are done, in {self.directory}; pass "
                "--resume to continue it"
            )
        if done < planned and is_late:
            announce(
                self.progress,
                f"the time budget is spent, with {done} of {planned} trials done; pass --resume to "
                "continue",
            )
        trials = self.study.trials
        if trials and all(trial.state == "failed" for trial in trials):
            raise SweepError(
                f"all {done} trials failed, the first one because: {trials[0].cause}\nThe others' "
                f"causes are in {path}"
            )
        return path

    def _fit(self, stopping: Callable[[], bool], changed: Callable[[], None]) -> bool:
        """Run the trials by Ray Tune; whether the time budget was spent before all were done."""
        sweep, study, context = self.sweep, self.study, self.context
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        tune_url = f"{context.storage or context.directory}/.tune"
        remove(tune_url)
        flag = StopFlag()
        recorder = Recorder(
            study, sweep.scheduler.name, context.download, context.upload_study, changed
        )
        stopper = Stopper(stopping, sweep.time_budget, flag, recorder.running)
        scheduler = make_scheduler(sweep, sweep.longest(self.experiment))
        replay(scheduler, sweep.mode, [trial for trial in study.trials if trial.has_ended])
        # Those of a population learn from each other, and not from trials before them: Tune takes
        # no searcher for them, and all start at once.
        population = sweep.scheduler.name == "pbt"
        given = [config_of(t) for t in iter(self.suggestions.next, None)] if population else []
        searcher = StudySearcher(self.suggestions, sweep.mode, stopper.is_stopping)
        path, file_system = tune_url, None
        if context.storage is not None:
            path, file_system = arrow_file_system(tune_url)
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(trainable, context=for_workers(context), flag=flag),
                _resources(sweep),
            ),
            param_space={"trial": tune.grid_search(given)} if population else None,
            tune_config=tune.TuneConfig(
                search_alg=None if population else searcher,
                scheduler=scheduler,
                num_samples=1 if population else -1,
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
        try:
            with warnings.catch_warnings():
                # A process for each trial is wanted; see reuse_actors above.
                warnings.filterwarnings("ignore", "Consider boosting PBT performance")
                tuner.fit()
        finally:
            flag.set()
            remove(tune_url)
        return stopper.is_late

    def _upload_stopped(self) -> None:
        """Upload what is resumed, where it was done without this storage."""
        context = self.context
        for trial in self.study.trials if context.storage is not None else ():
            url = f"{context.storage}/trials/{trial.number:05d}"
            folder = context.trial(trial.number)
            if not trial.has_ended and newest(url) is None and folder.is_dir():
                upload(folder, url, exclude=("data",))

    def _ended(self) -> int:
        return sum(trial.has_ended for trial in self.study.trials)

    def _note(self) -> str:
        counts, best = self.study.counts, self.study.best
        notes = [f"{counts[s]} {s}" for s in ("running", "pruned", "failed") if s in counts]
        if best is not None:
            notes.append(f"best {best.value:.4g} (trial {best.number})")
        return "  ".join(notes)

    def _epochs(self, parameters: Mapping[str, Any]) -> int | None:
        if self.sweep.stage == "assimilate":
            return None
        return int(parameters.get("train.epochs", self.experiment.train.epochs))


def _resources(sweep: RayTune) -> Any:
    """What a trial has: its process, or its workers, whose process needs nothing."""
    if sweep.workers_per_trial == 1:
        return {"cpu": sweep.cpus_per_trial, "gpu": sweep.gpus_per_trial}
    return tune.PlacementGroupFactory([{}, *sweep.workers.bundles])
