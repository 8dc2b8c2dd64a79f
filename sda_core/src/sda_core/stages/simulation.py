"""The stage that makes the data set."""

from __future__ import annotations

from pathlib import Path

from sda_core.config import unstructure
from sda_core.data import generate
from sda_core.data.generate import preview as preview_data
from sda_core.data.preview import Preview
from sda_core.experiment import Experiment
from sda_core.progress import ProgressOption
from sda_core.rundir import Run


def simulate(
    experiment: Experiment, directory: str | Path, *, progress: ProgressOption = True
) -> Path:
    """Simulate the data set of an experiment.

    Args:
        experiment: The experiment.
        directory: The run directory.
        progress: What to show.

    Returns:
        The directory of the data set, with ``train.h5``, ``valid.h5`` and ``test.h5``.

    Raises:
        DataError: The directory holds a data set made with another configuration.
        SimulationError: States are not finite, however often they are drawn.
    """
    run = Run(experiment, directory, progress=progress)
    with run.stage("simulate"):
        generate(
            experiment.system,
            run.data,
            experiment.data,
            experiment.seed,
            system_config=unstructure(experiment.system, manager=run.manager),
            versions=run.versions(),
            progress=progress,
        )
    return run.data


def preview(experiment: Experiment, directory: str | Path) -> Preview:
    """Say how much data :func:`simulate` would make, and about how long it would take.

    Args:
        experiment: The experiment.
        directory: The run directory, in which nothing is written.

    Returns:
        Size and time of what is missing.

    Raises:
        DataError: The directory holds a data set made with another configuration.
    """
    run = Run(experiment, directory)
    return preview_data(
        experiment.system,
        run.data,
        experiment.data,
        experiment.seed,
        system_config=unstructure(experiment.system, manager=run.manager),
        versions=run.versions(),
    )
