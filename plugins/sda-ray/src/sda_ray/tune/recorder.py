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
from sda_ray.tune.context import TrialContext
from sda_ray.tune.searcher import TIME, VALUE, Stateless
from sda_ray.tune.study import Study

#: Seconds that trials have to write a checkpoint when the study is stopped.
_GRACE_PERIOD = 120.0


class Recorder(Stateless, tune.Callback):
    """Records in the study what Tune hears of the trials.

    Args:
        study: The study.
        context: What its trials have in common.
        changed: Called after each change.
    """

    def __init__(self, study: Study, context: TrialContext, changed: Callable[[], None]) -> None:
        self._study, self._context, self._changed = study, context, changed
        self.running: set[int] = set()

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Know that it runs."""
        self.running.add(_number(trial))
        self._changed()

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Know that it has lost its process, and is to start again."""
        self.running.discard(_number(trial))

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
        cause: str = self._context.sweep.scheduler.name
        curve = self._study[_number(trial)].curve
        if curve:
            unit = "epoch" if self._study.stage == "train" else "observation set"
            cause = f"{cause} after {unit} {curve[-1][0]}"
        pruned = {"state": "pruned", "cause": cause, "metrics": last.get("metrics", {})}
        self._end(trial, dict(last.get("outcome", pruned)))

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Record that it has lost its process for good; others say themselves why they failed."""
        cause = "Ray does not say why"
        with suppress(OSError, IndexError, TypeError):
            cause = Path(trial.error_file).read_text().strip().splitlines()[-1].strip()
        self._end(trial, {"state": "failed", "cause": f"its process was lost: {cause}"})

    def _end(self, trial: Any, outcome: dict[str, Any]) -> None:
        number = _number(trial)
        self.running.discard(number)
        self._context.download(number)
        self._study.end(number, outcome.pop("state"), outcome)
        self._context.upload_study()
        self._changed()


def _number(trial: Any) -> int:
    return int(trial.config["trial"]["number"])


class Stopper(Stateless, tune.Stopper):
    """Ends all trials when that is asked for, or the time is over; each writes a checkpoint first.

    And it ends the call of Tune where no trial runs, and none starts: Ray can wait for ever for a
    process that has run out of memory while it started.

    Args:
        stopping: Whether to stop.
        end: When the time is over, of the monotonic clock.
        start_timeout: Seconds in which some trial must have started.
        flag: By which trials are told.
        running: The trials that have started, and not ended.
    """

    def __init__(
        self,
        stopping: Callable[[], bool],
        end: float,
        start_timeout: float,
        flag: StopFlag,
        running: set[int],
    ) -> None:
        self._stopping, self._end, self._start_timeout = stopping, end, start_timeout
        self._flag, self._running, self._last_running = flag, running, time.monotonic()
        self._kill_at = math.inf
        self.is_late = self.has_stalled = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether a single trial ends: never."""
        return False

    def is_stopping(self) -> bool:
        """Whether the study is to stop."""
        self.is_late = self.is_late or time.monotonic() > self._end
        return self.is_late or self._stopping()

    def stop_all(self) -> bool:
        """Tell the trials; and end them, once they have ended themselves or take too long."""
        now = time.monotonic()
        if self._running:
            self._last_running = now
        if self.is_stopping():
            if self._kill_at == math.inf:
                self._kill_at = now + _GRACE_PERIOD
                self._flag.set()
            return not self._running or now > self._kill_at
        self.has_stalled = now > self._last_running + self._start_timeout
        return self.has_stalled
