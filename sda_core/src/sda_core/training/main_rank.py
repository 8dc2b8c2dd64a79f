"""A training on rank 0, with records, checkpoints, roll-backs and its end."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import attrs

from sda_core.denoiser import WindowDenoiser
from sda_core.errors import (
    AssimilationError,
    CheckpointError,
    CheckpointWarning,
    SDAError,
    StoppedError,
    TrainingError,
)
from sda_core.io.files import write_json
from sda_core.plugins import PluginManager
from sda_core.tracker import Value
from sda_core.training.checkpoints import CheckpointFolder
from sda_core.training.events import EpochMetrics, Event, LossSpike, SkippedBatch, Step
from sda_core.training.memory import memory_in_use
from sda_core.training.progress import ProgressReporter
from sda_core.training.state import history_columns
from sda_core.training.trainer import Trainer

#: Seconds between two looks at progress.
_PROGRESS_INTERVAL = 0.2


class TrainingRun(Protocol):
    """What a training needs of the run that it belongs to; hooks are given it as ``run``."""

    @property
    def directory(self) -> Path:
        """Where everything is."""

    @property
    def checkpoints(self) -> CheckpointFolder:
        """The checkpoints of the training."""

    @property
    def manager(self) -> PluginManager:
        """Plugins, whose hooks are called."""

    def log(self, event: Mapping[str, Any]) -> None:
        """Append an event to the metrics."""

    def log_values(self, event: str, epoch: int, step: int, values: Mapping[str, Value]) -> None:
        """Report numbers, histograms and pictures."""

    def diagnostics(self, stage: str, **context: Any) -> dict[str, Value]:
        """What plugins add, by name."""

    def truncate_metrics(self, step: int) -> None:
        """Drop the metrics of steps after one."""


class MainRank:
    """A training with its checkpoints, records and guards.

    Args:
        run: The run.
        trainer: The trainer, in the state to resume from.
        depends: The configuration that a checkpoint belongs to.
        progress: Where progress is reported.
        sample: Draws samples with a denoiser every ``train.sample_every`` epochs, and gives the
            values to report.
    """

    def __init__(
        self,
        run: TrainingRun,
        trainer: Trainer,
        depends: Mapping[str, Any],
        progress: ProgressReporter,
        sample: Callable[[WindowDenoiser], Mapping[str, Value]],
    ) -> None:
        self.run, self.trainer, self.depends = run, trainer, depends
        self.progress, self.sample = progress, sample
        self.settings = trainer.config
        self.folder = run.checkpoints
        self._written = self._shown = time.monotonic()
        self._shown_step = trainer.step

    def train(self) -> None:
        """Train to the end.

        Raises:
            StoppedError: A stop was asked for.
            TrainingError: It cannot be continued.
        """
        trainer = self.trainer
        with self.progress.track(trainer.num_steps, trainer.step) as (report, stopping):
            try:
                while not self._events(report, stopping):
                    pass
            except TrainingError as error:
                raise TrainingError(f"{error}. {self._last_good()}") from error

    def _events(self, report: Callable[..., None], stopping: Callable[[], bool]) -> bool:
        """Train until the end, or until it was rolled back; whether it was the end."""
        for event in self.trainer.events():
            if self._handle_failure(event):
                return False
            if not isinstance(event, Step | EpochMetrics):
                continue
            try:
                reason = self._after(event, report)
            except SDAError:
                raise
            except Exception:  # of a plugin, or the disk; what was trained is not lost with it
                self._broadcast_plan(saves=True, ends=True)
                self._checkpoint(event)
                raise
            ended = event.epoch == self.settings.epochs or reason is not None
            stops = not ended and stopping()
            saves = ended or stops or self._is_due(event)
            if self._broadcast_plan(saves=saves, ends=ended or stops):
                return False
            if saves:
                self._checkpoint(event, ended=reason)
            if ended:
                if reason is not None:
                    self.progress.say(f"training ends after epoch {event.epoch}: {reason}")
                return True
            if stops:
                raise StoppedError(
                    f"training stopped after step {event.step:,} of "
                    f"{self.trainer.num_steps:,} (epoch {event.epoch} of "
                    f"{self.settings.epochs}); the same command resumes it"
                )
        return True

    def _broadcast_plan(self, *, saves: bool, ends: bool) -> bool:
        """Tell the other ranks what comes after a step; whether it was rolled back instead."""
        self.trainer.group.broadcast((saves, ends))
        return saves and any(self._handle_failure(late) for late in self.trainer.flush_events())

    def _handle_failure(self, event: Event) -> bool:
        """Record what went wrong, if it did; whether the training was rolled back."""
        if isinstance(event, SkippedBatch):
            self.run.log({"event": "skipped", **attrs.asdict(event)})
            self.progress.say(
                f"skipped a batch that is not finite, at step {event.step} "
                f"(loss {event.loss:g}, gradient norm {event.grad_norm:g})"
            )
        elif isinstance(event, LossSpike):
            self._roll_back(event)
            return True
        return False

    def _after(self, event: Any, report: Callable[..., None]) -> str | None:
        """Report a step, and an epoch if it ended one; give a reason to end the training."""
        trainer, run = self.trainer, self.run
        self._show_progress(event, report)
        if event.step % self.settings.report_every == 0:
            values = {**trainer.report(), **run.diagnostics("batch", trainer=trainer)}
            run.log_values("report", event.epoch, event.step, values)
        if not isinstance(event, EpochMetrics):
            return None
        metrics = attrs.asdict(event)
        values = {k: v for k, v in metrics.items() if k not in ("epoch", "step") and v is not None}
        values |= run.diagnostics("epoch", trainer=trainer, metrics=metrics)
        if event.valid_loss is not None:
            values |= run.diagnostics("validation", trainer=trainer, metrics=metrics)
        if self.settings.sample_every and event.epoch % self.settings.sample_every == 0:
            values |= self._samples()
        run.log_values("epoch", event.epoch, event.step, values)
        run.manager.call("sda_epoch_ended", run=run, metrics=metrics)
        if event.valid_loss is None:
            return None
        reasons = run.manager.call("sda_stop_training", str, run=run, metrics=metrics)
        return next((r for r in [*reasons, self._out_of_patience()] if r is not None), None)

    def _out_of_patience(self) -> str | None:
        patience, trainer = self.settings.patience, self.trainer
        if patience is None or not math.isfinite(trainer.best_loss):
            return None
        validated = [m for m in trainer.history if m.valid_loss is not None]
        worse = sum(m.epoch > trainer.best_epoch for m in validated)
        if worse < patience:
            return None
        return f"{worse} validations were no better than that of epoch {trainer.best_epoch}"

    def _samples(self) -> Mapping[str, Value]:
        try:
            return self.sample(copy.deepcopy(self.trainer.best_denoiser))
        except AssimilationError as error:
            self.progress.say(f"no samples after epoch {self.trainer.epoch}: {error}")
            return {}

    def _is_due(self, event: Any) -> bool:
        if self.trainer.guards.is_rising:
            return False
        minutes = self.settings.checkpoint_minutes
        if minutes is not None and time.monotonic() - self._written > 60 * minutes:
            return True
        if not isinstance(event, EpochMetrics):
            return False
        return event.epoch % self.settings.checkpoint_every == 0 or self._is_best(event)

    def _is_best(self, event: Any) -> bool:
        return isinstance(event, EpochMetrics) and event.epoch == self.trainer.best_epoch

    def _checkpoint(self, event: Any, ended: str | None = None) -> None:
        trainer = self.trainer
        if not trainer.is_finite():
            raise TrainingError(
                f"weights are not finite after step {trainer.step}, so no checkpoint is written"
            )
        tensors, state = trainer.state_dict()
        path = self.folder.write(
            tensors, {**state, "ended": ended}, self.depends, best=self._is_best(event)
        )
        self._write_history()
        self._written = time.monotonic()
        self.run.manager.call("sda_checkpoint_written", run=self.run, path=path)

    def _write_history(self) -> None:
        write_json(self.run.directory / "history.json", history_columns(self.trainer.history))

    def _roll_back(self, spike: LossSpike) -> None:
        found = self.folder.before(spike.since)
        what = f"loss {spike.loss:.3g} is far above its running median {spike.median:.3g}"
        if found is None:
            raise TrainingError(
                f"{what} at step {spike.step}, and there is no checkpoint from before step "
                f"{spike.since}: raise train.keep, or lower train.checkpoint_every"
            )
        trainer = self.trainer
        trainer.roll_back(*trainer.group.broadcast((found.tensors, found.state)))
        self._checkpoint(None)
        self.run.truncate_metrics(trainer.step)
        record = {**attrs.asdict(spike), "from_step": spike.step, "step": trainer.step}
        self.run.log({"event": "rollback", **record, "slow_down": trainer.guards.slow_down})
        self.progress.say(
            f"{what} at step {spike.step}: back to step {trainer.step}, learning rate times "
            f"{trainer.guards.slow_down:g}"
        )

    def _last_good(self) -> str:
        found = self.folder.newest()
        if found is None:
            return "No checkpoint was written before that"
        return f"The last good checkpoint is {found.path}, of step {found.state['step']}"

    def _show_progress(self, event: Any, report: Callable[..., None]) -> None:
        """Show progress, from what the host knows without waiting for the device."""
        trainer, now = self.trainer, time.monotonic()
        if now - self._shown < _PROGRESS_INTERVAL and event.step < trainer.num_steps:
            return
        steps_per_second = (event.step - self._shown_step) / max(now - self._shown, 1e-9)
        self._shown, self._shown_step = now, event.step
        report(event.step, "  ".join(_note(trainer, event, steps_per_second)))

    def finish(self) -> float | None:
        """Let the denoiser have the weights that are kept, and give their validation loss.

        Raises:
            TrainingError: The training ended with a loss that is not finite.
        """
        trainer = self.trainer
        self._write_history()
        validated = [m.valid_loss for m in trainer.history if m.valid_loss is not None]
        valid_loss = validated[-1] if validated else None
        if self.settings.final == "best" and self._load_best():
            valid_loss = trainer.best_loss
        elif not math.isfinite(trainer.history[-1].loss):
            valid_loss = math.nan
        if valid_loss is not None and not math.isfinite(valid_loss):
            raise TrainingError(
                f"the loss of epoch {trainer.epoch}, the last, is not finite, so that no model is "
                "saved: lower train.learning_rate, set train.clip_norm, look for the cause with "
                "--detect-anomaly, or take the best weights with train.final = 'best'. "
                f"{self._last_good()}"
            )
        return valid_loss

    def _load_best(self) -> bool:
        """Take the best weights, if they are there."""
        try:
            best = self.folder.best()
        except CheckpointError as error:
            warnings.warn(
                f"{error}. The model has the last weights instead", CheckpointWarning, stacklevel=4
            )
            return False
        if best is None or best.state["epoch"] != self.trainer.best_epoch:
            return False
        prefix = "raw." if self.trainer.averaged is None else "ema."
        weights = {k[4:]: v for k, v in best.tensors.items() if k.startswith(prefix)}
        self.trainer.best_denoiser.load_state_dict(weights)
        return True


def _note(trainer: Trainer, event: Any, steps_per_second: float) -> list[str]:
    """How a training goes, in words."""
    done = isinstance(event, EpochMetrics)
    epoch = event.epoch if done else event.epoch + 1
    batch = trainer.steps_per_epoch if done else event.step - event.epoch * trainer.steps_per_epoch
    return [
        f"epoch {epoch}/{trainer.config.epochs}",
        f"batch {batch}/{trainer.steps_per_epoch}",
        f"loss {trainer.last_loss:.4f}",
        f"lr {trainer.learning_rate:.1e}",
        f"grad {trainer.grad_norm:.2g}",
        f"{steps_per_second * trainer.windows_per_step:,.0f} windows/s",
        f"{memory_in_use(trainer.device) / 2**30:.2f} GiB",
        f"{trainer.threads} thread{'s' * (trainer.threads != 1)}",
    ]
