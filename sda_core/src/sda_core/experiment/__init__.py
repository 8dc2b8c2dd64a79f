"""An experiment: its configuration, and the directory that it is run in."""

from sda_core.experiment.configuration import (
    AssimilateConfig,
    EvaluateConfig,
    Experiment,
    SampleConfig,
    load_experiment,
)
from sda_core.experiment.run import Run
from sda_core.experiment.stage import STAGES, Stage

__all__ = [
    "STAGES",
    "AssimilateConfig",
    "EvaluateConfig",
    "Experiment",
    "Run",
    "SampleConfig",
    "Stage",
    "load_experiment",
]
