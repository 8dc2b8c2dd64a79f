"""What guards a training: limits on skipped batches, loss spikes and roll-backs."""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Any

import torch
from torch import Tensor

from sda_core.errors import TrainingError
from sda_core.training.config import GuardConfig
from sda_core.training.events import LossSpike

#: Steps among which skipped batches are counted, over which the running median of the loss is
#: taken, and whose mean is compared with it; and the fewest for a median.
_SKIP_SPAN, _MEDIAN_SPAN, _RECENT, _MEDIAN_FROM = 1000, 512, 8, 128


class Guards:
    """The losses and skipped batches of the last steps, and what follows from them.

    Args:
        config: Settings.

    Attributes:
        slow_down: Factor on the learning rate, below 1 after roll-backs.
        rollbacks: Number of roll-backs so far.
    """

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self.slow_down, self.rollbacks = 1.0, 0
        self._losses: deque[float] = deque(maxlen=_MEDIAN_SPAN + _RECENT)
        self._skipped: deque[int] = deque(maxlen=config.skip_limit + 1)

    def add_loss(self, loss: float) -> None:
        """Take in the loss of a step."""
        self._losses.append(loss)

    def add_skipped(self, step: int) -> None:
        """Take in a step whose batch was skipped."""
        self._skipped.append(step)

    @property
    def last_loss(self) -> float:
        """Mean of the last few losses."""
        recent = list(self._losses)[-_RECENT:]
        return sum(recent) / len(recent) if recent else math.nan

    @property
    def is_rising(self) -> bool:
        """Whether the loss is on its way to a spike, so that the state is none to go back to."""
        factor = self._config.spike
        if factor is None:
            return False
        recent, usual = self._recent_and_usual()
        return recent > math.sqrt(factor) * usual

    def check_skipped(self, step: int) -> None:
        """Refuse to train on after too many skipped batches.

        Raises:
            TrainingError: There were.
        """
        limit = self._config.skip_limit
        recent = sum(skipped > step - _SKIP_SPAN for skipped in self._skipped)
        if recent > limit:
            raise TrainingError(
                f"{recent} of the last {min(step, _SKIP_SPAN)} batches had a loss or "
                f"gradients that are not finite, and train.guards.skip_limit = {limit}. Lower "
                "train.learning_rate, set train.clip_norm, use train.precision = 'float32', or "
                "look for the cause with --detect-anomaly"
            )

    def find_spike(self, epoch: int, step: int) -> LossSpike | None:
        """The spike of the loss at a step, if there is one."""
        factor = self._config.spike
        if factor is None:
            return None
        recent, usual = self._recent_and_usual()
        if recent <= factor * usual:
            return None
        return LossSpike(epoch=epoch, step=step, since=step - _RECENT, loss=recent, median=usual)

    def _recent_and_usual(self) -> tuple[float, float]:
        """Mean of the last few losses, and median of those before; 0 as long as there are few."""
        if len(self._losses) < _MEDIAN_FROM + _RECENT:
            return 0.0, 0.0
        losses = list(self._losses)
        return sum(losses[-_RECENT:]) / _RECENT, median(losses[:-_RECENT])

    def next_rollback(self) -> dict[str, Any]:
        """What of :meth:`state_dict` one more roll-back changes.

        Raises:
            TrainingError: It was rolled back too often.
        """
        config, rollbacks = self._config, self.rollbacks + 1
        if rollbacks > config.rollbacks:
            raise TrainingError(
                f"the loss rose to {config.spike:g} times its running median once more after "
                f"{config.rollbacks} roll-backs (train.guards.rollbacks). Lower "
                "train.learning_rate, set train.clip_norm, or raise train.guards.spike"
            )
        return {"rollbacks": rollbacks, "slow_down": self.slow_down * config.slow_down}

    @property
    def losses(self) -> Tensor:
        """The losses that are remembered, to be saved with :meth:`state_dict`."""
        return torch.tensor(list(self._losses), dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """The rest of the state, of JSON values."""
        return {
            "slow_down": self.slow_down,
            "rollbacks": self.rollbacks,
            "skipped": list(self._skipped),
        }

    def load_state_dict(self, losses: Tensor, state: dict[str, Any]) -> None:
        """Resume from a state; what else it holds is ignored."""
        self.slow_down, self.rollbacks = state["slow_down"], state["rollbacks"]
        self._losses.clear()
        self._losses.extend(losses.tolist())
        self._skipped.clear()
        self._skipped.extend(state["skipped"])
