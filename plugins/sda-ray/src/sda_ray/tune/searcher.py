"""What is tried next: trials that were stopped, then what Optuna suggests.

Ray's own searcher for Optuna tells it that a trial is complete where a scheduler has pruned it, and
knows nothing of earlier calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from sda_ray.tune.config import SweepSettings
from sda_ray.tune.study import Study, TrialRecord

#: Names of the time and of the metric in Tune's results.
TIME, VALUE = "epoch", "value"


class Stateless:
    """What Tune wants to keep, to restore it, and need not: the study is on the disk."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing."""
        return {}


class StudySearcher(Stateless, Searcher):
    """Chooses the trials of a study, one after the other, and gives them to Tune.

    Args:
        study: The study.
        sweep: What is asked for.
        planned_epochs: Epochs that a trial of these values has when it is not pruned; None where
            there are none.
        is_stopping: Whether no more trials are to start.
    """

    def __init__(
        self,
        study: Study,
        sweep: SweepSettings,
        planned_epochs: Callable[[Mapping[str, Any]], int | None] = lambda parameters: None,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(metric=VALUE, mode=sweep.mode)
        self.study, self._planned_epochs, self._is_stopping = study, planned_epochs, is_stopping
        self._planned, self._space = sweep.planned, sweep.search_space
        self._grid = self._space.grid() if sweep.search == "grid" else None
        known = study.optuna.get_trials(deepcopy=False)
        self._unfinished = [t.number for t in known if t.state == TrialState.RUNNING]
        self._started = sum(trial.state != TrialState.WAITING for trial in known)
        # Another seed than at the start, so that what was suggested then is not suggested again.
        seed = sweep.seed + len(known)
        self._cma_es = _CmaEs(study, sweep, seed) if sweep.search == "cma-es" else None
        study.optuna.sampler = (
            optuna.samplers.TPESampler(n_startup_trials=sweep.startup_trials, seed=seed)
            if sweep.search == "tpe"
            else optuna.samplers.RandomSampler(seed=seed)
        )

    def next(self) -> TrialRecord | None:
        """The next trial; None when all are started."""
        study = self.study.optuna
        if self._unfinished:
            frozen = study.get_trials(deepcopy=False)[self._unfinished.pop(0)]
            trial = optuna.Trial(study, frozen._trial_id)
        elif self._started < self._planned:
            waiting = study.get_trials(states=(TrialState.WAITING,))
            if not waiting and (values := self._values()) is not None:
                study.enqueue_trial(self._space.labels_of(values))
            trial = study.ask()
            self._started += 1
        else:
            return None
        # What a killed call had not been given yet, a resumed trial is given now.
        parameters = trial.user_attrs.get("parameters") or self._space.suggest(trial)
        return self.study.start(trial, parameters, self._planned_epochs(parameters))

    def _values(self) -> dict[str, Any] | None:
        """What is tried next, where the sampler of the study does not say it."""
        if self._grid is not None:
            return self._grid[self._started]
        return None if self._cma_es is None else self._cma_es.suggest()

    def suggest(self, trial_id: str) -> Any:
        """What the process of the next trial is given."""
        trial = None if self._is_stopping() else self.next()
        if trial is None:
            return Searcher.FINISHED
        return {"trial": {"number": trial.number, "parameters": trial.parameters}}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: the study has heard of it from the recorder, which knows more."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is on the disk."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study is on the disk."""


class _CmaEs:
    """CMA-ES by a study in memory: Optuna's sampler keeps pickles in its study, and reads them."""

    def __init__(self, study: Study, sweep: SweepSettings, seed: int) -> None:
        sampler = optuna.samplers.CmaEsSampler(
            n_startup_trials=sweep.startup_trials, seed=seed, warn_independent_sampling=False
        )
        self._study, self._space = study, sweep.search_space
        self._memory = optuna.create_study(sampler=sampler, direction=study.optuna.direction)
        self._asked: dict[int, optuna.Trial] = {}
        for trial in study.optuna.get_trials(states=(TrialState.COMPLETE,)):
            self._memory.add_trial(
                optuna.trial.create_trial(
                    params=trial.params, distributions=trial.distributions, value=trial.value
                )
            )

    def suggest(self) -> dict[str, Any]:
        """Values for the next trial of the study."""
        known = self._study.optuna.get_trials(deepcopy=False)
        for number in [n for n in self._asked if known[n].state.is_finished()]:
            state = known[number].state
            value = known[number].value if state == TrialState.COMPLETE else None
            self._memory.tell(self._asked.pop(number), value, state=state)
        trial = self._asked[len(known)] = self._memory.ask()
        return self._space.suggest(trial)
