"""What all trials of a study have in common, and where each works.

A trial has a run directory, ``trials/00000`` in that of the study. On machines that do not have
the directory of the study it works in their cache, and its checkpoints are uploaded from there.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from sda_core.config import structure, unstructure
from sda_core.errors import ClusterError, SweepError
from sda_core.experiment import Experiment
from sda_core.io.files import file_lock
from sda_core.plugins import hookimpl
from sda_ray.storage import check_writable, download, exists, upload
from sda_ray.sync import RemoteDirectory, cache_dir, lock_cache, warning_of_failures
from sda_ray.tune.config import SweepSettings

#: What trials share: the data, a pretrained model, and the reference ensembles.
SHARED = ("data", "model", "reference")
#: Seconds in which an earlier process of a trial, whose driver was killed, must have ended.
_LOCK_TIMEOUT = 60.0


@attrs.frozen(kw_only=True)
class TrialContext:
    """What all trials of a study have in common.

    Attributes:
        directory: The directory of the study, absolute.
        table: The table of the experiment, without its sweep.
        sweep: What the sweep is asked for.
        storage: URL of the study, where its directory is not on all machines.
        model: The pretrained model, where it is not the one that the table names.
    """

    directory: str
    table: dict[str, Any]
    sweep: SweepSettings
    storage: str | None = None
    model: str | None = None

    @classmethod
    def create(cls, sweep: SweepSettings, experiment: Experiment, directory: Path) -> TrialContext:
        """The context of a study in a directory, whose name it has in the storage, too."""
        where: Any = experiment.cluster
        storage = None if where is None else where.storage
        name = directory.resolve().name
        return cls(
            directory=str(directory.resolve()),
            table=trial_table(experiment, name),
            sweep=sweep,
            storage=None if storage is None else f"{storage.rstrip('/')}/{name}",
        )

    @property
    def is_population(self) -> bool:
        """Whether trials learn from each other; they report when they have a checkpoint."""
        return self.sweep.scheduler.name == "pbt"

    @property
    def shares_data(self) -> bool:
        """Whether the study's data are the trial's."""
        return not self.sweep.search_space.touches("system", "data", "seed")

    def for_workers(self) -> TrialContext:
        """The same for machines of the cluster, which may not have the directory."""
        whole: Any = self  # to mypy it is frozen
        return self if self.storage is None else attrs.evolve(whole, directory="")

    # --- of a trial ---

    def trial(self, number: int) -> Path:
        """The run directory of a trial."""
        return Path(self.directory) / "trials" / f"{number:05d}"

    def reference(self, number: int) -> Path:
        """The reference ensemble of an observation set."""
        return Path(self.directory) / "reference" / f"{number}.nc"

    def experiment(self, parameters: Mapping[str, Any]) -> Experiment:
        """The experiment of a trial."""
        return structure(Experiment, self.sweep.search_space.apply(self.table, parameters))

    def observed(self, experiment: Experiment, number: int) -> Experiment:
        """An experiment that infers the trajectory of an observation set."""
        whole: Any = experiment  # to mypy components are no attrs classes
        assimilate = attrs.evolve(whole.assimilate, trajectory=number)
        model = attrs.evolve(whole.model, pretrained=self.model or whole.model.pretrained)
        return attrs.evolve(whole, assimilate=assimilate, model=model)

    def link_data(self, number: int) -> None:
        """Let the study's data be those of a trial."""
        link = self.trial(number) / "data"
        if self.shares_data and not link.exists():
            link.symlink_to(Path("..") / ".." / "data")

    # --- in the storage ---

    def check_storage(self, resume: bool) -> None:
        """Refuse a storage that cannot be written to, or that has another study.

        Raises:
            ClusterError: It cannot.
            SweepError: It has.
        """
        if self.storage is None:
            return
        check_writable(self.storage.rpartition("/")[0])
        if not resume and exists(self.storage):
            raise SweepError(
                f"there is something in {self.storage}, as of a study in another directory of this "
                "name: give another name by --dir, or another cluster.storage, or remove it"
            )

    def remote(self, number: int) -> RemoteDirectory:
        """The directory of a trial in the storage."""
        data = "data" if self.shares_data else f"own-data/{number:05d}"
        return RemoteDirectory(str(self.storage), f"trials/{number:05d}", data)

    def upload(self, number: int) -> None:
        """Upload the directory of a trial, where there is a storage.

        Raises:
            ClusterError: That cannot be done.
        """
        if self.storage is not None:
            directory, remote = self.trial(number), self.remote(number)
            if not self.shares_data and (directory / "data").is_dir():
                upload(directory / "data", f"{self.storage}/{remote.data}")
            upload(directory, remote.url, exclude=("data",))

    def download(self, number: int) -> None:
        """Make the directory of a trial like what it has uploaded, if there is something."""
        if self.storage is not None:
            directory, remote = self.trial(number), self.remote(number)
            if download(remote.url, directory):
                self.link_data(number)
                if not self.shares_data:
                    download(f"{self.storage}/{remote.data}", directory / "data")

    def upload_study(self) -> None:
        """Upload the record of the study, where there is a storage; a failure is a warning."""
        if self.storage is not None:
            with warning_of_failures():
                upload(Path(self.directory), f"{self.storage}/study", exclude=(*SHARED, "trials"))

    def download_study(self) -> bool:
        """Fetch the record of the study; whether there is one."""
        url = f"{self.storage}/study"
        return self.storage is not None and download(url, Path(self.directory))

    # --- on a machine of the cluster ---

    def staged(self) -> TrialContext:
        """The same for this machine: what trials share is fetched to its cache, where need be.

        Raises:
            ClusterError: It cannot be fetched.
        """
        if self.storage is None:
            return self
        here = cache_dir(self.storage)
        with lock_cache(here):
            found = {name: download(f"{self.storage}/{name}", here / name) for name in SHARED}
        model = str(here / "model") if found["model"] else None
        whole: Any = self
        return attrs.evolve(whole, directory=str(here), model=model)

    @contextmanager
    def opened(self, number: int) -> Iterator[TrialContext]:
        """The same for the process of a trial, which alone has its directory.

        Raises:
            ClusterError: Another process of the trial does not end, or it cannot be fetched.
        """
        here = self.staged()
        if not Path(here.directory).is_dir():
            raise SweepError(
                f"{here.directory} is not there for a worker of the cluster: all its machines must "
                "have the directory of the study, by shared storage, or cluster.storage must be set"
            )
        directory = here.trial(number)
        directory.parent.mkdir(exist_ok=True)
        lock = directory.parent / f".{number:05d}.lock"
        with file_lock(lock, "process of the trial", ClusterError, timeout=_LOCK_TIMEOUT):
            if here.storage is not None:
                shutil.rmtree(directory, ignore_errors=True)  # a killed process has left it
                here.download(number)
            directory.mkdir(exist_ok=True)
            here.link_data(number)
            try:
                yield here
            finally:
                if here.storage is not None:
                    shutil.rmtree(directory, ignore_errors=True)


