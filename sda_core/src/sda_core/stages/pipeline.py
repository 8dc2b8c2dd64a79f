"""All stages, one after another."""

from __future__ import annotations

import math
from pathlib import Path

from sda_core.errors import DataError
from sda_core.experiment import Experiment, Run
from sda_core.io.files import read_json
from sda_core.io.progress import ProgressOption, announce
from sda_core.stages.preflight import check_run


def run(
    experiment: Experiment, directory: str | Path, *, progress: ProgressOption = True
) -> dict[str, dict[str, float]]:
    """Do all stages that have not been done with the present configuration.

    A stage whose result is damaged is done again, which gives the same numbers. Not so the training
    if no checkpoint is left, from which the model is written again: it may have taken days.

    Args:
        experiment: The experiment.
        directory: The run directory.
        progress: What to show.

    Returns:
        The scores, as of :func:`evaluate`.

    Raises:
        DataError: The model is damaged, and there is no checkpoint.
        SDAError: A stage cannot be done; what can be known of it beforehand is said before the
            first one.
    """
    record = Run(experiment, directory, progress=progress)
    experiment.require("method", "a run")
    for stage in check_run(record):
        if stage.exists_in(record.directory) and (damaged := record.damaged(stage.name)):
            if stage.name == "train" and record.checkpoints.newest() is None:
                record.check_whole(stage.name)
            announce(progress, f"{', '.join(damaged)} is damaged: {stage.name} is done again")
        stage.function(experiment, directory, progress=progress)
    return _read_scores(record.directory / "metrics.json")


def _read_scores(path: Path) -> dict[str, dict[str, float]]:
    """The scores in a file, in which what is not finite is null."""
    try:
        scores = read_json(path)
        for values in scores.values():
            if not isinstance(values, dict) or not all(map(_is_score, values.values())):
                raise ValueError("it does not hold scores by name for each ensemble")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): run `sda evaluate` again") from error
    return {
        ensemble: {name: math.nan if v is None else v for name, v in values.items()}
        for ensemble, values in scores.items()
    }


def _is_score(value: object) -> bool:
    return value is None or isinstance(value, int | float)
