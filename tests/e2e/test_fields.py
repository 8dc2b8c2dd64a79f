"""The main job for a turbulent flow: small, and the presets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image

import sda_core as sda
from sda_core.kernel import WindowShape
from sda_core.model import TrainedModel
from sda_core.stages import assimilate, evaluate

SMALL = [
    "system.size=16",
    "system.coarsening=1",
    "system.block_size=6",
    "data.trajectories=12",
    "data.length=16",
    "data.burn_in=4",
    "data.workers=1",
    "data.fractions=[0.5, 0.25, 0.25]",
    "kernel.channels=[8, 16]",
    "kernel.blocks=[1, 1]",
    "model.window=5",
    "model.stride=2",
    "train.epochs=3",
    "train.batch_size=4",
    "sampler.steps=4",
    "guidance.gamma=1.0",
    "sample.members=2",
    "sample.length=9",
    "assimilate.members=8",
    "assimilate.length=9",
]
SENSORS = 'observation={name="sensors", fraction=0.1, std=0.1}'
SATURATION = (
    'observation={name="compose", std=0.05, parts=[{name="coarsen", factor=2, every=3}, '
    '{name="saturation"}]}'
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("flow")
    sda.run(sda.load_experiment("kolmogorov-small", SMALL), directory, progress=False)
    return directory


def test_everything_is_there_in_physical_units(finished) -> None:
    posterior = xr.open_dataarray(finished / "posterior.nc")
    assert posterior.dims == ("member", "time", "variable", "grid_x", "grid_y")
    assert posterior.shape == (8, 9, 2, 16, 16)
    np.testing.assert_allclose(posterior.grid_x, (np.arange(16) + 0.5) * 2 * np.pi / 16)
    np.testing.assert_allclose(posterior.time, np.arange(9) * 0.2)
    scores = json.loads((finished / "metrics.json").read_text())
    assert set(scores) == {"posterior", "baseline", "model"}
    flow = {"rmse_vorticity", "divergence_rms", "spectrum_error", "kinetic_energy_ratio"}
    assert flow | {"residual_std", "rmse"} <= set(scores["baseline"])
    assert {"coverage_90", "spread_skill"} <= set(scores["posterior"]) - set(scores["baseline"])
    figures = {path.name for path in (finished / "figures").iterdir()}
    assert {"vorticity-panels.png", "spectra.png", "rank-histogram.png"} <= figures
    with Image.open(finished / "figures" / "vorticity-animation.gif") as animation:
        assert animation.n_frames == 9
    report = (finished / "report.html").read_text()
    assert all(name in report for name in figures)
    assert "interpolation" in report


def test_versions_of_the_solver_are_recorded(finished) -> None:
    created_by = json.loads(xr.open_dataset(finished / "data" / "train.h5").attrs["created_by"])
    provenance = json.loads((finished / "provenance.json").read_text())
    for versions in (created_by, provenance["versions"]):
        assert {"jax", "jaxlib", "jax-cfd", "sda-kolmogorov"} <= set(versions)


def test_the_model_sees_the_forcing(finished) -> None:
    model = TrainedModel.load(finished / "model")
    y = (torch.arange(16) + 0.5) * 2 * torch.pi / 16
    torch.testing.assert_close(model.denoiser.context, torch.sin(4 * y).expand(1, 16, 16))


@pytest.mark.slow
@pytest.mark.parametrize("observation", [SENSORS, SATURATION], ids=["sensors", "saturation"])
def test_another_observation_needs_no_training(finished, tmp_path, observation) -> None:
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    model = (directory / "model" / "model.safetensors").stat().st_mtime_ns
    experiment = sda.load_experiment(directory, [observation])
    sda.run(experiment, directory, progress=False)
    assert (directory / "model" / "model.safetensors").stat().st_mtime_ns == model
    assert "observation" in (directory / "report.html").read_text()


@pytest.mark.slow
def test_a_memory_budget_changes_no_result(finished, tmp_path) -> None:
    ensembles = []
    for name, changes in (("all", []), ("few", ["method.batch_size=3", "model.chunk_size=2"])):
        directory = tmp_path / name
        shutil.copytree(finished, directory)
        experiment = sda.load_experiment(directory, changes)
        ensembles.append(assimilate(experiment, directory, progress=False))
        evaluate(experiment, directory, progress=False)
    torch.testing.assert_close(*ensembles, rtol=1e-3, atol=1e-4)


def test_the_paper_s_settings() -> None:
    experiment = sda.load_experiment("kolmogorov-rozet2023")
    sizes = experiment.data.split_sizes
    assert sizes == {"train": 819, "valid": 102, "test": 103}
    steps = experiment.train.epochs * -(-sizes["train"] // experiment.train.batch_size)
    assert steps == 106_496
    system = experiment.system
    assert (system.size * system.coarsening, system.spec.state_shape) == (256, (2, 64, 64))
    with torch.device("meta"):
        network = experiment.kernel.build(
            WindowShape(window=5, variables=2, grid=(64, 64), context=1)
        )
    assert sum(p.numel() for p in network.parameters()) == 22_874_922


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "residual"),
    [
        ([], 1.1),
        ([SENSORS.replace("0.1, std", "0.02, std")], 1.1),
        # See docs/design/experiments.md for why it is not as close.
        ([SATURATION, "sampler.steps=256", "guidance.gamma=0.03"], 1.4),
    ],
    ids=["coarse", "sensors", "saturation"],
)
def test_kolmogorov_small_beats_interpolation(changes, residual, tmp_path_factory) -> None:
    """Half an hour for the first, a quarter for the others together, on 2 cores."""
    directory = tmp_path_factory.getbasetemp() / "kolmogorov-small"
    scores = sda.run(sda.load_experiment("kolmogorov-small", changes), directory, progress=False)
    posterior, baseline = scores["posterior"], scores["baseline"]
    assert posterior["rmse"] < 0.6 * baseline["rmse"]
    assert posterior["rmse_vorticity"] < 0.8 * baseline["rmse_vorticity"]
    assert 0.75 < posterior["residual_std"] < residual
    assert 0.8 < posterior["coverage_90"] < 0.97
