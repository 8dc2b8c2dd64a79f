"""What a sweep found: its trials, and what they were trials of."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import attrs

from sda_core.errors import SweepError
from sda_core.io.files import write_text

#: How a trial can stand. "stopped": it had not ended when the study was left.
State = Literal["finished", "pruned", "failed", "stopped", "running"]


@attrs.frozen(kw_only=True)
class Trial:
    """One trial.

    Attributes:
        number: Its number in the study, from 0.
        state: How it stands.
        parameters: Dotted paths and their values; only those that exist in this trial.
        value: The metric of the sweep: the best one of the curve for a training, the mean over
            observation sets for an assimilation; None if there is none, or it is not finite.
        error: Standard error of the value over observation sets, where there are several.
        metrics: All other metrics by name, those of single variables as ``"rmse/x"``.
        curve: Epochs done, and the metric after each.
        epochs: Epochs that were done.
        planned_epochs: Epochs that a trial has when it is not pruned.
        directory: Its run directory, relative to that of the study.
        cause: Why it was pruned, or failed.
        seconds: Time that it took [s].
    """

    number: int
    state: State
    parameters: dict[str, Any] = attrs.Factory(dict)
    value: float | None = None
    error: float | None = None
    metrics: dict[str, float] = attrs.Factory(dict)
    curve: tuple[tuple[int, float], ...] = ()
    epochs: int | None = None
    planned_epochs: int | None = None
    directory: str
    cause: str | None = None
    seconds: float = 0.0


@attrs.frozen(kw_only=True)
class Study:
    """All trials of a sweep.

    Attributes:
        title: The title of the experiment.
        metric: The metric that is searched for.
        mode: Whether a small or a large one is good.
        stage: The stage that the trials do.
        settings: The ``[sweep]`` table; its ``space`` maps dotted paths to tables such as
            ``{"log_range": [1e-4, 1e-2]}``.
        trials: The trials in the order of their numbers.
        seconds: Time that the study took, over all calls [s].
        resumed: How often it was gone on with.
        versions: Versions of the packages that were used.
    """

    title: str
    metric: str
    mode: Literal["min", "max"]
    stage: Literal["train", "assimilate"]
    settings: dict[str, Any] = attrs.Factory(dict)
    trials: tuple[Trial, ...] = ()
    seconds: float = 0.0
    resumed: int = 0
    versions: dict[str, str] = attrs.Factory(dict)

    @property
    def best(self) -> Trial | None:
        """The finished trial of the best value, the first one of equal ones; None without one.

        A pruned trial is never the best, whatever it had reached: it was compared at fewer epochs
        than the others have, and what it leaves is not a model of its configuration.
        """
        found = [t for t in self.trials if t.state == "finished" and is_finite(t.value)]
        if not found:
            return None
        sign = 1 if self.mode == "min" else -1
        return min(found, key=lambda t: (sign * t.value, t.number))  # type: ignore[operator]

    @property
    def epochs_saved(self) -> int:
        """Epochs that pruned trials were spared."""
        return sum(
            t.planned_epochs - t.epochs
            for t in self.trials
            if t.state == "pruned" and t.planned_epochs is not None and t.epochs is not None
        )

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of trials by state, of those states that occur."""
        return dict(Counter(trial.state for trial in self.trials))

    def save(self, directory: str | Path) -> Path:
        """Write ``study.json``, and rename it into place; numbers that are not finite are null."""
        path = Path(directory) / "study.json"
        text = json.dumps(_finite(attrs.asdict(self)), indent=1, allow_nan=False)
        write_text(path, text + "\n")
        return path

    @classmethod
    def load(cls, directory: str | Path) -> Study:
        """Read ``study.json``.

        Raises:
            SweepError: There is none, or it is not one.
        """
        path = Path(directory) / "study.json"
        try:
            read = json.loads(path.read_text())
            return cls(**read | {"trials": tuple(_trial(**trial) for trial in read["trials"])})
        except FileNotFoundError as error:
            raise SweepError(
                f"{path} does not exist: give the directory of a study, as `sda sweep` wrote it"
            ) from error
        except (ValueError, TypeError, KeyError) as error:
            raise SweepError(
                f"{path} is not a study ({error!r}): it was changed, or another version of sda-ray "
                "wrote it; trials/ and optuna.db hold all that it is made from"
            ) from error


def is_finite(value: float | None) -> bool:
    """Whether there is a value, and it is a finite one."""
    return value is not None and math.isfinite(value)


def _trial(*, curve: Any, metrics: Any, **others: Any) -> Trial:
    return Trial(
        curve=tuple((epoch, _number(value)) for epoch, value in curve),
        metrics={name: _number(value) for name, value in metrics.items()},
        **others,
    )


def _number(value: float | None) -> float:
    """A number of a file, in which null is one that is not finite."""
    return math.nan if value is None else value


def _finite(value: Any) -> Any:
    """The same, with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
