"""A model that forecasts, from its training to a posterior by block SMC."""

from __future__ import annotations

from pathlib import Path

import pytest

import sda_core as sda
from sda_core.errors import SDAError

OVERRIDES = [
    "data.trajectories=32",
    "data.length=64",
    "data.burn_in=64",
    'kernel={name="mlp", width=16, depth=1}',
    'model={window=4, stride=2, past=2, levels=["joint", "forecast", "infill"]}',
    "model.parameterization=edm",
    "train.epochs=2",
    "train.batch_size=16",
    "train.ema=none",
    'sampler={name="dpm-solver++", steps=4}',
    "guidance=none",
    'method={name="block-smc", particles=64}',
    "observation.every=2",
    "assimilate.members=4",
    "assimilate.length=9",
    "sample.members=2",
    "sample.length=9",
    "evaluate.reference=none",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, float]]]:
    directory = tmp_path_factory.mktemp("forecasts")
    experiment = sda.load_experiment("lorenz63-quick", OVERRIDES)
    return directory, sda.run(experiment, directory, progress=False)


@pytest.mark.filterwarnings("ignore::sda_core.errors.AssimilationWarning")
def test_from_training_to_scores(finished: tuple[Path, dict[str, dict[str, float]]]) -> None:
    directory, scores = finished
    assert {"rmse", "crps", "residual_std"} <= set(scores["posterior"])
    model = sda.load_model(directory)
    assert (model.denoiser.past, model.denoiser.block) == (2, 2)
    stages = sda.load_experiment(directory)
    assert stages.model.levels == ("joint", "forecast", "infill")


@pytest.mark.filterwarnings("ignore::sda_core.errors.AssimilationWarning")
def test_the_gaussian_forecast_alone(finished: tuple[Path, dict[str, dict[str, float]]]) -> None:
    directory, _ = finished
    changes = ["method.forecast=true", "method.particles=128"]
    x = sda.assimilate(sda.load_experiment(directory, changes), directory, progress=False)
    assert x.shape == (4, 9, 3)


def test_other_levels_are_another_model(finished: tuple[Path, dict[str, dict[str, float]]]) -> None:
    directory, _ = finished
    changed = sda.load_experiment(directory, ['model.levels=["joint", "forecast"]'])
    with pytest.raises(SDAError, match=r"model\.levels"):
        sda.assimilate(changed, directory, progress=False)
