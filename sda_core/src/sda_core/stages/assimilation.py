"""The stage that observes a trajectory and infers it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import attrs
from torch import Tensor

from sda_core.cluster import Cluster, Local
from sda_core.data import TrajectoryStore, split_path
from sda_core.errors import ConfigError
from sda_core.experiment import AssimilateConfig, Experiment, Run
from sda_core.io import xarray as xarray_io
from sda_core.io.progress import ProgressOption, announce
from sda_core.method import Execution, Method, Problem
from sda_core.model import TrainedModel
from sda_core.random import seeded_generator
from sda_core.stages.common import (
    OBSERVATION,
    POSTERIOR,
    OnStep,
    check_simulated,
    load_model,
    sampling_steps,
    stream,
)
from sda_core.stages.simulation import simulate
from sda_core.stages.streaming import ensemble_file
from sda_core.system import SystemSpec


def make_problem(run: Run) -> Problem:
    """Take the observations of the experiment's table, or observe a held-out trajectory.

    Raises:
        DataError: There is no test split, or the table cannot be used.
        ConfigError: The trajectory asked for does not exist or is too short.
    """
    experiment, config = run.experiment, run.experiment.assimilate
    if config.observations is not None:
        matched = config.observations.match(_standardized_spec(run), config.length)
        model, y = matched.used()
        return Problem(system=experiment.system, observation=model, y=y, matched=matched)
    observation = experiment.require("observation", "assimilation")
    check_simulated(run)
    store = TrajectoryStore(split_path(run.data, "test"))
    check_trajectory(config, *store.shape[:2])
    truth = store.read(config.trajectory, slice(config.start, config.start + config.length))
    model = observation.bind(store.spec, config.length)
    generator = seeded_generator(experiment.seed, OBSERVATION, config.trajectory, config.start)
    return Problem(
        system=experiment.system,
        observation=model,
        y=model.sample(truth, generator),
        truth=truth,
    )


def assimilate(
    experiment: Experiment,
    directory: str | Path,
    *,
    progress: ProgressOption = True,
    workers: int | None = None,
    cluster: Cluster | None = None,
) -> Tensor:
    r"""Observe a held-out trajectory, or take observations from a table, and infer the states.

    Args:
        experiment: The experiment; its kernel must have been trained if its method needs one.
        directory: The run directory.
        progress: What to show.
        workers: Number of processes that draw members, if the method can be spread; None to draw
            them in this one.
        cluster: Where, if not on the experiment's cluster; without one, on this machine.

    Returns:
        Posterior ensemble (M, L, C, \*S) in physical units, also written to ``posterior.nc`` or,
        if asked for, ``posterior.zarr``; observations and, if it is known, the truth are written
        to ``observations.nc``.

    Raises:
        ClusterError: The cluster cannot be reached, or lost members for good; others are kept.
        ConfigError: Workers are asked for, and the method's members cannot be drawn apart.
    """
    run = Run(experiment, directory, progress=progress)
    method = experiment.require("method", "assimilation")
    run.check_earlier("assimilate")
    if workers is not None:
        _check_spread(run, workers)
        cluster = cluster or experiment.cluster or Local()
    synthetic = experiment.assimilate.observations is None
    if synthetic and experiment.model.pretrained is not None and not run.is_done("simulate"):
        # No training needed data before.
        simulate(experiment, directory, progress=progress, workers=workers, cluster=cluster)
    problem = make_problem(run)
    with run.stage("assimilate") as results:
        if problem.matched is not None:
            announce(run.progress, f"observations: {problem.matched}")
            results["observations"] = problem.matched.counts
        model = load_model(run) if method.needs_model else None
        shape = (experiment.assimilate.members, *problem.shape)
        seed = stream(experiment.seed, POSTERIOR)
        with ensemble_file(
            run, "assimilate", problem.system.spec, shape, model, problem.y
        ) as ensemble:
            with sampling_steps(run, "assimilating") as on_step:
                execution = Execution(
                    on_step=on_step,
                    announce=partial(announce, run.progress),
                    ensemble=ensemble,
                    record=results.update,
                    cluster=None if workers is None else cluster,
                    workers=workers or 1,
                )
                method = complete(method, run, model)
                x = method.draw(problem, experiment.assimilate.members, seed, execution)
            method.check_plausible(problem, x)
            results["members"] = len(x)
            results |= run.result_numbers("assimilate", problem=problem, posterior=x)
            # Not before, so that they are never those of another posterior than the one there.
            xarray_io.save(problem.to_dataset(), run.directory / "observations.nc")
            ensemble.finish(x)
    return x


def infer(
    run: Run, method: Method, problem: Problem, members: int, seed: int, on_step: OnStep
) -> Tensor:
    """The ensemble of a method, with the experiment's model, sampler and guidance."""
    method = complete(method, run, load_model(run) if method.needs_model else None)
    execution = Execution(on_step=on_step, announce=partial(announce, run.progress))
    return method.draw(problem, members, seed, execution)


def complete(method: Method, run: Run, model: TrainedModel | None) -> Method:
    """A method with the model, and the experiment's sampler and guidance, if it needs them."""
    if not method.needs_model:
        return method
    experiment, configuration = run.experiment, cast(Any, method)
    parts: dict[str, Any] = {"model": model, "sampler": experiment.sampler}
    if method.needs_guidance:
        parts["guidance"] = experiment.guidance
    completed: Method = attrs.evolve(configuration, **parts)
    return completed


def _check_spread(run: Run, workers: int) -> None:
    method = run.experiment.require("method", "assimilation")
    if not method.spreads:
        raise ConfigError(
            f"--workers {workers}: the members of method {run.manager.name_of(type(method))[1]!r} "
            "depend on each other, so that they cannot be drawn by several processes. Leave "
            "--workers out, or use a method that can be spread, such as 'sda'"
        )
    if workers < 1:
        raise ConfigError(f"--workers {workers}: give the number of processes, 1 or more")


def _standardized_spec(run: Run) -> SystemSpec:
    """The system's spec with mean and std of its states, as far as they are known."""
    experiment = run.experiment
    spec, data = experiment.system.spec, split_path(run.data, "train")
    if experiment.require("method", "assimilation").needs_model:
        known = load_model(run).spec
    elif data.is_file():
        known = TrajectoryStore(data).spec
    else:
        return spec
    return attrs.evolve(spec, mean=known.mean, std=known.std)


def check_trajectory(config: AssimilateConfig, count: int, length: int) -> None:
    """Refuse a trajectory that is not among those of the test split.

    Args:
        config: What is inferred.
        count: Number of trajectories in the split.
        length: Number of states in each.

    Raises:
        ConfigError: There is no such trajectory, or it is too short.
    """
    if config.trajectory >= count:
        raise ConfigError(
            f"assimilate.trajectory = {config.trajectory}, but the test split has {count} "
            f"trajectories: choose 0 to {count - 1}"
        )
    if config.start + config.length > length:
        raise ConfigError(
            f"assimilate.start + assimilate.length = {config.start + config.length}, but "
            f"trajectories in the test split have {length} states: choose less, or simulate longer "
            "ones (data.length)"
        )
