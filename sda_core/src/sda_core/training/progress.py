"""Progress and stop requests of a training: in this process, or in the driver."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from typing import Any

import attrs

from sda_core.cluster import Cluster, WorkerChannel, WorkerDirectory
from sda_core.errors import ConfigError
from sda_core.io.interrupt import stop_request
from sda_core.io.progress import ProgressOption, announce, reporting
from sda_core.plugins import hookimpl

#: A function of the steps done and a note, and one that says whether to stop.
Tracking = tuple[Callable[..., None], Callable[[], bool]]


class ProgressReporter(ABC):
    """Where the progress of a training is reported, and from where it is stopped."""

    @abstractmethod
    def track(self, total: int, done: int) -> AbstractContextManager[Tracking]:
        """Report the progress of a training of so many steps, of which some are done."""

    @abstractmethod
    def say(self, line: str) -> None:
        """Say something."""


@attrs.frozen
class LocalProgress(ProgressReporter):
    """This process, where progress is shown and Ctrl-C is heard."""

    progress: ProgressOption

    @contextmanager
    def track(self, total: int, done: int) -> Iterator[Tracking]:
        """Report progress."""
        with (
            reporting(self.progress, "training", total, done) as report,
            stop_request() as should_stop,
        ):
            yield report, should_stop

    def say(self, line: str) -> None:
        """Say something, where progress is shown."""
        announce(self.progress, line)


@attrs.frozen
class RemoteProgress(ProgressReporter):
    """The driver, by a channel to it."""

    channel: WorkerChannel

    @contextmanager
    def track(self, total: int, done: int) -> Iterator[Tracking]:
        """Report progress."""
        self.channel.send(("begin", total, done))
        yield (
            lambda done, note="": self.channel.send(("step", done, note)),
            self.channel.should_stop,
        )

    def say(self, line: str) -> None:
        """Say something."""
        self.channel.send(("say", line))

    def checkpoint_saved(self) -> None:
        """Say that a checkpoint was saved."""
        self.channel.send(("saved",))

    @contextmanager
    def forward_warnings(self) -> Iterator[None]:
        """Let the driver give the warnings of this process."""
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: self.channel.send(("warn", message))
            yield


@attrs.frozen
class Uploader:
    """A plugin that saves the run directory with each checkpoint, after other plugins."""

    folder: WorkerDirectory
    progress: RemoteProgress
    sda_interface = 1

    @hookimpl(trylast=True)
    def sda_checkpoint_written(self) -> None:
        """Save it."""
        self.folder.upload()
        self.progress.checkpoint_saved()


def check_workers(
    workers: int | None, gpus: float | None, batch_size: int, detect_anomaly: bool
) -> None:
    """Refuse numbers of workers and of their GPUs that there cannot be.

    Raises:
        ConfigError: They are.
    """
    if workers is None:
        if gpus is not None:
            raise ConfigError(
                f"--gpus-per-worker {gpus:g} says what each has, but not how many there are: give "
                "--workers, too"
            )
        return
    if not 1 <= workers <= batch_size:
        raise ConfigError(
            f"--workers {workers}: give the number of processes, from 1 to train.batch_size = "
            f"{batch_size}, whose windows they share"
        )
    if gpus is not None and (gpus < 0 or (gpus > 1 and gpus != round(gpus))):
        raise ConfigError(
            f"--gpus-per-worker {gpus:g}: give 0, a fraction of 1 that is shared, or a whole number"
        )
    if detect_anomaly:
        raise ConfigError(
            f"--detect-anomaly looks at one process: leave out --workers {workers}; any number of "
            "workers, or none, can resume a checkpoint"
        )


def run_with_progress(
    cluster: Cluster,
    work: Callable[[WorkerChannel], None],
    progress: ProgressOption,
    fetch: Callable[[], None],
    **options: Any,
) -> None:
    """Train on several workers, and show what the :class:`RemoteProgress` of rank 0 reports.

    Args:
        cluster: Where.
        work: What each does.
        progress: What to show.
        fetch: Called when a checkpoint was saved.
        options: More for :meth:`sda_core.cluster.Cluster.run_distributed`.
    """
    report: Callable[..., None] | None = None
    with ExitStack() as stack:
        should_stop = stack.enter_context(stop_request())
        told = stack.enter_context(
            closing(cluster.run_distributed(work, should_stop=should_stop, **options))
        )
        what: list[Any]
        for kind, *what in told:
            if kind == "begin" and report is None:
                report = stack.enter_context(reporting(progress, "training", *what))
            elif kind == "begin":
                total, done = what
                announce(
                    progress,
                    f"workers were restarted, and resume at step {done:,} of {total:,}",
                )
            elif kind == "step" and report is not None:
                report(*what)
            elif kind == "saved":
                fetch()
            elif kind == "say":
                announce(progress, *what)
            elif kind == "warn":
                warnings.warn(what[0], stacklevel=4)