@attrs.frozen
class TrialUploader:
    """A plugin that uploads a trial's directory with each checkpoint."""

    context: TrialContext
    number: int
    sda_interface = 1

    @hookimpl(trylast=True)
    def sda_checkpoint_written(self) -> None:
        """Upload it; if that fails, there is a warning, and the next one tries again."""
        with warning_of_failures():
            self.context.upload(self.number)


def trial_table(experiment: Experiment, group: str | None = None) -> dict[str, Any]:
    """The table that trials start from, with whole paths; trackers have one group."""
    whole: Any = experiment
    trackers = tuple(
        attrs.evolve(tracker, group=group) if getattr(tracker, "group", "") is None else tracker
        for tracker in whole.trackers
    )
    table = unstructure(attrs.evolve(whole, trackers=trackers, cluster=None, sweep=None))
    scheduler = getattr(whole.sweep, "scheduler", None)
    if scheduler is not None and scheduler.name == "pbt":  # others start from a trial's weights
        table["train"] = table["train"] | {"checkpoint_every": scheduler.interval}
    pretrained = whole.model.pretrained
    if pretrained is not None and Path(pretrained).exists():
        table["model"] = table["model"] | {"pretrained": str(Path(pretrained).resolve())}
    if (observed := table["assimilate"].get("observations")) is not None:
        whole_path = {"file": str(Path(observed["file"]).resolve())}
        table["assimilate"] = table["assimilate"] | {"observations": observed | whole_path}
    return table
