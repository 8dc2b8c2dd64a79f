"""How a trial reports and is stopped, and what the driver records of it."""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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
from sda_ray.tune.searcher import TIME, VALUE, Stateless
from sda_ray.tune.study import Study

#: Called with (epochs done, the metric, all metrics); returns when the trial may go on.
Report = Callable[[int, float, Mapping[str, float]], None]
#: Seconds between two questions whether the study is stopped.
POLL_INTERVAL = 1.0
#: Seconds that trials have to write a checkpoint when the study is stopped.
GRACE_PERIOD = 120.0


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


class Recorder(Stateless, tune.Callback):
    """Records in the study what Tune hears of the trials.

    Args:
        study: The study.
        scheduler: Name of what prunes.
        fetch: Called with the number of a trial that has ended.
        recorded: Called when that is recorded.
        changed: Called after each change.
    """

    def __init__(
        self,
        study: Study,
        scheduler: str,
        fetch: Callable[[int], object] = lambda number: None,
        recorded: Callable[[], None] = lambda: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._study, self._scheduler = study, scheduler
        self._fetch, self._recorded, self._changed = fetch, recorded, changed
        self.running: set[int] = set()

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Know that it runs."""
        self.running.add(_number(trial))
        self._changed()

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Record a value of the metric."""
        if "outcome" not in result:
            given, seconds = trial.config["trial"], result["time_total_s"]
            self._study.report(
                given["number"], result[TIME], result[VALUE], seconds, given["parameters"]
            )
            self._changed()

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Record how it ended: as it says itself, else it was pruned."""
        last = trial.last_result or {}
        outcome = dict(last.get("outcome") or {})
        if not outcome:
            curve = self._study[_number(trial)].curve
            unit = "epoch" if self._study.stage == "train" else "observation set"
            done = f" after {unit} {curve[-1][0]}" if curve else ""
            metrics = last.get("metrics", {})
            outcome = {
                "state": "pruned",
                "cause": f"{self._scheduler}{done}",
                "metrics": metrics,
            }
        self._end(trial, outcome)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Record that it has lost its process for good; others say themselves why they failed."""
        cause = "Ray does not say why"
        with suppress(OSError, IndexError, TypeError):
            cause = Path(trial.error_file).read_text().strip().splitlines()[-1].strip()
        self._end(trial, {"state": "failed", "cause": f"its process was lost: {cause}"})

    def _end(self, trial: Any, outcome: dict[str, Any]) -> None:
        number = _number(trial)
        self.running.discard(number)
        self._fetch(number)
        self._study.end(number, outcome.pop("state"), outcome)
        self._recorded()
        self._changed()


def _number(trial: Any) -> int:
    return int(trial.config["trial"]["number"])


class Stopper(Stateless, tune.Stopper):
    """Ends all trials when that is asked for, or the time is over; each writes a checkpoint first.

    Args:
        stopping: Whether to stop.
        budget: Seconds after which to stop; None for no limit.
        flag: By which trials are told.
        running: The trials that have not ended.
    """

    def __init__(
        self,
        stopping: Callable[[], bool],
        budget: float | None,
        flag: StopFlag,
        running: set[int],
    ) -> None:
        self._stopping, self._flag, self._running = stopping, flag, running
        self._end = math.inf if budget is None else time.monotonic() + budget
        self._told: float | None = None
        self.is_late = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether a single trial ends: never."""
        return False

    def is_stopping(self) -> bool:
        """Whether the study is to stop."""
        self.is_late = self.is_late or time.monotonic() > self._end
        return self.is_late or self._stopping()

    def stop_all(self) -> bool:
        """Tell the trials; and end them, once they have ended themselves or take too long."""
        if self._told is None and self.is_stopping():
            self._told = time.monotonic()
            self._flag.set()
        if self._told is None:
            return False
        return not self._running or time.monotonic() > self._told + GRACE_PERIOD
