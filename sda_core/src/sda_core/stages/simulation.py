"""The stage that makes the data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from sda_core.cluster import Cluster
from sda_core.config import unstructure
from sda_core.data import DataConfig, generate
from sda_core.data.generate import preview as preview_data
from sda_core.data.preview import Preview
from sda_core.experiment import Experiment, Run
from sda_core.io.progress import ProgressOption


def simulate(
    experiment: Experiment,
    directory: str | Path,
    *,
    progress: ProgressOption = True,
    workers: int | None = None,
    cluster: Cluster | None = None,
) -> Path:
    """Simulate the data set of an experiment.

    Args:
        experiment: The experiment.
        directory: The run directory.
        progress: What to show.
        workers: Number of blocks of trajectories simulated at once, if not ``data.workers``. The
            numbers do not depend on it.
        cluster: Where, if not on the experiment's cluster; without one, on this machine.

    Returns:
        The directory of the data set, with ``train.h5``, ``valid.h5`` and ``test.h5``.

    Raises:
        ClusterError: The cluster cannot be reached, or lost a block for good; what is done is kept.
        ConfigError: There are no workers.
        DataError: The directory holds a data set made with another configuration.
        SimulationError: States are not finite, however often they are drawn.
    """
    run = Run(experiment, directory, progress=progress)
    config = _data_config(experiment, workers)
    if cluster is None and (workers is not None or config.workers > 1):
        cluster = experiment.cluster
    with run.stage("simulate"):
        generate(
            experiment.system,
            run.data,
            config,
            experiment.seed,
            system_config=unstructure(experiment.system, manager=run.manager),
            versions=run.versions(),
            progress=progress,
            cluster=cluster,
        )
    return run.data


def preview(
    experiment: Experiment, directory: str | Path, *, workers: int | None = None
) -> Preview:
    """Say how much data :func:`simulate` would make, and about how long it would take.

    Args:
        experiment: The experiment.
        directory: The run directory, in which nothing is written.
        workers: Number of workers, if not ``data.workers``.

    Returns:
        Size and time of what is missing.

    Raises:
        DataError: The directory holds a data set made with another configuration.
    """
    run = Run(experiment, directory)
    return preview_data(
        experiment.system,
        run.data,
        _data_config(experiment, workers),
        experiment.seed,
        system_config=unstructure(experiment.system, manager=run.manager),
        versions=run.versions(),
    )


def _data_config(experiment: Experiment, workers: int | None) -> DataConfig:
    config: Any = experiment.data  # to mypy components are no attrs classes
    return config if workers is None else attrs.evolve(config, workers=workers)
