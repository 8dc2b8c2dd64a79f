"""The stage that observes a trajectory and infers it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import Tensor

from sda_core import labelled
from sda_core.data import TrajectoryStore, split_path
from sda_core.errors import ConfigError
from sda_core.experiment import AssimilateConfig, Experiment
from sda_core.method import Method, Problem, Toolbox
from sda_core.progress import ProgressOption, announce
from sda_core.random import seeded_generator
from sda_core.rundir import Run
from sda_core.stages.common import (
    OBSERVATION,
    POSTERIOR,
    OnStep,
    check_simulated,
    load_model,
    sampling_steps,
    stream,
)


def make_problem(run: Run) -> Problem:
    """Observe a held-out trajectory.

    Raises:
        DataError: There is no test split.
        ConfigError: The trajectory asked for does not exist or is too short.
    """
    experiment, config = run.experiment, run.experiment.assimilate
    observation = experiment.require("observation", "assimilation")
    check_simulated(run)
    store = TrajectoryStore(split_path(run.data, "test"))
    _check_trajectory(config, store)
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
    experiment: Experiment, directory: str | Path, *, progress: ProgressOption = True
) -> Tensor:
    r"""Observe a held-out trajectory and infer it.

    Args:
        experiment: The experiment; its kernel must have been trained if its method needs one.
        directory: The run directory.
        progress: What to show.

    Returns:
        Posterior ensemble (M, L, C, \*S) in physical units, also written to ``posterior.nc``; the
        observations and the truth are written to ``observations.nc``.
    """
    run = Run(experiment, directory, progress=progress)
    method = experiment.require("method", "assimilation")
    problem = make_problem(run)
    with run.stage("assimilate") as results:
        labelled.save(labelled.observations(problem), run.directory / "observations.nc")
        seed = stream(experiment.seed, POSTERIOR)
        with sampling_steps(run, "assimilating") as on_step:
            x = infer(run, method, problem, experiment.assimilate.members, seed, on_step)
        labelled.save(
            labelled.trajectories(x, problem.system.spec).rename("posterior"),
            run.directory / "posterior.nc",
        )
        results["members"] = len(x)
        results |= run.result_numbers("assimilate", problem=problem, posterior=x)
    return x


def infer(
    run: Run, method: Method, problem: Problem, members: int, seed: int, report: OnStep
) -> Tensor:
    """The ensemble of a method, with the experiment's model, sampler and guidance."""
    experiment = run.experiment
    tools = Toolbox(
        model=load_model(run) if method.needs_model else None,
        sampler=experiment.sampler,
        guidance=experiment.guidance,
        on_step=report,
        announce=partial(announce, run.progress),
    )
    return method.assimilate(problem, members, seed, tools)


def _check_trajectory(config: AssimilateConfig, store: TrajectoryStore) -> None:
    count, length = store.shape[:2]
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
