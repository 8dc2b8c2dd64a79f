"""Sweeps by Ray Tune, searched by Optuna; and what is refused before anything is started.

References:
    - Liaw et al., "Tune: A Research Platform for Distributed Model Selection and Training", 2018,
      https://arxiv.org/abs/1807.05118
    - Akiba et al., "Optuna: A Next-generation Hyperparameter Optimization Framework", 2019,
      https://arxiv.org/abs/1907.10902
    - Li et al., "A System for Massively Parallel Hyperparameter Tuning" (ASHA), 2020,
      https://arxiv.org/abs/1810.05934
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from sda_core.config import component
from sda_core.errors import ConfigError
from sda_core.experiment import Experiment
from sda_core.io.progress import ProgressOption
from sda_core.stages.preflight import check_tables
from sda_ray.cluster import Ray
from sda_ray.storage import check_url
from sda_ray.tune.config import SweepSettings
from sda_ray.tune.context import trial_table

#: Metrics that each training reports after a validation.
TRAINING_METRICS = ("valid_loss", "valid_loss_unweighted", "loss", "grad_norm", "steps_per_second")
#: What an inference sweep can vary: all that is asked for after the training.
_INFERENCE = ("sampler", "guidance", "method", "model.stride", "model.fold")
#: Settings of a training that may change during it: all that a population can vary.
_LEARNED = ("train.learning_rate", "train.weight_decay", "train.clip_norm", "train.ema")
#: What a sweep is done with, and what it is done by: no part of a trial's result.
_NOT_VARIED = ("title", "trackers", "cluster", "sweep")


@component
class RayTune(SweepSettings):
    """Trials on a Ray cluster, by Ray Tune, searched by Optuna.

    Good values: ``search = "tpe"`` with at least 20 trials, ``asha`` with a grace period of a tenth
    of the epochs.
    """

    def check(self, experiment: Experiment) -> None:
        """Refuse what cannot be done with an experiment, before anything is started.

        Raises:
            ConfigError: Says what, by key.
        """
        cluster, space, scheduler = experiment.cluster, self.search_space, self.scheduler
        for path in space.touches(*_NOT_VARIED):
            raise ConfigError(
                f"sweep.space.{path}: {path.partition('.')[0]} changes no result; allowed are the "
                "other tables of the experiment"
            )
        if isinstance(cluster, Ray):
            _refuse(
                str(cluster.address).startswith("ray://"),
                f"cluster.address = {cluster.address!r}: a sweep runs on the cluster; send it "
                "there by `sda sweep --submit http://HEAD:8265`, or run it on a machine of the "
                "cluster with --address auto",
            )
            if cluster.storage is not None:
                check_url(cluster.storage)
        elif cluster is not None:
            raise ConfigError(
                "cluster.name: the sweep ray-tune needs the cluster 'ray', or none for this "
                "machine by itself"
            )
        longest = self.longest(experiment)
        _refuse(
            scheduler.name != "none" and scheduler.grace_period > longest,
            f"sweep.scheduler.grace_period = {scheduler.grace_period}, but a trial has {longest} "
            f"{self.unit}: give less",
        )
        check_stage = _check_training if self.stage == "train" else _check_assimilation
        check_stage(self, experiment)
        try:
            space.check(trial_table(experiment))
        except ConfigError as error:
            raise ConfigError(f"sweep: {error}") from error

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
        from sda_ray.tune.tuner import run  # imports ray and optuna

        return run(self, experiment, Path(directory), resume=resume, progress=progress)


def _refuse(is_wrong: object, message: str) -> None:
    if is_wrong:
        raise ConfigError(message)


def _check_training(sweep: SweepSettings, experiment: Experiment) -> None:
    metric = sweep.metric
    experiment.require("kernel", "training")
    experiment.require("schedule", "training")
    _refuse(
        metric.startswith("posterior/") and not sweep.evaluate,
        f"sweep.metric = {metric!r} is a score of posteriors, which a training does not make: set "
        "sweep.evaluate = true",
    )
    typo_of = get_close_matches(metric, TRAINING_METRICS, n=1, cutoff=0.85)
    _refuse(
        typo_of and metric not in TRAINING_METRICS and "/" not in metric,
        f"sweep.metric: got {metric!r}, did you mean {' '.join(typo_of)!r}? Allowed for stage = "
        f"'train' are {', '.join(TRAINING_METRICS)}, and what plugins and the evaluation of a "
        "trial report",
    )
    _refuse(
        experiment.model.pretrained is not None,
        "model.pretrained: there is nothing to train; leave it out, or vary what is asked for "
        "after the training with sweep.stage = 'assimilate'",
    )
    _refuse(
        not experiment.data.split_sizes["valid"],
        f"data.fractions = {list(experiment.data.fractions)} leaves no trajectories for "
        "validation, and trials are compared after each: give the second a larger share",
    )
    if sweep.scheduler.name == "pbt":
        _check_population(sweep, experiment)
    if sweep.evaluate:
        _check_evaluation(experiment)
    varied = [p for p in sweep.search_space.parameters if p.path == "train.batch_size"]
    smallest = min(varied[0].values) if varied else experiment.train.batch_size
    _refuse(
        sweep.workers_per_trial > 1 and sweep.workers_per_trial > smallest,
        f"sweep.workers_per_trial = {sweep.workers_per_trial}, but train.batch_size = {smallest}, "
        "whose windows they share: give at most as many workers",
    )


def _check_evaluation(experiment: Experiment) -> None:
    asked, data = experiment.assimilate, experiment.data
    experiment.require("method", "sweep.evaluate")
    check_tables(experiment, ("assimilate", "evaluate"), "sweep.evaluate")
    if asked.observations is not None:
        return
    held_out, end = data.split_sizes["test"], asked.start + asked.length
    _refuse(
        asked.trajectory >= held_out,
        f"assimilate.trajectory = {asked.trajectory}, but the test split has {held_out} "
        "trajectories (data.trajectories, data.fractions), and sweep.evaluate infers one",
    )
    _refuse(
        end > data.length,
        f"assimilate.start + assimilate.length = {end}, but data.length = {data.length}: "
        "sweep.evaluate infers one trajectory",
    )


def _check_population(sweep: SweepSettings, experiment: Experiment) -> None:
    space, every = sweep.search_space, experiment.train.validate_every
    _refuse(
        sweep.workers_per_trial > 1,
        f"sweep.workers_per_trial = {sweep.workers_per_trial}: not for scheduler 'pbt', whose "
        "trials take over each other's weights; leave it out",
    )
    for path in sorted(set(space.paths) - set(_LEARNED)):
        raise ConfigError(
            f"sweep.space.{path}: not for scheduler 'pbt', which changes settings during "
            f"a training; allowed: {', '.join(_LEARNED)}"
        )
    _refuse(
        any(parameter.when for parameter in space.parameters),
        "sweep.space: `when` is not for scheduler 'pbt'; leave it out",
    )
    _refuse(
        sweep.concurrency is not None,
        "sweep.concurrency: not for scheduler 'pbt', whose trials take turns; set cluster.cpus to "
        "use less of this machine",
    )
    _refuse(
        sweep.scheduler.interval % every,
        f"sweep.scheduler.interval = {sweep.scheduler.interval}, and train.validate_every = "
        f"{every} does not divide it: trials are compared after a validation",
    )


def _check_assimilation(sweep: SweepSettings, experiment: Experiment) -> None:
    space, held_out = sweep.search_space, experiment.data.split_sizes["test"]
    _refuse(
        sweep.workers_per_trial > 1,
        f"sweep.workers_per_trial = {sweep.workers_per_trial}: only for stage = 'train'; leave it "
        "out, and let more trials of stage = 'assimilate' be done at once",
    )
    _refuse(
        sweep.evaluate,
        "sweep.evaluate: trials of stage = 'assimilate' are evaluated anyway; leave it out",
    )
    for path in sorted(set(space.paths) - set(space.touches(*_INFERENCE))):
        raise ConfigError(
            f"sweep.space.{path}: not for stage = 'assimilate', whose trials share model, data "
            f"and observations; allowed: {', '.join(_INFERENCE)}"
        )
    _refuse(
        sweep.scheduler.name == "pbt", "sweep.scheduler.name: 'pbt' is for stage = 'train' only"
    )
    experiment.require("observation", "a sweep of assimilations")
    method = experiment.require("method", "a sweep of assimilations")
    _refuse(
        experiment.assimilate.observations is not None,
        "assimilate.observations: trials are scored against held-out trajectories; leave it out",
    )
    _refuse(
        method.needs_model and experiment.model.pretrained is None,
        "model.pretrained is not set, and trials share one trained model: give its folder, or "
        "give `sda sweep` the run directory it was trained in",
    )
    _refuse(
        sweep.metric == "wasserstein1" and experiment.evaluate.reference is None,
        "sweep.metric = 'wasserstein1' is a distance to evaluate.reference, which is not set: add "
        'one, such as { name = "particle-filter" }, or choose crps',
    )
    _refuse(
        sweep.metric in TRAINING_METRICS,
        f"sweep.metric: {sweep.metric!r} is of a training; for stage = 'assimilate' give a score, "
        "such as crps, rmse or wasserstein1",
    )
    _refuse(
        sweep.observation_sets > held_out,
        f"sweep.observation_sets = {sweep.observation_sets}, but the test split has {held_out} "
        "trajectories (data.trajectories, data.fractions)",
    )
