"""What all trials of a study have in common, and where each works.

A trial has a run directory, ``trials/00000`` in that of the study. On machines that do not have
the directory of the study it works in their cache, and its checkpoints are uploaded from there.
"""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from sda_core.config import structure
from sda_core.errors import ClusterError, SweepError
from sda_core.experiment import Experiment
from sda_core.io.files import file_lock
from sda_core.plugins import default_manager, hookimpl
from sda_ray.cache import cache_dir
from sda_ray.remote import WorkerResources
from sda_ray.storage import download, upload
from sda_ray.tune.search_space import Space

#: What trials share: the data, a pretrained model, and the reference ensembles.
SHARED = ("data", "model", "reference")
#: Seconds in which an earlier process of a trial, whose driver was killed, must have ended.
LOCK_TIMEOUT = 60.0


@attrs.frozen(kw_only=True)
class TrialContext:
    """What all trials of a study have in common.

    Attributes:
        directory: The directory of the study, absolute.
        table: The table of the experiment, without its sweep.
        space: The leaves of the space, by path.
        stage: What a trial does.
        metric: What is compared.
        sets: Number of observation sets of an assimilation.
        shares_data: Whether the study's data are the trial's.
        predictions: Whether posteriors are kept.
        evaluate: Whether what is trained is evaluated on observations.
        interval: Epochs between two checkpoints of trials that learn from each other, which report
            when they have written one; None for others.
        storage: URL of the study, where its directory is not on all machines.
        model: The pretrained model, where it is not the one that the table names.
        workers: The workers that train a model together; None for the process of the trial alone.
        retries: How often they are started anew when one is lost.
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
    workers: WorkerResources | None = None
    retries: int = 0

    def trial(self, number: int) -> Path:
        """The run directory of a trial."""
        return Path(self.directory) / "trials" / f"{number:05d}"

    def reference(self, number: int) -> Path:
        """The reference ensemble of an observation set."""
        return Path(self.directory) / "reference" / f"{number}.nc"

    def experiment(self, parameters: Mapping[str, Any]) -> Experiment:
        """The experiment of a trial."""
        return structure(Experiment, Space.parse(self.space).apply(self.table, parameters))

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

    def data_url(self, number: int) -> str:
        """Where the data of a trial are in the storage."""
        return (
            f"{self.storage}/data" if self.shares_data else f"{self.storage}/own-data/{number:05d}"
        )

    def upload(self, number: int) -> None:
        """Upload the directory of a trial, where there is a storage.

        Raises:
            ClusterError: That cannot be done.
        """
        if self.storage is not None:
            directory = self.trial(number)
            if not self.shares_data and (directory / "data").is_dir():
                upload(directory / "data", self.data_url(number))
            upload(directory, f"{self.storage}/trials/{number:05d}", exclude=("data",))

    def download(self, number: int) -> bool:
        """Make the directory of a trial like what it has uploaded; whether there is something."""
        if self.storage is None:
            return False
        directory = self.trial(number)
        if found := download(f"{self.storage}/trials/{number:05d}", directory):
            self.link_data(number)
            if not self.shares_data:
                download(self.data_url(number), directory / "data")
        return found

    def upload_study(self) -> None:
        """Upload the record of the study, where there is a storage; if that fails, it goes on."""
        if self.storage is not None:
            try:
                upload(Path(self.directory), f"{self.storage}/study", exclude=(*SHARED, "trials"))
            except ClusterError as error:
                warnings.warn(str(error), stacklevel=2)

    def download_study(self) -> bool:
        """Fetch the record of the study; whether there is one."""
        if self.storage is None:
            return False
        return download(f"{self.storage}/study", Path(self.directory))

    def staged(self) -> TrialContext:
        """The same for this machine: what trials share is fetched to its cache, where need be.

        Raises:
            ClusterError: It cannot be fetched.
        """
        if self.storage is None:
            return self
        here = cache_dir(self.storage)
        with file_lock(here / ".lock", "download", ClusterError, timeout=math.inf):
            found = {name: download(f"{self.storage}/{name}", here / name) for name in SHARED}
        model = str(here / "model") if found["model"] else None
        return attrs.evolve(self, directory=str(here), model=model)

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
        with file_lock(
            directory.parent / f".{number:05d}.lock", "trial", ClusterError, timeout=LOCK_TIMEOUT
        ):
            if here.storage is not None:
                shutil.rmtree(directory, ignore_errors=True)  # a killed process has left it
                here.download(number)
                default_manager().register(_Uploader(here, number), "storage")
            directory.mkdir(exist_ok=True)
            here.link_data(number)
            try:
                yield here
            finally:
                if here.storage is not None:
                    shutil.rmtree(directory, ignore_errors=True)


class _Uploader:
    """A plugin that uploads a trial's directory with each checkpoint."""

    sda_interface = 1

    def __init__(self, context: TrialContext, number: int) -> None:
        self._context, self._number = context, number

    @hookimpl
    def sda_checkpoint_written(self) -> None:
        """Upload it; if that fails, the training goes on, and the next one tries again."""
        try:
            self._context.upload(self._number)
        except ClusterError as error:
            warnings.warn(str(error), stacklevel=2)
