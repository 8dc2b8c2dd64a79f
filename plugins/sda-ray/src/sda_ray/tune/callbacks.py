"""How a trial reports, and is stopped."""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sda_core.errors import TrainingError
from sda_core.plugins import hookimpl

#: Called with (epochs done, the metric, all metrics); returns when the trial may go on.
Report = Callable[[int, float, Mapping[str, float]], None]
#: Seconds between two questions whether the study is stopped.
POLL_INTERVAL = 1.0


class StudyStopped(Exception):  # noqa: N818 - it is no error
    """The study is stopped; not of the library, so that a training keeps what it has done."""


class StopFlag:
    """Whether a study is stopped, for processes of the cluster; it is, where its driver is lost.

    It is a plugin, too, that stops a stage.
    """

    sda_interface = 1

    def __init__(self) -> None:
        node = ray.get_runtime_context().get_node_id()  # no other machine can end it by its loss
        here = NodeAffinitySchedulingStrategy(node, soft=False)
        remote: Any = ray.remote(_Flag)
        self._actor = remote.options(num_cpus=0, scheduling_strategy=here).remote()
        self._next = 0.0

    def set(self) -> None:
        """Stop the study."""
        self._actor.set.remote()

    def check(self) -> None:
        """Raise StudyStopped if it is stopped; asked for often."""
        if (now := time.monotonic()) < self._next:
            return
        try:
            stopped = ray.get(self._actor.is_set.remote())
        except RayError:
            stopped = True
        if stopped:
            raise StudyStopped
        self._next = now + POLL_INTERVAL

    def __getstate__(self) -> dict[str, Any]:
        """The same for another process, whose clock is another one."""
        return self.__dict__ | {"_next": 0.0}

    @hookimpl
    def sda_metrics_logged(self) -> None:
        """Stop, in mid-epoch too."""
        self.check()

    @hookimpl
    def sda_sampling_step(self) -> None:
        """Stop."""
        self.check()


class _Flag:
    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    def is_set(self) -> bool:
        return self._is_set


class TrialCallback:
    """A plugin that reports a training, and stops it with the study."""

    sda_interface = 1

    def __init__(
        self, metric: str, report: Report, flag: StopFlag, *, at_checkpoints: bool
    ) -> None:
        self._metric, self._report, self._flag = metric, report, flag
        self._at_checkpoints = at_checkpoints
        self._values: dict[str, float] = {}
        self._last: tuple[int, float, dict[str, float]] | None = None

    @hookimpl
    def sda_metrics_logged(self, values: Mapping[str, Any]) -> None:
        """Keep the numbers of an epoch; and stop, in mid-epoch too."""
        self._flag.check()
        numbers = {name: v for name, v in values.items() if isinstance(v, int | float)}
        self._values |= {
            n.removeprefix("epoch/"): v for n, v in numbers.items() if n.startswith("epoch/")
        }

    @hookimpl
    def sda_epoch_ended(self, metrics: Mapping[str, Any]) -> None:
        """Report, after each validation."""
        self._flag.check()
        values, self._values = self._values, {}
        value = values.get(self._metric)
        if metrics["valid_loss"] is None or value is None:
            return
        if not math.isfinite(value):
            raise TrainingError(f"{self._metric} is {value} after epoch {metrics['epoch']}")
        self._last = (metrics["epoch"], value, values)
        if not self._at_checkpoints:
            self._tell()

    @hookimpl
    def sda_checkpoint_written(self) -> None:
        """Report, where others may go on from the checkpoint."""
        if self._at_checkpoints:
            self._tell()

    def _tell(self) -> None:
        if self._last is not None:
            last, self._last = self._last, None
            self._report(*last)


def report_to_tune(result: Mapping[str, Any], directory: Path, names: Sequence[str]) -> None:
    """Report to Ray Tune, with copies of files and folders as a checkpoint if there are some."""
    if not names or not (directory / names[0]).exists():
        tune.report(dict(result))
        return
    with TemporaryDirectory() as folder:
        for name in names:
            source, target = directory / name, Path(folder) / name
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
        tune.report(dict(result), checkpoint=tune.Checkpoint.from_directory(folder))


@contextmanager
def forwarding(report: Report) -> Iterator[Report]:
    """Let the workers that train a trial's model report from their process.

    Workers that are started anew report earlier epochs again; these are not forwarded.
    """
    reports, answers = (Queue(actor_options={"num_cpus": 0}) for _ in range(2))

    def forward() -> None:
        reached = 0
        while (found := reports.get()) is not None:
            if found[0] > reached:
                reached = found[0]
                report(*found)
            answers.put(True)

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()
    try:
        yield partial(_ask, reports, answers)
    finally:
        reports.put(None)
        thread.join()
        for queue in (reports, answers):
            queue.shutdown()


def _ask(
    reports: Queue, answers: Queue, epoch: int, value: float, metrics: Mapping[str, float]
) -> None:
    reports.put((epoch, value, dict(metrics)))
    answers.get()
