"""All stages, one after another."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from sda_core.experiment import STAGES, Experiment, Run
from sda_core.io.progress import ProgressOption


def run(
    experiment: Experiment, directory: str | Path, *, progress: ProgressOption = True
) -> dict[str, dict[str, float]]:
    """Do all stages that have not been done with the present configuration.

    Args:
        experiment: The experiment.
        directory: The run directory.
        progress: What to show.

    Returns:
        The scores, as of :func:`evaluate`.
    """
    record = Run(experiment, directory, progress=progress)
    experiment.require("method", "a run")
    for stage in STAGES.values():
        if stage.needed(experiment) and not record.is_done(stage.name):
            stage.function(experiment, directory, progress=progress)
    scores: dict[str, Any] = json.loads((record.directory / "metrics.json").read_text())
    # What is not finite is null in the file.
    return {
        ensemble: {name: math.nan if v is None else v for name, v in values.items()}
        for ensemble, values in scores.items()
    }
