"""Sweeps by Ray Tune, searched by Optuna.

References:
    - Liaw et al., "Tune: A Research Platform for Distributed Model Selection and Training", 2018,
      https://arxiv.org/abs/1807.05118
    - Akiba et al., "Optuna: A Next-generation Hyperparameter Optimization Framework", 2019,
      https://arxiv.org/abs/1907.10902
    - Li et al., "A System for Massively Parallel Hyperparameter Tuning" (ASHA), 2020,
      https://arxiv.org/abs/1810.05934
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal

from sda_core.config import (
    Check,
    at_least,
    component,
    nearest,
    non_negative,
    option,
    positive,
    unstructure,
)
from sda_core.errors import ConfigError
from sda_core.experiment import Experiment
from sda_core.io.progress import ProgressOption
from sda_core.sweep import Sweep
from sda_ray.cluster import Ray
from sda_ray.mirror import check_url
from sda_ray.room import Workers
from sda_ray.space import Space, leaves

#: Metrics of an epoch that a training can be told apart by.
TRAINING_METRICS = ("valid_loss", "loss", "grad_norm", "steps_per_second")
#: What an inference sweep can vary: all that is asked for after the training.
INFERENCE = ("sampler", "guidance", "method", "model.stride", "model.fold")
#: Settings of a training that may change while it goes on: all that a population can vary.
LEARNED = ("train.learning_rate", "train.weight_decay", "train.clip_norm", "train.ema")
#: What a sweep is done with, and what it is done by: no part of a trial's result.
_NOT_VARIED = ("title", "trackers", "cluster", "sweep")


@component
class SchedulerConfig:
    """Which trials are ended early."""

    name: Literal["none", "median", "asha", "pbt"] = option(
        default="none",
        help="none; median: those worse than the median of the others' running means; asha: "
        "successive halving, those not among the best at certain epochs; pbt: none, but the worst "
        "go on from the weights of the best, with settings near theirs",
    )
    grace_period: int = option(
        default=1, check=at_least(1), help="epochs, or observation sets, before any is ended"
    )
    reduction_factor: float = option(
        default=3.0,
        check=Check("greater than 1", lambda v: v > 1),
        help="asha: one in so many goes on, and for so many times longer",
    )
    interval: int = option(
        default=10, check=at_least(1), help="pbt: epochs between two such comparisons"
    )


@component
class RayTune(Sweep):
    """Trials on a Ray cluster, by Ray Tune, searched by Optuna.

    Good values: ``search = "tpe"`` with at least 20 trials, ``asha`` with a grace period of a tenth
    of the epochs.
    """

    stage: Literal["train", "assimilate"] = option(
        default="train",
        help="what a trial does: train a model, or infer with one that is trained",
    )
    metric: str = option(
        default="valid_loss",
        help="what is searched for: of a training valid_loss, loss, ...; of an assimilation one of "
        "the scores, such as crps, wasserstein1, rmse or rmse/VARIABLE",
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
        help="trials at the same time; as many as the cluster has room for if not set",
    )
    time_budget: float | None = option(
        default=None, check=positive, units="s", help="time after which the study is left"
    )
    retries: int = option(
        default=2,
        check=non_negative,
        help="how often a trial whose process is lost is gone on with",
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
        space = Space.parse(self.space)
        if self.search == "grid":
            space.grid()
        if self.search == "cma-es" and importlib.util.find_spec("cmaes") is None:
            raise ConfigError(
                "search = 'cma-es' needs the package cmaes: pip install 'sda-ray[cma-es]', or "
                "choose another search"
            )
        if self.search == "cma-es":
            space.check_numbers()

    @property
    def workers(self) -> Workers:
        """The processes of a trial."""
        return Workers(self.workers_per_trial, self.cpus_per_trial, self.gpus_per_trial)

    @property
    def settings(self) -> dict[str, Any]:
        """The table, with the space by path."""
        whole: Any = self
        return unstructure(whole) | {"space": dict(leaves(self.space))}

    def check(self, experiment: Experiment) -> None:
        """Refuse what cannot be done with an experiment, before anything is started.

        Raises:
            ConfigError: Says what, by key.
        """
        space = Space.parse(self.space)
        if found := space.touches(*_NOT_VARIED):
            raise ConfigError(
                f"sweep.space.{found[0]}: {found[0].partition('.')[0]} changes no result; allowed "
                "are the other tables of the experiment"
            )
        if experiment.cluster is not None and not isinstance(experiment.cluster, Ray):
            raise ConfigError(
                "cluster.name: the sweep ray-tune needs the cluster 'ray', or none for this "
                "machine by itself"
            )
        if experiment.cluster is not None and experiment.cluster.storage is not None:
            check_url(experiment.cluster.storage)
        longest = self.longest(experiment)
        if self.scheduler.name != "none" and self.scheduler.grace_period > longest:
            unit = "epochs" if self.stage == "train" else "observation sets"
            raise ConfigError(
                f"sweep.scheduler.grace_period = {self.scheduler.grace_period}, but a trial has "
                f"{longest} {unit}: give less"
            )
        check = self._check_training if self.stage == "train" else self._check_assimilation
        check(experiment, space)
        try:
            space.check(table_of(experiment))
        except ConfigError as error:
            raise ConfigError(f"sweep: {error}") from error

    def _check_training(self, experiment: Experiment, space: Space) -> None:
        experiment.require("kernel", "training")
        experiment.require("schedule", "training")
        if self.metric not in TRAINING_METRICS:
            raise ConfigError(
                f"sweep.metric: got {self.metric!r}, {_hint(self.metric, TRAINING_METRICS)}"
                f"allowed for stage = 'train': {', '.join(TRAINING_METRICS)}"
            )
        if experiment.model.pretrained is not None:
            raise ConfigError(
                "model.pretrained: there is nothing to train; leave it out, or vary what is "
                "asked for after the training with sweep.stage = 'assimilate'"
            )
        if not experiment.data.split_sizes["valid"]:
            raise ConfigError(
                f"data.fractions = {list(experiment.data.fractions)} leaves no trajectories for "
                "validation, and trials are compared after each: give the second a larger share"
            )

        if self.scheduler.name == "pbt":
            self._check_population(experiment, space)
        if self.evaluate:
            self._check_evaluation(experiment)
        if self.workers_per_trial > 1:
            self._check_workers(experiment, space)

    def _check_workers(self, experiment: Experiment, space: Space) -> None:
        asked = f"sweep.workers_per_trial = {self.workers_per_trial}"
        if self.scheduler.name == "pbt":
            raise ConfigError(
                f"{asked}: not for scheduler 'pbt', whose trials take over each other's weights; "
                "leave it out"
            )
        varied = [p for p in space.parameters if p.path == "train.batch_size"]
        smallest = min(varied[0].values) if varied else experiment.train.batch_size
        if self.workers_per_trial > smallest:
            raise ConfigError(
                f"{asked}, but train.batch_size = {smallest}, whose windows they share: give at "
                "most as many workers"
            )

    def _check_evaluation(self, experiment: Experiment) -> None:
        asked = experiment.assimilate
        if experiment.require("method", "sweep.evaluate").needs_model:
            for table in ("sampler", "guidance"):
                experiment.require(table, "sweep.evaluate")
        if asked.observations is not None:
            return
        experiment.require("observation", "sweep.evaluate")
        held_out = experiment.data.split_sizes["test"]
        if asked.trajectory >= held_out:
            raise ConfigError(
                f"assimilate.trajectory = {asked.trajectory}, but the test split has {held_out} "
                "trajectories (data.trajectories, data.fractions), and sweep.evaluate infers one"
            )
        if asked.start + asked.length > experiment.data.length:
            raise ConfigError(
                f"assimilate.start + assimilate.length = {asked.start + asked.length}, but "
                f"data.length = {experiment.data.length}: sweep.evaluate infers one trajectory"
            )

    def _check_population(self, experiment: Experiment, space: Space) -> None:
        if wrong := sorted(set(space.paths) - set(LEARNED)):
            raise ConfigError(
                f"sweep.space.{wrong[0]}: not for scheduler 'pbt', which changes settings while a "
                f"training goes on; allowed: {', '.join(LEARNED)}"
            )
        if any(parameter.when for parameter in space.parameters):
            raise ConfigError("sweep.space: `when` is not for scheduler 'pbt'; leave it out")
        if self.concurrency is not None:
            raise ConfigError(
                "sweep.concurrency: not for scheduler 'pbt', whose trials take turns; set "
                "cluster.cpus to use less of this machine"
            )
        every = experiment.train.validate_every
        if self.scheduler.interval % every:
            raise ConfigError(
                f"sweep.scheduler.interval = {self.scheduler.interval}, and train.validate_every = "
                f"{every} does not divide it: trials are compared after a validation"
            )

    def _check_assimilation(self, experiment: Experiment, space: Space) -> None:
        if self.workers_per_trial > 1:
            raise ConfigError(
                f"sweep.workers_per_trial = {self.workers_per_trial}: only for stage = 'train'; "
                "leave it out, and let more trials of stage = 'assimilate' be done at once"
            )
        if self.evaluate:
            raise ConfigError(
                "sweep.evaluate: trials of stage = 'assimilate' are evaluated anyway; leave it out"
            )
        varied = set(space.paths)
        if wrong := sorted(varied - set(space.touches(*INFERENCE))):
            raise ConfigError(
                f"sweep.space.{wrong[0]}: not for stage = 'assimilate', whose trials share model, "
                f"data and observations; allowed: {', '.join(INFERENCE)}"
            )
        if self.scheduler.name == "pbt":
            raise ConfigError("sweep.scheduler.name: 'pbt' is for stage = 'train' only")
        for table in ("observation", "method"):
            experiment.require(table, "a sweep of assimilations")
        if experiment.assimilate.observations is not None:
            raise ConfigError(
                "assimilate.observations: trials are scored against held-out trajectories; leave "
                "it out"
            )
        if experiment.require("method", "").needs_model and experiment.model.pretrained is None:
            raise ConfigError(
                "model.pretrained is not set, and trials share one trained model: give its folder, "
                "or give `sda sweep` the run directory it was trained in"
            )
        if self.metric == "wasserstein1" and experiment.evaluate.reference is None:
            raise ConfigError(
                "sweep.metric = 'wasserstein1' is a distance to evaluate.reference, which is not "
                'set: add one, such as { name = "particle-filter" }, or choose crps'
            )
        if self.metric in TRAINING_METRICS:
            raise ConfigError(
                f"sweep.metric: {self.metric!r} is of a training; for stage = 'assimilate' give a "
                "score, such as crps, rmse or wasserstein1"
            )
        held_out = experiment.data.split_sizes["test"]
        if self.observation_sets > held_out:
            raise ConfigError(
                f"sweep.observation_sets = {self.observation_sets}, but the test split has "
                f"{held_out} trajectories (data.trajectories, data.fractions)"
            )

    def longest(self, experiment: Experiment) -> int:
        """The most epochs, or observation sets, of a trial."""
        if self.stage == "assimilate":
            return self.observation_sets
        found = [p for p in Space.parse(self.space).parameters if p.path == "train.epochs"]
        return max(found[0].values) if found else experiment.train.epochs

    def run(
        self,
        experiment: Experiment,
        directory: str | Path,
        *,
        resume: bool = False,
        progress: ProgressOption = True,
    ) -> Path:
        """Do the trials; see :meth:`sda_core.sweep.Sweep.run`."""
        self.check(experiment)
        from sda_ray.conduct import conduct  # imports ray and optuna

        return conduct(self, experiment, Path(directory), resume=resume, progress=progress)


def table_of(experiment: Experiment) -> dict[str, Any]:
    """The table of an experiment, without what spreads and sweeps it."""
    table = unstructure(experiment)
    return {key: value for key, value in table.items() if key not in ("cluster", "sweep")}


def _hint(value: str, known: tuple[str, ...]) -> str:
    return f"did you mean {match!r}? " if (match := nearest(value, known)) else ""
