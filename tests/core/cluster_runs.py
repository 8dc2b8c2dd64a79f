"""Small runs for tests of clusters."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sda_core.data import TrajectoryStore, split_path
from sda_core.denoiser import Denoiser
from sda_core.experiment import Experiment, Run, load_experiment
from sda_core.model import TrainedModel


class Diverging(Denoiser):
    """Loses each member whose noise begins above 1."""

    def __init__(self, prior: Denoiser) -> None:
        super().__init__(prior.schedule)
        self.prior, self.lost = prior, torch.zeros(1, dtype=torch.bool)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        if t == 1:  # a new batch: x_t is its noise times sigma(1)
            self.lost = x_t[:, 0, 0] > self.schedule.sigma(t)
        return torch.where(self.lost[:, None, None], torch.nan, self.prior(x_t, t))


#: A small experiment, whose kernel need not be trained.
SETTINGS = (
    "data={trajectories=300, length=21, burn_in=4, fractions=[0.6, 0.2, 0.2]}",
    "kernel={name='mlp', width=16, depth=1}",
    "model={window=9, stride=4, parameterization='edm'}",
    "sampler.steps=4",
    "assimilate={members=6, length=21}",
)


def experiment(*settings: str) -> Experiment:
    """A small experiment."""
    return load_experiment("lorenz63-quick", [*SETTINGS, *(settings or ["method.batch_size=2"])])


def add_model(experiment: Experiment, directory: Path) -> None:
    """Give a run that has data a kernel with random weights."""
    run = Run(experiment, directory, progress=False)
    run.write_config()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        spec = TrajectoryStore(split_path(run.data, "train")).spec
        parts = experiment.kernel, experiment.schedule, experiment.model, spec
        TrainedModel.create(*parts).save(run.model)
