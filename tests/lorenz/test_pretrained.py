"""The model that comes with sda-lorenz."""

from __future__ import annotations

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

SCENARIOS = {
    "LO": ["observation.every=8", "observation.std=0.05"],
    "HI": ["observation.every=1", "observation.std=0.25"],
}


def test_it_is_what_its_preset_makes() -> None:
    preset = sda.load_experiment("lorenz63-wide")
    model = TrainedModel.load("sda_lorenz:models/lorenz63")
    assert unstructure(model.kernel) == unstructure(preset.kernel)
    assert unstructure(model.schedule) == unstructure(preset.schedule)
    assert unstructure(model.config) == unstructure(preset.model)
    assert model.provenance["system"] == unstructure(preset.system)
    assert model.provenance["train"] == unstructure(preset.train)
    assert model.provenance["steps"] == 37440


def test_it_is_used_without_training(tmp_path: Path) -> None:
    small = ["method.particles=4", "method.calibration=4", "sampler.steps=3"]
    experiment = sda.load_experiment("lorenz63-pretrained", [*small, "assimilate.members=2"])
    assert sda.assimilate(experiment, tmp_path, progress=False).shape == (2, 65, 3)
    assert not (tmp_path / "model").exists()


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

    assert 76 < mean(ours, "log_prior") < 92  # exact: 81.7
    assert abs(mean(ours, "log_likelihood") - mean(filters, "log_likelihood")) < 1.5
    assert mean(ours, "wasserstein1") < 1.9 * mean(filters, "wasserstein1")
