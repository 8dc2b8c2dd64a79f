"""A training on a rank other than 0."""

from __future__ import annotations

from contextlib import suppress

from sda_core.errors import TrainingError
from sda_core.training.events import EpochMetrics, Event, LossSpike, Step
from sda_core.training.trainer import Trainer


class NonzeroRank:
    """A training on a rank other than 0, which rank 0 tells when to save and to end.

    It has the same state at each step, so it raises what rank 0 raises.

    Args:
        trainer: The trainer, in the state to resume from.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def train(self) -> None:
        """Train to the end."""
        with suppress(TrainingError):  # rank 0 raises it, too
            while not self._events():
                pass

    def _events(self) -> bool:
        """Train until the end, or until it was rolled back; whether it was the end."""
        trainer = self.trainer
        for event in trainer.events():
            if self._handle_failure(event):
                return False
            if not isinstance(event, Step | EpochMetrics):
                continue
            if event.step % trainer.config.report_every == 0:
                trainer.report()
            saves, ends = trainer.group.broadcast()
            if saves and any(self._handle_failure(late) for late in trainer.flush_events()):
                return False
            if ends:
                return True
        return True

    def _handle_failure(self, event: Event) -> bool:
        if isinstance(event, LossSpike):
            self.trainer.roll_back(*self.trainer.group.broadcast())
            return True
        return False
