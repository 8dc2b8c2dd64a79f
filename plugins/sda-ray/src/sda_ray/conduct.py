"""A study from its start, or its resumption, to its summary."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from sda_core.config import differences, dump_toml, load_toml, unstructure
from sda_core.errors import ClusterError, StoppedError, SweepError
from sda_core.experiment import Experiment, Run
from sda_core.io.files import exclusive, replace_file
from sda_core.io.interrupt import stop_request
from sda_core.io.progress import ProgressOption, announce, reporting
from sda_core.model import model_folder
from sda_core.stages import simulate
from sda_ray.cluster import Ray
from sda_ray.leader import end_earlier, is_outside, lead, on_head
from sda_ray.ledger import Ledger
from sda_ray.mirror import Mirror
from sda_ray.reach import check_reach
from sda_ray.scratch import clean
from sda_ray.space import Space, leaves
from sda_ray.study import Study
from sda_ray.summary import write_summary
from sda_ray.sweep import RayTune, table_of
from sda_ray.tuning import do_trials
from sda_ray.work import Job, make_reference

#: Keys of the sweep that may be others when a study is gone on with: they change no trial.
_MAY_CHANGE = (
    "trials",
    "concurrency",
    "cpus_per_trial",
    "gpus_per_trial",
    "workers_per_trial",
    "time_budget",
    "retries",
    "predictions",
)


def conduct(
    sweep: RayTune,
    experiment: Experiment,
    directory: Path,
    *,
    resume: bool,
    progress: ProgressOption,
) -> Path:
    """Do the trials of a sweep that was checked; see :meth:`sda_core.sweep.Sweep.run`."""
    _check_directory(experiment, directory, resume)
    cluster = experiment.cluster or Ray()
    assert isinstance(cluster, Ray)  # since it was checked
    if cluster.storage is not None:
        _check_storage(cluster.storage, directory, resume)
    with cluster.connected():
        on_head(_check_resources, sweep)
        directory.mkdir(parents=True, exist_ok=True)
        if is_outside():
            _check_reach(experiment, directory, cluster.storage)
        with exclusive(directory / ".sweep.lock", "sweep", SweepError), stop_request() as stopping:
            end_earlier(_place(cluster.storage, directory), progress, stopping)
            dump_toml(unstructure(experiment), directory / "config.toml")
            return _Study(sweep, experiment, directory, progress, cluster).do(stopping)


class _Study:
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
        self.progress, self.space = progress, Space.parse(sweep.space)
        self._began, self._seconds, self._resumed = time.monotonic(), 0.0, 0
        with suppress(SweepError):  # there is none yet
            before = Study.load(directory)
            self._seconds, self._resumed = before.seconds, before.resumed + 1
        self.job = Job(
            directory=str(directory.resolve()),
            table=trial_table(experiment, directory),
            space=dict(leaves(sweep.space)),
            stage=sweep.stage,
            metric=sweep.metric,
            sets=sweep.observation_sets,
            shares_data=not self.space.touches("system", "data", "seed"),
            predictions=sweep.predictions,
            evaluate=sweep.evaluate,
            interval=sweep.scheduler.interval if sweep.scheduler.name == "pbt" else None,
            workers=sweep.workers if sweep.workers_per_trial > 1 else None,
            retries=sweep.retries,
        )
        self._versions = _versions(experiment, directory)
        self._report: Any = lambda done, note="": None
        #: The same, for machines of the cluster.
        self.sent, self.copy = self.job, None
        if cluster.storage is not None:
            self.copy = storage_of(cluster.storage, directory)
            self.sent = attrs.evolve(self.job, directory="", storage=self.copy.url)
        self.ledger = Ledger(directory, sweep, self.space, self._epochs, self._fetch)
        self.ledger.on_change = self._changed

    def do(self, stopping: Any) -> Path:
        """Do what is missing, and write the summary."""
        sweep, ledger = self.sweep, self.ledger
        if self._resumed:
            announce(
                self.progress,
                f"going on with {self.directory}: {len(ledger.earlier)} of {ledger.planned} trials "
                "are done",
            )
        self._prepare(stopping)
        self._send_trials()
        is_late = False
        if len(ledger.earlier) < ledger.planned:
            with reporting(
                self.progress, "trials", ledger.planned, len(ledger.earlier)
            ) as self._report:
                do = lead if is_outside() else do_trials
                is_late = do(self.sent, ledger, sweep.longest(self.experiment), stopping)
        if self.copy is not None:
            for number in ledger.trials:  # those that were pruned wrote their model after that
                self._fetch(number)
            clean(self.copy.url)
        study = self._study()
        summary = write_summary(study, self.directory)
        left = ledger.planned - len(ledger.earlier)
        if left and stopping():
            raise StoppedError(
                f"sweep stopped: {len(ledger.earlier)} of {ledger.planned} trials are done, in "
                f"{self.directory}; the same command with --resume goes on from there"
            )
        if left and is_late:
            announce(
                self.progress,
                f"the time budget is spent, with {len(ledger.earlier)} of {ledger.planned} trials "
                "done; the same command with --resume goes on",
            )
        if ledger.earlier and all(trial.state == "failed" for trial in ledger.earlier):
            raise SweepError(
                f"all {len(ledger.earlier)} trials failed, the first one because: "
                f"{ledger.earlier[0].cause}\nThe others' causes are in {summary}"
            )
        return summary

    def _prepare(self, stopping: Any) -> None:
        """Make what trials share, and let them have it."""
        if not self.job.shares_data:
            return
        untracked = attrs.evolve(self.experiment, trackers=())  # trackers are for trials
        data = self.directory / "data"
        if not data.exists() and (beside := _data_of_model(untracked)) is not None:
            data.symlink_to(beside)
        if not Run(untracked, self.directory).is_done("simulate"):
            simulate(untracked, self.directory, progress=self.progress)
            dump_toml(unstructure(self.experiment), self.directory / "config.toml")
        self._send("data", data)
        pretrained = self.experiment.model.pretrained
        if pretrained is not None and Path(pretrained).exists():
            self._send("model", Path(pretrained))
        if self.sweep.stage == "assimilate" and self.experiment.evaluate.reference is not None:
            self._make_references(stopping)
            self._send("reference", self.directory / "reference")

    def _send(self, name: str, folder: Path) -> None:
        if self.copy is not None:
            announce(self.progress, f"{name}: {folder} is copied to {self.copy.url}, if need be")
            (self.copy / name).push(folder)

    def _send_trials(self) -> None:
        """Copy what is gone on with, where it was done without this storage."""
        if self.copy is None:
            return
        for number in self.ledger.trials:
            folder = self.job.trial(number)
            copy = self.copy / f"trials/{folder.name}"
            if not self.ledger.has_ended(number) and not copy.pull(folder):
                copy.push(folder, leave_out=("trial.json",))  # which is this machine's

    def _fetch(self, number: int) -> None:
        """Copy what a trial has uploaded to the directory of the study."""
        if self.copy is None:
            return
        folder = self.job.trial(number)
        if (self.copy / f"trials/{folder.name}").pull(folder):
            self.job.link_data(number)

    def _make_references(self, stopping: Any) -> None:
        job, sets = self.job, self.sweep.observation_sets
        missing = [n for n in range(sets) if not job.reference(n).is_file()]
        workers = self.sweep.concurrency or len(missing)
        with reporting(self.progress, "references", sets, sets - len(missing)) as report:
            drawn = self.cluster.map(partial(make_reference, self.sent), missing, workers=workers)
            for done, (index, data) in enumerate(drawn, sets - len(missing) + 1):
                with replace_file(job.reference(missing[index])) as temporary:
                    temporary.write_bytes(data)
                report(done)
                if stopping():
                    raise StoppedError(
                        "sweep stopped before its first trial; the same command with --resume goes "
                        "on from there"
                    )

    def _epochs(self, parameters: Mapping[str, Any]) -> int | None:
        if self.sweep.stage == "assimilate":
            return None
        return int(parameters.get("train.epochs", self.experiment.train.epochs))

    def _changed(self) -> None:
        """Show and write how the study stands."""
        study = self._study()
        study.save(self.directory)
        counts = study.counts
        ended = sum(counts.get(state, 0) for state in ("finished", "pruned", "failed"))
        notes = [f"{counts[s]} {s}" for s in ("running", "pruned", "failed") if s in counts]
        if study.best is not None:
            notes.append(f"best {study.best.value:.4g} (trial {study.best.number})")
        self._report(ended, "  ".join(notes))

    def _study(self) -> Study:
        return Study(
            title=self.experiment.title,
            metric=self.sweep.metric,
            mode=self.sweep.mode,
            stage=self.sweep.stage,
            settings=self.sweep.settings,
            trials=tuple(trial for _, trial in sorted(self.ledger.trials.items())),
            seconds=round(self._seconds + time.monotonic() - self._began, 3),
            resumed=self._resumed,
            versions=self._versions,
        )


def _check_directory(experiment: Experiment, directory: Path, resume: bool) -> None:
    """Refuse another study's directory.

    Raises:
        SweepError: There is a study that was not asked for, none where one was, or another.
    """
    path = directory / "config.toml"
    if not path.is_file():
        if resume:
            raise SweepError(
                f"there is no study in {directory} to go on with: leave out --resume to start one"
            )
        return
    if "sweep" not in load_toml(path):
        raise SweepError(f"there is a run in {directory}, and no study: give another directory")
    if not resume:
        raise SweepError(
            f"there is a study in {directory}: go on with it by --resume, or give another "
            "directory by --dir"
        )
    changed = differences(_fixed(load_toml(path)), _fixed(unstructure(experiment)))
    if changed:
        raise SweepError(
            f"the study in {directory} is another one. It differs in {', '.join(changed)}. Its "
            "trials could not be compared with those that would follow: go on with its own "
            "configuration, or start another study in another directory"
        )


def _check_reach(experiment: Any, directory: Path, storage: str | None) -> None:
    """Refuse a cluster that does not reach what is here; the directory is there.

    Raises:
        ClusterError: Says what it does not reach.
    """
    table, needed = trial_table(experiment, directory), []
    if (observed := table["assimilate"].get("observations")) is not None:
        needed.append(Path(observed["file"]))
    pretrained = experiment.model.pretrained
    if storage is None and pretrained is not None and Path(pretrained).exists():
        needed.append(Path(pretrained).resolve())
    if storage is None and (data := _data_of_model(experiment)) is not None:
        needed.append(data)
    versions = Run(experiment, directory).versions()
    try:
        check_reach(Mirror(storage or _place(storage, directory)), table, needed, versions)
    except ClusterError:
        with suppress(OSError):  # it has a study
            directory.rmdir()
        raise


def _place(storage: str | None, directory: Path) -> str:
    """Where trials are kept."""
    return str(directory.resolve()) if storage is None else storage_of(storage, directory).url


def storage_of(storage: str, directory: Path) -> Mirror:
    """The place of a study in the storage of a cluster: it has the name of its directory."""
    return Mirror(storage.rstrip("/")) / directory.resolve().name


def _check_storage(storage: str, directory: Path, resume: bool) -> None:
    """Refuse a place that cannot be written to, or has another study.

    Raises:
        ClusterError: It cannot.
        SweepError: It has.
    """
    Mirror(storage).check()
    copy = storage_of(storage, directory)
    if not resume and copy.exists():
        raise SweepError(
            f"there is something in {copy.url}, as of a study that was done in another directory "
            "of this name: give another name by --dir, or another cluster.storage, or remove it"
        )


def _fixed(table: Mapping[str, Any]) -> dict[str, Any]:
    """What may not change in a study."""
    kept = {k: v for k, v in table.items() if k not in ("title", "cluster", "trackers")}
    sweep = {k: v for k, v in table.get("sweep", {}).items() if k not in _MAY_CHANGE}
    return kept | {"sweep": sweep | {"space": dict(leaves(sweep.get("space", {})))}}


def _check_resources(sweep: RayTune) -> None:
    """Refuse a trial for which no machine has room.

    Raises:
        ClusterError: There is none.
    """
    import ray

    if sweep.workers_per_trial > 1:
        keys = ("workers_per_trial", "cpus_per_trial", "gpus_per_trial")
        sweep.workers.checked(", ".join(f"sweep.{key}" for key in keys))
        return
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    asked = {"CPU": sweep.cpus_per_trial, "GPU": sweep.gpus_per_trial}
    if any(all(node.get(k, 0) >= v for k, v in asked.items()) for node in nodes):
        return
    for key, field in (("CPU", "cpus_per_trial"), ("GPU", "gpus_per_trial")):
        most = max((node.get(key, 0) for node in nodes), default=0)
        if asked[key] > most:
            raise ClusterError(
                f"sweep.{field} = {asked[key]:g}, but no machine of the cluster has more than "
                f"{most:g}: give at most that"
            )
    raise ClusterError(
        f"no machine of the cluster has {asked['CPU']:g} CPUs and {asked['GPU']:g} GPUs at once "
        "(sweep.cpus_per_trial, sweep.gpus_per_trial): give less"
    )


def trial_table(experiment: Experiment, directory: Path) -> dict[str, Any]:
    """The table that trials start from: models by their whole path, trackers with one group."""
    whole: Any = experiment
    trackers = tuple(
        attrs.evolve(tracker, group=directory.resolve().name)
        if getattr(tracker, "group", "") is None
        else tracker
        for tracker in whole.trackers
    )
    table = table_of(attrs.evolve(whole, trackers=trackers))
    if whole.sweep.scheduler.name == "pbt":  # who learns from a trial needs its weights of then
        table["train"] = table["train"] | {"checkpoint_every": whole.sweep.scheduler.interval}
    pretrained = whole.model.pretrained
    if pretrained is not None and Path(pretrained).exists():
        table["model"] = table["model"] | {"pretrained": str(Path(pretrained).resolve())}
    if (observed := table["assimilate"].get("observations")) is not None:
        whole_path = {"file": str(Path(observed["file"]).resolve())}
        table["assimilate"] = table["assimilate"] | {"observations": observed | whole_path}
    return table


def _data_of_model(experiment: Any) -> Path | None:
    """The data in the run directory that a pretrained model is of."""
    if experiment.model.pretrained is None:
        return None
    beside = model_folder(experiment.model.pretrained).resolve().parent / "data"
    return beside if beside.is_dir() else None


def _versions(experiment: Experiment, directory: Path) -> dict[str, str]:
    import optuna
    import ray

    return Run(experiment, directory).versions() | {
        "ray": ray.__version__,
        "optuna": optuna.__version__,
    }
