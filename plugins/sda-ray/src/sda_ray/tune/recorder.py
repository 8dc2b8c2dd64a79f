"""What the driver records of the trials, and how it ends them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import tune

from sda_ray.tune.callbacks import StopFlag
from sda_ray.tune.searcher import TIME, VALUE, Stateless
from sda_ray.tune.study import Study

#: Seconds that trials have to write a checkpoint when the study is stopped.
GRACE_PERIOD = 120.0


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
