"""Which trials are ended early: Ray Tune's schedulers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import attrs
from ray import tune
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from sda_ray.tune.config import SweepSettings
from sda_ray.tune.parameter import Parameter
from sda_ray.tune.searcher import TIME, VALUE
from sda_ray.tune.study import TrialRecord


def make_scheduler(sweep: SweepSettings, longest: int) -> TrialScheduler:
    """The scheduler that a sweep asks for.

    Args:
        sweep: What is asked for.
        longest: The most epochs, or observation sets, of a trial.
    """
    asked = sweep.scheduler
    if asked.name == "asha":
        return ASHAScheduler(
            time_attr=TIME,
            max_t=longest,
            grace_period=asked.grace_period,
            reduction_factor=asked.reduction_factor,
            stop_last_trials=False,  # a trial that has come so far writes its model
        )
    if asked.name == "median":
        return MedianStoppingRule(
            time_attr=TIME,
            grace_period=asked.grace_period,
            min_samples_required=max(1, sweep.startup_trials),
            min_time_slice=cast(int, math.inf),  # no trial waits for others
        )
    if asked.name == "pbt":
        parameters = sweep.search_space.parameters
        return _Population(
            time_attr=TIME,
            perturbation_interval=asked.interval,
            burn_in_period=asked.grace_period,
            hyperparam_mutations={
                "trial": {"parameters": {p.path: _mutation(p) for p in parameters}}
            },
            log_config=False,
            parameters=parameters,
        )
    return FIFOScheduler()


def replay(scheduler: TrialScheduler, mode: str, earlier: Sequence[TrialRecord]) -> None:
    """Tell a scheduler of the trials that have ended, so that others are compared with them."""
    scheduler.set_search_properties(VALUE, mode)
    controller: Any = None  # these schedulers do not ask it here
    for trial in earlier:
        stub: Any = _Earlier(f"earlier-{trial.number}")
        for epoch, value in trial.curve:
            scheduler.on_trial_add(controller, stub)
            scheduler.on_trial_complete(controller, stub, {TIME: epoch, VALUE: value})


@attrs.frozen
class _Earlier:
    """What a scheduler has to know of a trial of an earlier call."""

    trial_id: str


def _mutation(parameter: Parameter) -> Any:
    """How a population draws another value, or moves one."""
    if parameter.is_finite:
        return list(parameter.all())
    draw = tune.loguniform if parameter.kind == "log_range" else tune.uniform
    return draw(*parameter.values)


class _Population(PopulationBasedTraining):
    """Values stay in their ranges, and a trial that takes another's settings keeps its number."""

    def __init__(self, *, parameters: Sequence[Parameter], **settings: Any) -> None:
        super().__init__(**settings)
        self._parameters = parameters

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> Any:
        config, operations = super()._get_new_config(trial, trial_to_clone)
        moved = config["trial"]["parameters"]
        for parameter in self._parameters:
            if not parameter.is_finite:
                low, high = parameter.values
                moved[parameter.path] = min(max(moved[parameter.path], low), high)
        number = trial.config["trial"]["number"]
        return {**config, "trial": {"number": number, "parameters": moved}}, operations
