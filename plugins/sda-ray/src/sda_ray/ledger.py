"""The trials of a study, on the disk: ``trial.json`` in the directory of each, and ``optuna.db``.

What a trial is to try is Optuna's to say, and how it goes is told to Optuna, value by value, so
that ``optuna-dashboard`` shows it. What counts when a study is gone on with is ``trial.json``.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import optuna

from sda_core.io.files import plain, write_text
from sda_ray.space import Space
from sda_ray.study import Trial
from sda_ray.work import reported

if TYPE_CHECKING:
    from sda_ray.sweep import RayTune

RUNNING, WAITING = optuna.trial.TrialState.RUNNING, optuna.trial.TrialState.WAITING
#: Trials in these states have not ended.
_OPEN = ("running", "stopped")


class Ledger:
    """All trials of a study, and what is tried next.

    Args:
        directory: The directory of the study.
        sweep: What is asked for.
        space: What is varied.
        planned_epochs: Epochs that a trial of these values has when it is not pruned; None where
            there are none.
        fetch: Called before what a trial has written is read.

    Attributes:
        trials: The trials, by number.
        on_change: Called after each change.
    """

    def __init__(
        self,
        directory: Path,
        sweep: RayTune,
        space: Space,
        planned_epochs: Callable[[Mapping[str, Any]], int | None] = lambda parameters: None,
        fetch: Callable[[int], None] = lambda number: None,
    ) -> None:
        self.directory, self.sweep, self.space = directory, sweep, space
        self._planned_epochs, self._fetch = planned_epochs, fetch
        self.on_change: Callable[[], None] = lambda: None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage = f"sqlite:///{directory / 'optuna.db'}"
        names = optuna.get_all_study_names(storage)  # the directory may have had another name
        self.optuna = optuna.create_study(
            storage=storage,
            study_name=names[0] if names else directory.name,
            direction="minimize" if sweep.mode == "min" else "maximize",
            pruner=optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        known = self.optuna.get_trials(deepcopy=False)
        # Another seed than at the start, so that what was suggested then is not suggested again.
        self.optuna.sampler = make_sampler(sweep, sweep.seed + len(known))
        self._grid = space.grid() if sweep.search == "grid" else None
        self._ids = {trial.number: trial._trial_id for trial in known if trial.state != WAITING}
        self.trials: dict[int, Trial] = {}
        self._before: dict[int, float] = {}  # seconds spent on them in earlier calls
        for number in self._ids:
            if (trial := self._read(number)) is not None:
                self.trials[number] = trial
                if trial.state in _OPEN and self.result(number):
                    self.end(number)
                elif trial.state not in _OPEN:
                    self._tell(number)
        self._unfinished = [n for n in sorted(self._ids) if not self.has_ended(n)]

    @property
    def planned(self) -> int:
        """Number of trials that there will be."""
        return self.sweep.trials if self._grid is None else min(self.sweep.trials, len(self._grid))

    @property
    def earlier(self) -> list[Trial]:
        """The trials that have ended."""
        return [trial for number, trial in sorted(self.trials.items()) if self.has_ended(number)]

    def has_ended(self, number: int) -> bool:
        """Whether a trial is finished, pruned or failed."""
        return number in self.trials and self.trials[number].state not in _OPEN

    def path(self, number: int) -> Path:
        """The run directory of a trial."""
        return self.directory / "trials" / f"{number:05d}"

    def result(self, number: int) -> dict[str, Any] | None:
        """What a trial has written at its end; None if it did not come there."""
        self._fetch(number)
        path = self.path(number) / "result.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def start(self) -> Trial | None:
        """The trial to do next: those that were left, then new ones; None when all are started."""
        if self._unfinished:
            number = self._unfinished.pop(0)
            known = self.trials.get(number)
            parameters = known.parameters if known else self._parameters(number)
        elif len(self._ids) < self.planned:
            number, parameters = self._new()
        else:
            return None
        before = self.trials.get(number)
        trial = Trial(
            number=number,
            state="running",
            parameters=parameters,
            directory=f"trials/{number:05d}",
            planned_epochs=self._planned_epochs(parameters),
            curve=before.curve if before else (),
            seconds=before.seconds if before else 0.0,
        )
        self._before[number] = trial.seconds
        (self.path(number) / "result.json").unlink(missing_ok=True)
        self._write(trial)
        return trial

    def _new(self) -> tuple[int, dict[str, Any]]:
        if self._grid is not None:
            waiting = self.optuna.get_trials(deepcopy=False, states=(WAITING,))
            if not waiting:
                labels = self.space.labels_of(self._grid[len(self._ids)])
                self.optuna.enqueue_trial(labels)
        asked = self.optuna.ask()
        self._ids[asked.number] = asked._trial_id
        return asked.number, self.space.suggest(asked)

    def _parameters(self, number: int) -> dict[str, Any]:
        """What a trial was given; what it was not, because of a kill, it is given now."""
        frozen = self._frozen(number)
        if frozen.state == RUNNING:
            return self.space.suggest(optuna.Trial(self.optuna, self._ids[number]))
        return self.space.values_of(frozen.params)

    def report(
        self,
        number: int,
        epoch: int,
        value: float,
        seconds: float = 0.0,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a value of the metric; one of an epoch that is known already changes nothing.

        Args:
            number: Number of the trial.
            epoch: Epochs, or observation sets, that were done.
            value: The metric after them.
            seconds: Time that was spent on the trial since it was started last [s].
            parameters: Its values by path, where a scheduler may have changed them.
        """
        trial = attrs.evolve(
            self.trials[number],
            seconds=round(self._before[number] + seconds, 3),
            parameters=dict(parameters or self.trials[number].parameters),
        )
        self.trials[number] = trial
        self._add(number, epoch, value)

    def _add(self, number: int, epoch: int, value: float) -> None:
        """Record a value of the metric that is not known yet."""
        trial = self.trials[number]
        if epoch <= (trial.curve[-1][0] if trial.curve else 0) or not math.isfinite(value):
            return
        curve = (*trial.curve, (epoch, value))
        values = [v for _, v in curve]
        best = min(values) if self.sweep.mode == "min" else max(values)
        trains = self.sweep.stage == "train"
        self._write(
            attrs.evolve(
                trial,
                curve=curve,
                value=best if trains else value,
                epochs=epoch if trains else None,
            )
        )
        if self._frozen(number).state == RUNNING:
            optuna.Trial(self.optuna, self._ids[number]).report(value, epoch)

    def end(self, number: int, cause: str | None = None) -> None:
        """Record that a trial has ended: as it says itself, else it was pruned.

        Args:
            number: Its number.
            cause: Why it failed, if its process did.
        """
        if self.has_ended(number):
            return
        result = self.result(number)
        if result is not None and result["state"] == "finished":
            # What it has reported while nobody listened, after the end of whoever asked.
            for epoch, value in reported(self.path(number), self.sweep.stage, self.sweep.metric):
                self._add(number, epoch, value)
        trial = self.trials[number]
        if result is None and cause is None:
            unit = "epoch" if self.sweep.stage == "train" else "observation set"
            done = f" after {unit} {trial.curve[-1][0]}" if trial.curve else ""
            result = {"state": "pruned", "cause": f"{self.sweep.scheduler.name}{done}"}
        elif result is None:
            result = {"state": "failed", "cause": cause}
        elif result["state"] == "finished" and result.get("value", trial.value) is None:
            result = {"state": "failed", "cause": f"no {self.sweep.metric} was reported"}
        self._write(attrs.evolve(trial, **result))
        self._tell(number)

    def leave(self) -> None:
        """Record that the study is left: what runs is gone on with another time."""
        for number, trial in list(self.trials.items()):
            if trial.state != "running":
                continue
            if self.result(number):
                self.end(number)
            else:
                self._write(attrs.evolve(trial, state="stopped"))

    def _tell(self, number: int) -> None:
        trial, states = self.trials[number], optuna.trial.TrialState
        if self._frozen(number).state != RUNNING:
            return
        if trial.state == "finished":
            self.optuna.tell(number, trial.value)
        else:
            state = states.PRUNED if trial.state == "pruned" else states.FAIL
            self.optuna.tell(number, state=state)

    def _frozen(self, number: int) -> optuna.trial.FrozenTrial:
        return self.optuna.get_trials(deepcopy=False)[number]

    def _read(self, number: int) -> Trial | None:
        path = self.path(number) / "trial.json"
        if not path.is_file():
            return None
        try:
            table = json.loads(path.read_text())
            return Trial(**table | {"curve": tuple(map(tuple, table["curve"]))})
        except (ValueError, TypeError, KeyError) as error:
            warnings.warn(
                f"{path} cannot be read ({error!r}), so this trial is done again", stacklevel=2
            )
            return None

    def _write(self, trial: Trial) -> None:
        self.trials[trial.number] = trial
        text = json.dumps(plain(attrs.asdict(trial)), indent=1)
        write_text(self.path(trial.number) / "trial.json", text + "\n")
        self.on_change()


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
