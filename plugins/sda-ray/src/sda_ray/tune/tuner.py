"""A study from its start, or its resumption, to its report.

Ray Tune's own ``Tuner.restore`` is not used: it unpickles files. A study is resumed from its
database and the checkpoints of its trials.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import optuna
import ray

from sda_core.config import differences, dump_toml, load_toml, unstructure
from sda_core.errors import StoppedError, SweepError
from sda_core.experiment import Experiment, Run
from sda_core.io.files import file_lock
from sda_core.io.interrupt import stop_request
from sda_core.io.progress import ProgressOption, announce, reporting
from sda_core.model import model_folder
from sda_core.stages import simulate
from sda_ray.cluster import Ray
from sda_ray.storage import newest, upload
from sda_ray.sync import clean_caches
from sda_ray.tune.assimilation import make_references
from sda_ray.tune.config import SweepSettings
from sda_ray.tune.context import TrialContext
from sda_ray.tune.fit import fit
from sda_ray.tune.report import write_report
from sda_ray.tune.search_space import leaves
from sda_ray.tune.study import Study

#: Keys of the sweep that may be others when a study is resumed: they change no trial.
_MAY_CHANGE = {"trials", "concurrency", "time_budget", "retries", "predictions"}
_MAY_CHANGE |= {"cpus_per_trial", "gpus_per_trial", "workers_per_trial"}


def run(
    sweep: SweepSettings,
    experiment: Experiment,
    directory: Path,
    *,
    resume: bool,
    progress: ProgressOption,
) -> Path:
    """Run the trials of a sweep that was checked; see :meth:`sda_core.sweep.Sweep.run`."""
    cluster = experiment.cluster or Ray()
    assert isinstance(cluster, Ray)  # since it was checked
    context = TrialContext.create(sweep, experiment, directory)
    if resume and not directory.exists():  # it may be in the storage, from another machine
        context.download_study()
    check_directory(experiment, directory, resume)
    context.check_storage(resume)
    with cluster.connected(), stop_request() as stopping:
        sweep.workers.checked("sweep.workers_per_trial, sweep.cpus_per_trial, sweep.gpus_per_trial")
        directory.mkdir(parents=True, exist_ok=True)
        with file_lock(directory / ".sweep.lock", "sweep", SweepError):
            dump_toml(unstructure(experiment), directory / "config.toml")
            return _Sweep(experiment, context, cluster, progress, stopping).run()


def check_directory(experiment: Experiment, directory: Path, resume: bool) -> None:
    """Refuse another study's directory.

    Raises:
        SweepError: There is a study that was not asked for, none where one was, or another.
    """
    path = directory / "config.toml"
    if not path.is_file():
        if resume:
            raise SweepError(
                f"there is no study in {directory} to continue: leave out --resume to start one"
            )
        return
    table = load_toml(path)
    if "sweep" not in table:
        raise SweepError(f"there is a run in {directory}, and no study: give another directory")
    if not resume:
        raise SweepError(
            f"{directory} already holds a study; pass --resume to continue it, --new to start "
            "another one beside it, or --delete to start another in its place"
        )
    if changed := differences(_fixed(table), _fixed(unstructure(experiment))):
        raise SweepError(
            f"the study in {directory} is another one. It differs in {', '.join(changed)}. Its "
            "trials could not be compared with those that would follow: continue it with its own "
            "configuration, pass --new to start another study beside it, or --delete to start "
            "another in its place"
        )


def _fixed(table: Mapping[str, Any]) -> dict[str, Any]:
    """What may not change in a study."""
    kept = {k: v for k, v in table.items() if k not in ("title", "cluster", "trackers")}
    sweep = {k: v for k, v in table.get("sweep", {}).items() if k not in _MAY_CHANGE}
    return kept | {"sweep": sweep | {"space": dict(leaves(sweep.get("space", {})))}}


def _prepare_inputs(
    experiment: Any,
    context: TrialContext,
    cluster: Ray,
    progress: ProgressOption,
    stopping: Callable[[], bool],
) -> None:
    """Make what trials share, and upload it where there is a storage.

    Raises:
        StoppedError: A stop was asked for.
    """
    if not context.shares_data:
        return
    directory = Path(context.directory)
    untracked = attrs.evolve(experiment, trackers=())  # trackers are for trials
    pretrained, data = experiment.model.pretrained, directory / "data"
    if pretrained is not None and not data.exists():
        beside = model_folder(pretrained).resolve().parent / "data"
        if beside.is_dir():
            data.symlink_to(beside)
    if not Run(untracked, directory).is_done("simulate"):
        simulate(untracked, directory, progress=progress)
        dump_toml(unstructure(experiment), directory / "config.toml")
    shared = {"data": data}
    if pretrained is not None and Path(pretrained).exists():
        shared["model"] = Path(pretrained)
    if context.storage is not None:
        for name, folder in shared.items():
            announce(progress, f"{name}: {folder} is copied to {context.storage}, if need be")
            upload(folder, f"{context.storage}/{name}")
    if context.sweep.stage == "assimilate" and experiment.evaluate.reference is not None:
        make_references(context, cluster, progress, stopping)
        if context.storage is not None:
            upload(directory / "reference", f"{context.storage}/reference")


class _Sweep:
    def __init__(
        self,
        experiment: Experiment,
        context: TrialContext,
        cluster: Ray,
        progress: ProgressOption,
        stopping: Callable[[], bool],
    ) -> None:
        self.experiment, self.context, self.cluster = experiment, context, cluster
        self.sweep, self.directory = context.sweep, Path(context.directory)
        self.progress, self._stopping = progress, stopping
        sweep, versions = self.sweep, {"ray": ray.__version__, "optuna": optuna.__version__}
        self.study = Study.create(
            self.directory,
            {
                "title": experiment.title,
                "metric": sweep.metric,
                "mode": sweep.mode,
                "stage": sweep.stage,
                "settings": sweep.settings,
                "versions": Run(experiment, self.directory).versions() | versions,
            },
        )
        self._began = time.monotonic() - self.study.seconds

    def run(self) -> Path:
        """Run the trials that are missing, and write the report."""
        study, context, planned = self.study, self.context, self.sweep.planned
        if study.resumed:
            done = f"{self._ended()} of {planned} trials are done"
            announce(self.progress, f"resuming {self.directory}: {done}")
        _prepare_inputs(self.experiment, context, self.cluster, self.progress, self._stopping)
        self._upload_stopped()
        is_late = False
        if self._ended() < planned:
            with reporting(self.progress, "trials", planned, self._ended()) as report:
                try:
                    is_late = fit(
                        study,
                        context,
                        self.experiment,
                        self.cluster.start_timeout,
                        self._stopping,
                        lambda: report(self._ended(), self._note()),
                    )
                finally:
                    study.stop(time.monotonic() - self._began)
        if context.storage is not None:
            for trial in study.trials:
                context.download(trial.number)
            clean_caches(context.storage)
        report_path = write_report(study, self.directory)
        context.upload_study()
        self._check_end(report_path, is_late)
        return report_path

    def _check_end(self, path: Path, is_late: bool) -> None:
        done, planned = self._ended(), self.sweep.planned
        if done < planned and self._stopping():
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

    def _upload_stopped(self) -> None:
        """Upload what is resumed, where it was done without this storage."""
        context = self.context
        for trial in self.study.trials if context.storage is not None else ():
            url, folder = context.remote(trial.number).url, context.trial(trial.number)
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
