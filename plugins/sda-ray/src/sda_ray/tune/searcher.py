"""What is tried next: trials that were stopped, then what Optuna suggests.

Ray's own searcher for Optuna tells it that a trial is complete where a scheduler has pruned it, and
knows nothing of earlier calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from sda_ray.tune.study import Study, TrialRecord

if TYPE_CHECKING:
    from sda_ray.tune.config import RayTune

#: Names of the time and of the metric in Tune's results.
TIME, VALUE = "epoch", "value"


class Stateless:
    """What Tune wants to keep, to restore it, and need not: the study is on the disk."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing."""
        return {}


class Suggestions:
    """Chooses the trials of a study, one after the other.

    Args:
        study: The study.
        sweep: What is asked for.
        planned_epochs: Epochs that a trial of these values has when it is not pruned; None where
            there are none.
    """

    def __init__(
        self,
        study: Study,
        sweep: RayTune,
        planned_epochs: Callable[[Mapping[str, Any]], int | None] = lambda parameters: None,
    ) -> None:
        self.study, self._planned_epochs = study, planned_epochs
        self._grid = study.space.grid() if sweep.search == "grid" else None
        known = study.optuna.get_trials(deepcopy=False)
        self._unfinished = [t.number for t in known if t.state == TrialState.RUNNING]
        self._started = sum(trial.state != TrialState.WAITING for trial in known)
        self.planned = min(sweep.trials, len(self._grid)) if self._grid else sweep.trials
        # Another seed than at the start, so that what was suggested then is not suggested again.
        study.optuna.sampler = make_sampler(sweep, sweep.seed + len(known))

    def next(self) -> TrialRecord | None:
        """The next trial; None when all are started."""
        study = self.study
        if self._unfinished:
            number = self._unfinished.pop(0)
            frozen = study.optuna.get_trials(deepcopy=False)[number]
            trial = optuna.Trial(study.optuna, frozen._trial_id)
        elif self._started < self.planned:
            if self._grid is not None and not study.optuna.get_trials(states=(TrialState.WAITING,)):
                study.optuna.enqueue_trial(study.space.labels_of(self._grid[self._started]))
            trial = study.optuna.ask()
            self._started += 1
        else:
            return None
        # What a killed call had not been given yet, a resumed trial is given now.
        parameters = trial.user_attrs.get("parameters") or study.space.suggest(trial)
        return study.start(trial, self._planned_epochs(parameters))


class StudySearcher(Stateless, Searcher):
    """Gives Tune the trials of a study."""

    def __init__(
        self, suggestions: Suggestions, mode: str, is_stopping: Callable[[], bool]
    ) -> None:
        super().__init__(metric=VALUE, mode=mode)
        self._suggestions, self._is_stopping = suggestions, is_stopping

    def suggest(self, trial_id: str) -> Any:
        """The next trial."""
        trial = None if self._is_stopping() else self._suggestions.next()
        return Searcher.FINISHED if trial is None else {"trial": config_of(trial)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: the study has heard of it from the callback, which knows more."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is on the disk."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study is on the disk."""


def config_of(trial: TrialRecord) -> dict[str, Any]:
    """What the process of a trial is given."""
    return {"number": trial.number, "parameters": trial.parameters}


def make_sampler(sweep: RayTune, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler of Optuna that a sweep asks for."""
    start = sweep.startup_trials
    if sweep.search == "tpe":
        return optuna.samplers.TPESampler(n_startup_trials=start, seed=seed)
    if sweep.search == "cma-es":
        return optuna.samplers.CmaEsSampler(
            n_startup_trials=start, seed=seed, warn_independent_sampling=False
        )
    return optuna.samplers.RandomSampler(seed=seed)
