"""The model that comes with sda-lorenz."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

import sda_core as sda
from sda_core.config import unstructure
from sda_core.evaluation.scores import evaluate_ensemble
from sda_core.experiment import Run
from sda_core.method import ParticleFilter
from sda_core.model import TrainedModel
from sda_core.stages import make_problem
from sda_lorenz import NoisyLorenz63

SCENARIOS = {
    "LO": ["observation.every=8", "observation.std=0.05"],
    "HI": ["observation.every=1", "observation.std=0.25"],
    # Of other kinds than what settings were chosen by.
    "two variables": ["observation.variables=['x', 'z']", "observation.every=16"],
    "size": ['observation={name="function", target="torch:abs", std=0.5}'],
    "outliers": [
        "observation.std=none",
        'observation.noise={name="student-t", scale=0.1, dof=3.0}',
    ],
}
MODELS = {"lorenz63": "lorenz63-wide", "lorenz63-forecast": "lorenz63-forecast"}


@pytest.mark.parametrize("name", MODELS)
def test_it_is_what_its_preset_makes(name: str) -> None:
    preset = sda.load_experiment(MODELS[name])
    model = TrainedModel.load(f"sda_lorenz:models/{name}")
    assert unstructure(model.kernel) == unstructure(preset.kernel)
    assert unstructure(model.schedule) == unstructure(preset.schedule)
    assert unstructure(model.config) == unstructure(preset.model)
    assert model.provenance["system"] == unstructure(preset.system)
    assert model.provenance["train"] == unstructure(preset.train)
    data, train = preset.data, preset.train
    windows = data.split_sizes["train"] * train.windows_per_trajectory
    assert model.provenance["steps"] == train.epochs * -(-windows // train.batch_size)


def test_it_is_used_without_training(tmp_path: Path) -> None:
    changes = ["method.particles=1024", "assimilate.members=2"]
    experiment = sda.load_experiment("lorenz63-pretrained", changes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = sda.assimilate(experiment, tmp_path, progress=False)
    assert x.shape == (2, 65, 3)
    assert not (tmp_path / "model").exists()


def test_it_is_used_in_python() -> None:
    observation = sda.Select(variables=["x"], every=8, std=0.5)
    problem = sda.twin_experiment(NoisyLorenz63(), observation, length=17, seed=0)
    method = sda.BlockSMC(sda.load_model("lorenz63-forecast"), particles=512, forecast=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        posterior = method.assimilate(problem, members=16, seed=0, progress=False)
    assert posterior.sizes == {"member": 16, "time": 17, "variable": 3}
    error = posterior.mean("member").values - problem.truth.numpy()
    assert float((error**2).mean() ** 0.5) < 3


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_claimed_numbers(scenario: str, tmp_path: Path) -> None:
    ours, filters = [], []
    for number in (0, 1):
        changes = [*SCENARIOS[scenario], f"assimilate.trajectory={number}"]
        experiment = sda.load_experiment("lorenz63-pretrained", changes)
        x = sda.assimilate(experiment, tmp_path, progress=False)
        problem = make_problem(Run(experiment, tmp_path))
        reference, again = (ParticleFilter().draw(problem, len(x), seed) for seed in (1, 2))
        ours.append(evaluate_ensemble(problem, x, reference))
        filters.append(evaluate_ensemble(problem, again, reference))

    def mean(scores: list[dict[str, float]], name: str) -> float:
        return float(np.mean([s[name] for s in scores]))

    # The exact one is 81.7; a few ancestors of early states move the filter's own by 3.
    assert abs(mean(ours, "log_prior") - mean(filters, "log_prior")) < 6
    assert abs(mean(ours, "log_likelihood") - mean(filters, "log_likelihood")) < 1
    assert abs(mean(ours, "coverage_90") - mean(filters, "coverage_90")) < 0.1
    assert mean(ours, "wasserstein1") < 1.2 * mean(filters, "wasserstein1")
