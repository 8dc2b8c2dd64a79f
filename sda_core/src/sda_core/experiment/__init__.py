"""An experiment: its configuration, and the directory that it is run in."""

from sda_core.experiment.configuration import (
    AssimilateConfig,
    EvaluateConfig,
    Experiment,
    SampleConfig,
    load_experiment,
)
from sda_core.experiment.run import Run

__all__ = [
    "AssimilateConfig",
    "EvaluateConfig",
    "Experiment",
    "Run",
    "SampleConfig",
    "load_experiment",
]
