"""The table ``[sweep]`` of Ray Tune."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

from sda_core.config import (
    Check,
    at_least,
    component,
    non_negative,
    option,
    positive,
    unstructure,
)
from sda_core.errors import ConfigError
from sda_core.experiment import Experiment
from sda_core.sweep import Sweep
from sda_ray.remote import WorkerResources
from sda_ray.tune.search_space import Space, leaves


@component
class SchedulerConfig:
    """Which trials are ended early."""

    name: Literal["none", "median", "asha", "pbt"] = option(
        default="none",
        help="none; median: those worse than the median of the others' running means; asha: "
        "successive halving, those not among the best at certain epochs; pbt: none, but the worst "
        "continue from the weights of the best, with settings near theirs",
    )
    grace_period: int = option(
        default=1, check=at_least(1), help="epochs, or observation sets, before any is ended"
    )
    reduction_factor: float = option(
        default=3.0,
        check=Check("greater than 1", lambda v: v > 1),
        help="asha: one in so many continues, for so many times longer",
    )
    interval: int = option(
        default=10, check=at_least(1), help="pbt: epochs between two such comparisons"
    )


@component
class SweepSettings(Sweep):
    """What a sweep is asked for."""

    stage: Literal["train", "assimilate"] = option(
        default="train",
        help="what a trial does: train a model, or infer with one that is trained",
    )
    metric: str = option(
        default="valid_loss",
        help="what is compared: any number that the stage reports, by name. Of a training "
        "valid_loss, loss, ...; of an assimilation a score, such as crps, wasserstein1, rmse or "
        "rmse/VARIABLE",
    )
    mode: Literal["min", "max"] = option(
        default="min", help="whether a small or a large one is good"
    )
    trials: int = option(default=20, check=at_least(1), help="number of trials")
    seed: int = option(default=0, check=non_negative, help="seed of the search")
    search: Literal["random", "grid", "tpe", "cma-es"] = option(
        default="tpe", help="how values are chosen; cma-es needs the package cmaes"
    )
    startup_trials: int = option(
        default=10,
        check=at_least(1),
        help="trials before tpe and cma-es go by earlier ones, and before median ends any",
    )
    scheduler: SchedulerConfig = option(
        default=SchedulerConfig(), help="which trials are ended early"
    )
    cpus_per_trial: float = option(
        default=1.0, check=positive, help="CPUs of a trial, or of each of its workers"
    )
    gpus_per_trial: float = option(
        default=0.0,
        check=non_negative,
        help="GPUs of a trial, or of each of its workers, or which part of one",
    )
    workers_per_trial: int = option(
        default=1,
        check=at_least(1),
        help="train: processes that train a trial's model together, as by `sda train --workers`",
    )
    concurrency: int | None = option(
        default=None,
        check=at_least(1),
        help="trials at the same time; as many as fit on the cluster if not set",
    )
    time_budget: float | None = option(
        default=None, check=positive, units="s", help="time after which the study is left"
    )
    retries: int = option(
        default=2,
        check=non_negative,
        help="how often to resume a trial whose process or machine died, or never started",
    )
    observation_sets: int = option(
        default=4,
        check=at_least(1),
        help="assimilate: trajectories of the test split that each trial infers",
    )
    predictions: bool = option(
        default=False, help="assimilate: whether the posteriors of each trial are kept"
    )
    evaluate: bool = option(
        default=False,
        help="train: whether what each finished trial has trained is evaluated, too, as by `sda "
        "assimilate` and `sda evaluate`",
    )
    space: dict[str, Any] = option(
        help="what is varied: by dotted path a table with range, log_range, integers or choice"
    )

    def __attrs_post_init__(self) -> None:
        space = self.search_space
        if self.search == "grid":
            space.grid()
        if self.search == "cma-es":
            if importlib.util.find_spec("cmaes") is None:
                raise ConfigError(
                    "search = 'cma-es' needs the package cmaes: pip install 'sda-ray[cma-es]', or "
                    "choose another search"
                )
            space.check_numbers()

    @property
    def search_space(self) -> Space:
        """What is varied."""
        return Space.parse(self.space)

    @property
    def planned(self) -> int:
        """How many trials there are: no more than a grid has."""
        size = len(self.search_space.grid()) if self.search == "grid" else self.trials
        return min(self.trials, size)

    @property
    def workers(self) -> WorkerResources:
        """The workers of a trial."""
        return WorkerResources(self.workers_per_trial, self.cpus_per_trial, self.gpus_per_trial)

    @property
    def unit(self) -> str:
        """What trials are compared after."""
        return "epochs" if self.stage == "train" else "observation sets"

    @property
    def settings(self) -> dict[str, Any]:
        """The table, with the space by path."""
        whole: Any = self
        return unstructure(whole) | {"space": dict(leaves(self.space))}

    def longest(self, experiment: Experiment) -> int:
        """The most epochs, or observation sets, of a trial."""
        if self.stage == "assimilate":
            return self.observation_sets
        found = [p for p in self.search_space.parameters if p.path == "train.epochs"]
        return max(found[0].values) if found else experiment.train.epochs
