"""The record of a sweep: an Optuna study in SQLite, ``optuna.db``, and nothing else.

What Optuna has no field for is a user attribute: of a trial its directory, parameters, seconds,
cause and all its metrics by name; of the study its title, settings and versions.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sda_core.errors import SweepError
from sda_core.io.files import plain, replace_file

#: How a trial can stand. "stopped": it had not ended when the study was stopped.
State = Literal["finished", "pruned", "failed", "stopped", "running"]
_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}
#: User attributes of a trial that are fields of its record; all others but one are metrics.
_FIELDS = ("directory", "seconds", "cause", "error", "planned_epochs", "parameters")
_STOPPED = "stopped"


@attrs.frozen(kw_only=True)
class TrialRecord:
    """One trial.

    Attributes:
        number: Its number in the study, from 0.
        state: How it stands.
        directory: Its run directory, relative to that of the study.
        parameters: Dotted paths and their values; only those that exist in this trial.
        value: The metric of the sweep: the best one of the curve for a training, the mean over
            observation sets for an assimilation; None if there is none.
        error: Standard error of the value over observation sets, where there are several.
        metrics: All metrics by name, those of single variables as ``"rmse/x"``.
        curve: Epochs, or observation sets, that were done, and the metric after each.
        epochs: Epochs that were done.
        planned_epochs: Epochs that a trial has when it is not pruned.
        cause: Why it was pruned, or failed.
        seconds: Time that it took [s].
    """

    number: int
    state: State
    directory: str
    parameters: dict[str, Any] = attrs.Factory(dict)
    value: float | None = None
    error: float | None = None
    metrics: dict[str, float | None] = attrs.Factory(dict)
    curve: tuple[tuple[int, float], ...] = ()
    epochs: int | None = None
    planned_epochs: int | None = None
    cause: str | None = None
    seconds: float = 0.0

    @property
    def has_ended(self) -> bool:
        """Whether it is finished, pruned or failed."""
        return self.state in ("finished", "pruned", "failed")


class Study:
    """All trials of a sweep, as they are in the database, whose user attributes it has."""

    def __init__(self, study: optuna.Study) -> None:
        self.optuna, self._facts = study, study.user_attrs
        self._open: dict[int, optuna.Trial] = {}
        self._before: dict[int, float] = {}  # seconds that trials took in earlier calls

    @classmethod
    def create(cls, directory: Path, facts: Mapping[str, Any]) -> Study:
        """The study in a directory, which is made if there is none.

        Args:
            directory: The directory.
            facts: ``title``, ``metric``, ``mode``, ``stage``, ``settings`` and ``versions``.
        """
        path, resumed = directory / "optuna.db", 0
        if path.is_file():
            resumed = _load(path).user_attrs["resumed"] + 1
        else:
            optuna.logging.set_verbosity(optuna.logging.ERROR)
            is_min = facts["mode"] == "min"
            direction = StudyDirection.MINIMIZE if is_min else StudyDirection.MAXIMIZE
            with replace_file(path) as temporary:  # whole: who reads it may write to it, too
                storage = optuna.storages.RDBStorage(f"sqlite:///{temporary}")
                optuna.create_study(storage=storage, study_name=directory.name, direction=direction)
                storage.engine.dispose()
        study = _load(path)
        for key, value in {**facts, "resumed": resumed}.items():
            study.set_user_attr(key, plain(value))
        return cls(study)

    @classmethod
    def load(cls, directory: str | Path) -> Study:
        """Read the study in a directory.

        Raises:
            SweepError: There is none, or it is not one of a sweep.
        """
        path = Path(directory) / "optuna.db"
        if not path.is_file():
            raise SweepError(
                f"{path} does not exist: give the directory of a study, as `sda sweep` wrote it"
            )
        try:
            study = cls(_load(path))
            study.settings  # noqa: B018 - it is read
        except Exception as error:  # Optuna and SQLAlchemy raise what they like
            raise SweepError(
                f"{path} is not the study of a sweep ({error!r}): it was changed, or another "
                "version of sda-ray wrote it"
            ) from error
        return study

    def __getattr__(self, name: str) -> Any:
        try:
            return self._facts[name]
        except KeyError:
            raise AttributeError(f"the study has no {name!r}") from None

    @property
    def seconds(self) -> float:
        """Time that the study took, over all calls [s]."""
        return float(self.optuna.user_attrs.get("seconds", 0.0))

    @property
    def trials(self) -> list[TrialRecord]:
        """The trials that were given something to try, in the order of their numbers."""
        frozen = self.optuna.get_trials(deepcopy=False)
        return [self._record(trial) for trial in frozen if "directory" in trial.user_attrs]

    def __getitem__(self, number: int) -> TrialRecord:
        return self._record(self.optuna.get_trials(deepcopy=False)[number])

    @property
    def best(self) -> TrialRecord | None:
        """The finished trial of the best value, the first one of equal ones; None without one.

        A pruned trial is never the best: it was compared at fewer epochs than the others have.
        """
        choose = min if self.mode == "min" else max
        finished = [trial for trial in self.trials if trial.state == "finished"]
        return choose(finished, key=lambda trial: trial.value or 0.0, default=None)

    @property
    def epochs_saved(self) -> int:
        """Epochs that pruned trials were spared."""
        pruned = [t for t in self.trials if t.state == "pruned" and t.planned_epochs]
        return sum((t.planned_epochs or 0) - (t.epochs or 0) for t in pruned)

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of trials by state, of those states that occur."""
        return dict(Counter(trial.state for trial in self.trials))

    def _record(self, trial: FrozenTrial) -> TrialRecord:
        given, curve = trial.user_attrs, tuple(sorted(trial.intermediate_values.items()))
        state, values = _STATES[trial.state], [value for _, value in curve]
        trains, best = self.stage == "train", min if self.mode == "min" else max
        reached = (best(values) if trains else values[-1]) if values else None
        return TrialRecord(
            number=trial.number,
            state="stopped" if state == "running" and given.get(_STOPPED) else state,
            value=trial.value if state == "finished" else reached,
            metrics={k: v for k, v in given.items() if k not in (*_FIELDS, _STOPPED)},
            curve=curve,
            epochs=curve[-1][0] if trains and curve else None,
            **{k: given[k] for k in _FIELDS if k in given},
        )

    # --- what is recorded ---

    def start(
        self, trial: optuna.Trial, parameters: Mapping[str, Any], planned_epochs: int | None
    ) -> TrialRecord:
        """Record that a trial starts, or is resumed."""
        number = trial.number
        self._open[number], self._before[number] = trial, trial.user_attrs.get("seconds", 0.0)
        trial.set_user_attr(_STOPPED, False)
        trial.set_user_attr("planned_epochs", planned_epochs)
        trial.set_user_attr("parameters", parameters)
        trial.set_user_attr("directory", f"trials/{number:05d}")
        return self[number]

    def report(
        self, number: int, epoch: int, value: float, seconds: float, parameters: dict[str, Any]
    ) -> None:
        """Record a value of the metric; one of an epoch that is known already changes nothing."""
        trial, known = self._open[number], self[number]
        if epoch <= (known.curve[-1][0] if known.curve else 0) or not math.isfinite(value):
            return
        trial.report(value, epoch)
        trial.set_user_attr("seconds", round(self._before[number] + seconds, 3))
        if parameters != known.parameters:  # a scheduler has changed them
            trial.set_user_attr("parameters", parameters)

    def end(self, number: int, state: State, outcome: Mapping[str, Any]) -> None:
        """Record that a trial has ended, or was stopped.

        Args:
            number: Its number.
            state: How it stands.
            outcome: What else is known of it: ``value``, ``error``, ``cause`` and ``metrics``.
        """
        trial, known = self._open[number], self[number]
        if known.has_ended:
            return
        if state == "stopped":
            trial.set_user_attr(_STOPPED, True)
            return
        value = outcome.get("value", known.value)
        if state == "finished" and (value is None or not math.isfinite(value)):
            state, outcome = "failed", {**outcome, "cause": f"its {self.metric} is {value}"}
        told = {key: outcome.get(key) for key in ("cause", "error")}
        for key, item in {**told, **outcome.get("metrics", {})}.items():
            if (finite := plain(item)) is not None:
                trial.set_user_attr(key, finite)
        ended = next(optunas for optunas, ours in _STATES.items() if ours == state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.optuna.tell(trial, value if state == "finished" else None, state=ended)

    def stop(self, seconds: float) -> None:
        """Record that nothing runs any more, and how long it took."""
        self.optuna.set_user_attr("seconds", round(seconds, 3))
        for number in self._open:
            self.end(number, "stopped", {})


def _load(path: Path) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.NopPruner()
    return optuna.load_study(study_name=None, storage=f"sqlite:///{path}", pruner=pruner)
