"""What is checked before the first stage of a run, so that no later stage fails for it."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import attrs

from sda_core.data import check_space, size_text
from sda_core.errors import DataError
from sda_core.experiment import STAGES, Experiment, Run
from sda_core.experiment.stage import Stage
from sda_core.io.files import disk_usage
from sda_core.stages.assimilation import check_trajectory
from sda_core.stages.common import load_model
from sda_core.stages.new_model import check_memory, check_window
from sda_core.system import SystemSpec


def check_run(run: Run) -> list[Stage]:
    """Check all stages that a run has still to do.

    Returns:
        These stages, in order.

    Raises:
        ConfigError: A table is missing, or does not fit the system, the data or the memory.
        DataError: The observations cannot be used, or a result does not fit on the disk.
        CheckpointError: There is no such pretrained model.
    """
    experiment = run.experiment
    stages = [s for s in STAGES.values() if s.needed(experiment) and not run.is_done(s.name)]
    missing = {stage.name for stage in stages}
    check_tables(experiment, missing)
    spec = _with_statistics(experiment.system.spec)
    if "simulate" in missing:
        check_space(run.data, experiment.data, spec)
    _check_lengths(experiment, missing)
    if "train" in missing:
        check_memory(run, spec)
    elif experiment.model.pretrained is not None and missing & {"sample", "assimilate"}:
        load_model(run)
    if "assimilate" in missing:
        _check_observations(experiment, spec)
    _check_results(run, missing, spec)
    return stages


def check_tables(experiment: Experiment, missing: Collection[str], what: str = "a run") -> None:
    """Refuse an experiment without a table that one of these stages needs.

    Args:
        experiment: The experiment.
        missing: The stages.
        what: What they are done for, for the message.

    Raises:
        ConfigError: A table is missing.
    """
    needed = []
    if "train" in missing:
        needed += ["kernel", "schedule"]
    if "sample" in missing:
        needed += ["sampler"]
    evaluated = experiment.evaluate
    methods = [experiment.method] if "assimilate" in missing else []
    methods += [evaluated.baseline, evaluated.reference] if "evaluate" in missing else []
    with_model = [method for method in methods if method is not None and method.needs_model]
    needed += ["sampler"] if with_model else []
    needed += ["guidance"] if any(method.needs_guidance for method in with_model) else []
    if "assimilate" in missing and experiment.assimilate.observations is None:
        needed += ["observation"]
    for table in needed:
        experiment.require(table, what)


def _check_lengths(experiment: Experiment, missing: Collection[str]) -> None:
    """Refuse windows and posteriors that are longer than the trajectories."""
    if "train" in missing:
        check_window(experiment)
    config, data = experiment.assimilate, experiment.data
    if "assimilate" in missing and config.observations is None:
        check_trajectory(config, data.split_sizes["test"], data.length)


def _check_observations(experiment: Experiment, spec: SystemSpec) -> None:
    """Try the observations on the system; what depends on its statistics is not looked at."""
    config = experiment.assimilate
    if config.observations is None:
        experiment.require("observation", "a run").bind(spec, config.length)
        return
    table: Any = config.observations  # to mypy components are no attrs classes
    attrs.evolve(table, gross_error=math.inf).match(spec, config.length)


def _check_results(run: Run, missing: Collection[str], spec: SystemSpec) -> None:
    """Refuse ensembles that do not fit on the disk."""
    experiment = run.experiment
    asked = {"assimilate": experiment.assimilate, "sample": experiment.sample}
    free = disk_usage(run.directory).free
    for stage, config in asked.items():
        if stage not in missing or config is None:
            continue
        size = 4 * config.members * config.length * math.prod(spec.state_shape)
        if size > free:
            raise DataError(
                f"{stage}: {config.members} members of {config.length} states take "
                f"{size_text(size)} of disk, but only {size_text(free)} are free: ask for fewer "
                "members or shorter trajectories, or choose another directory"
            )


def _with_statistics(spec: SystemSpec) -> SystemSpec:
    """A spec with some mean and std, where these come from data that are not there yet."""
    count = len(spec.variables)
    return attrs.evolve(spec, mean=spec.mean or count * (0.0,), std=spec.std or count * (1.0,))
