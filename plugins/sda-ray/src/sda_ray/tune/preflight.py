"""What is refused before a sweep starts anything."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from sda_core.config import unstructure
from sda_core.errors import ConfigError
from sda_core.experiment import Experiment
from sda_ray.cluster import Ray
from sda_ray.storage import check_url
from sda_ray.tune.search_space import Space

if TYPE_CHECKING:
    from sda_ray.tune.config import RayTune

#: Metrics that each training reports after a validation.
TRAINING_METRICS = (
    "valid_loss",
    "valid_loss_unweighted",
    "loss",
    "grad_norm",
    "steps_per_second",
)
#: What an inference sweep can vary: all that is asked for after the training.
INFERENCE = ("sampler", "guidance", "method", "model.stride", "model.fold")
#: Settings of a training that may change while it goes on: all that a population can vary.
LEARNED = ("train.learning_rate", "train.weight_decay", "train.clip_norm", "train.ema")
#: What a sweep is done with, and what it is done by: no part of a trial's result.
_NOT_VARIED = ("title", "trackers", "cluster", "sweep")


def table_of(experiment: Experiment) -> dict[str, Any]:
    """The table of an experiment, without what spreads and sweeps it."""
    table = unstructure(experiment)
    return {key: value for key, value in table.items() if key not in ("cluster", "sweep")}


def check(sweep: RayTune, experiment: Experiment) -> None:
    """Refuse what cannot be done with an experiment, before anything is started.

    Raises:
        ConfigError: Says what, by key.
    """
    space = Space.parse(sweep.space)
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
    if experiment.cluster is not None and str(experiment.cluster.address).startswith("ray://"):
        raise ConfigError(
            f"cluster.address = {experiment.cluster.address!r}: a sweep runs on the cluster; "
            "send it there by `sda sweep --submit http://HEAD:8265`, or run it on a machine of "
            "the cluster with --address auto"
        )
    if experiment.cluster is not None and experiment.cluster.storage is not None:
        check_url(experiment.cluster.storage)
    longest = sweep.longest(experiment)
    if sweep.scheduler.name != "none" and sweep.scheduler.grace_period > longest:
        unit = "epochs" if sweep.stage == "train" else "observation sets"
        raise ConfigError(
            f"sweep.scheduler.grace_period = {sweep.scheduler.grace_period}, but a trial has "
            f"{longest} {unit}: give less"
        )
    check_stage = _check_training if sweep.stage == "train" else _check_assimilation
    check_stage(sweep, experiment, space)
    try:
        space.check(table_of(experiment))
    except ConfigError as error:
        raise ConfigError(f"sweep: {error}") from error


def _check_training(sweep: RayTune, experiment: Experiment, space: Space) -> None:
    experiment.require("kernel", "training")
    experiment.require("schedule", "training")
    if sweep.metric.startswith("posterior/") and not sweep.evaluate:
        raise ConfigError(
            f"sweep.metric = {sweep.metric!r} is a score of posteriors, which a training does not "
            "make: set sweep.evaluate = true"
        )
    typo_of = get_close_matches(sweep.metric, TRAINING_METRICS, n=1, cutoff=0.85)
    if typo_of and sweep.metric not in TRAINING_METRICS and "/" not in sweep.metric:
        raise ConfigError(
            f"sweep.metric: got {sweep.metric!r}, did you mean {typo_of[0]!r}? Allowed for stage = "
            f"'train' are {', '.join(TRAINING_METRICS)}, and what plugins and the evaluation of a "
            "trial report"
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

    if sweep.scheduler.name == "pbt":
        _check_population(sweep, experiment, space)
    if sweep.evaluate:
        _check_evaluation(experiment)
    if sweep.workers_per_trial > 1:
        _check_workers(sweep, experiment, space)


def _check_workers(sweep: RayTune, experiment: Experiment, space: Space) -> None:
    asked = f"sweep.workers_per_trial = {sweep.workers_per_trial}"
    if sweep.scheduler.name == "pbt":
        raise ConfigError(
            f"{asked}: not for scheduler 'pbt', whose trials take over each other's weights; "
            "leave it out"
        )
    varied = [p for p in space.parameters if p.path == "train.batch_size"]
    smallest = min(varied[0].values) if varied else experiment.train.batch_size
    if sweep.workers_per_trial > smallest:
        raise ConfigError(
            f"{asked}, but train.batch_size = {smallest}, whose windows they share: give at "
            "most as many workers"
        )


def _check_evaluation(experiment: Experiment) -> None:
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


def _check_population(sweep: RayTune, experiment: Experiment, space: Space) -> None:
    if wrong := sorted(set(space.paths) - set(LEARNED)):
        raise ConfigError(
            f"sweep.space.{wrong[0]}: not for scheduler 'pbt', which changes settings while a "
            f"training goes on; allowed: {', '.join(LEARNED)}"
        )
    if any(parameter.when for parameter in space.parameters):
        raise ConfigError("sweep.space: `when` is not for scheduler 'pbt'; leave it out")
    if sweep.concurrency is not None:
        raise ConfigError(
            "sweep.concurrency: not for scheduler 'pbt', whose trials take turns; set "
            "cluster.cpus to use less of this machine"
        )
    every = experiment.train.validate_every
    if sweep.scheduler.interval % every:
        raise ConfigError(
            f"sweep.scheduler.interval = {sweep.scheduler.interval}, and train.validate_every = "
            f"{every} does not divide it: trials are compared after a validation"
        )


def _check_assimilation(sweep: RayTune, experiment: Experiment, space: Space) -> None:
    if sweep.workers_per_trial > 1:
        raise ConfigError(
            f"sweep.workers_per_trial = {sweep.workers_per_trial}: only for stage = 'train'; "
            "leave it out, and let more trials of stage = 'assimilate' be done at once"
        )
    if sweep.evaluate:
        raise ConfigError(
            "sweep.evaluate: trials of stage = 'assimilate' are evaluated anyway; leave it out"
        )
    varied = set(space.paths)
    if wrong := sorted(varied - set(space.touches(*INFERENCE))):
        raise ConfigError(
            f"sweep.space.{wrong[0]}: not for stage = 'assimilate', whose trials share model, "
            f"data and observations; allowed: {', '.join(INFERENCE)}"
        )
    if sweep.scheduler.name == "pbt":
        raise ConfigError("sweep.scheduler.name: 'pbt' is for stage = 'train' only")
    for table in ("observation", "method"):
        experiment.require(table, "a sweep of assimilations")
    if experiment.assimilate.observations is not None:
        raise ConfigError(
            "assimilate.observations: trials are scored against held-out trajectories; leave it out"
        )
    if experiment.require("method", "").needs_model and experiment.model.pretrained is None:
        raise ConfigError(
            "model.pretrained is not set, and trials share one trained model: give its folder, "
            "or give `sda sweep` the run directory it was trained in"
        )
    if sweep.metric == "wasserstein1" and experiment.evaluate.reference is None:
        raise ConfigError(
            "sweep.metric = 'wasserstein1' is a distance to evaluate.reference, which is not "
            'set: add one, such as { name = "particle-filter" }, or choose crps'
        )
    if sweep.metric in TRAINING_METRICS:
        raise ConfigError(
            f"sweep.metric: {sweep.metric!r} is of a training; for stage = 'assimilate' give a "
            "score, such as crps, rmse or wasserstein1"
        )
    held_out = experiment.data.split_sizes["test"]
    if sweep.observation_sets > held_out:
        raise ConfigError(
            f"sweep.observation_sets = {sweep.observation_sets}, but the test split has "
            f"{held_out} trajectories (data.trajectories, data.fractions)"
        )
