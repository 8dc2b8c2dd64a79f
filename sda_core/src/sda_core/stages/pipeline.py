"""All stages, one after another."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sda_core.experiment import Experiment, Run
from sda_core.io.progress import ProgressOption
from sda_core.stages.assimilation import assimilate
from sda_core.stages.evaluation import evaluate
from sda_core.stages.sampling import sample
from sda_core.stages.simulation import simulate
from sda_core.stages.training import train


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
    needs_model = experiment.require("method", "a run").needs_model
    trains = needs_model and experiment.model.pretrained is None
    wanted: dict[str, tuple[Callable[..., object], bool]] = {
        "simulate": (simulate, trains or experiment.assimilate.observations is None),
        "train": (train, trains),
        "sample": (sample, needs_model and experiment.sample is not None),
        "assimilate": (assimilate, True),
        "evaluate": (evaluate, True),
    }
    for name, (function, needed) in wanted.items():
        if needed and not record.is_done(name):
            function(experiment, directory, progress=progress)
    scores: dict[str, Any] = json.loads((record.directory / "metrics.json").read_text())
    # What is not finite is null in the file.
    return {
        ensemble: {name: math.nan if v is None else v for name, v in values.items()}
        for ensemble, values in scores.items()
    }
