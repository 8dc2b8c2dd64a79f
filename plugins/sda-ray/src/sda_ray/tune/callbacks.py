"""How a trial reports, and is stopped."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sda_core.errors import TrainingError
from sda_core.plugins import hookimpl

#: Called with (epochs done, the metric, all metrics); returns when the trial may go on.
Report = Callable[[int, float, Mapping[str, float]], None]
#: Seconds between two questions whether the study is stopped.
_POLL_INTERVAL = 1.0


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
        self._stops = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self._next = 0.0

    def set(self) -> None:
        """Stop the study."""
        self._stops.put(True)

    def shutdown(self) -> None:
        """End its process; all trials have ended."""
        self._stops.shutdown(force=True)

    def check(self) -> None:
        """Raise StudyStopped if it is stopped; asked for often."""
        if (now := time.monotonic()) < self._next:
            return
        try:
            stopped = not self._stops.empty()
        except RayError:
            stopped = True
        if stopped:
            raise StudyStopped
        self._next = now + _POLL_INTERVAL

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


class TrialCallback:
    """A plugin that reports a training after each validation, or after each checkpoint."""

    sda_interface = 1

    def __init__(self, metric: str, report: Report, *, at_checkpoints: bool) -> None:
        self._metric, self._report, self._at_checkpoints = metric, report, at_checkpoints
        self._values: dict[str, float] = {}
        self._last: tuple[int, float, dict[str, float]] | None = None

    @hookimpl
    def sda_metrics_logged(self, values: Mapping[str, Any]) -> None:
        """Keep the numbers of an epoch."""
        for name, value in values.items():
            if name.startswith("epoch/") and isinstance(value, int | float):
                self._values[name.removeprefix("epoch/")] = value

    @hookimpl
    def sda_epoch_ended(self, metrics: Mapping[str, Any]) -> None:
        """Report, after each validation."""
        values, self._values = self._values, {}
        value = values.get(self._metric)
        if metrics["valid_loss"] is None or value is None:
            return
        if not math.isfinite(value):
            raise TrainingError(f"{self._metric} is {value} after epoch {metrics['epoch']}")
        self._last = (metrics["epoch"], value, values)
        if not self._at_checkpoints:
            self._report(*self._last)

    @hookimpl
    def sda_checkpoint_written(self) -> None:
        """Report, where others may go on from the checkpoint."""
        if self._at_checkpoints and self._last is not None:
            self._report(*self._last)
            self._last = None


@contextmanager
def forwarding(report: Report) -> Iterator[Report]:
    """Let the workers that train a trial's model report from their process.

    They are ahead of Tune by two reports at most. Workers that are restarted report earlier epochs
    again; these are not forwarded.
    """
    reports = Queue(maxsize=1, actor_options={"num_cpus": 0})

    def forward() -> None:
        reached = 0
        while (found := reports.get()) is not None:
            if found[0] > reached:
                reached = found[0]
                report(*found)

    def put(epoch: int, value: float, metrics: Mapping[str, float]) -> None:
        reports.put((epoch, value, dict(metrics)))

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()
    try:
        yield put
    finally:
        reports.put(None)
        thread.join()
        reports.shutdown(force=True)
