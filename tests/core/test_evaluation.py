"""What is made of a posterior: scores, comparisons and the report, on a small system of a plane."""

from __future__ import annotations

import json
import math
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor

import sda_core as sda
from sda_core import stages
from sda_core.evaluation.report import score_rows
from sda_core.evaluation.scores import evaluate_ensemble
from sda_core.experiment import Run
from sda_core.figures import Picture
from sda_core.method import Problem
from sda_core.observation import Select
from sda_core.plugins import Component, PluginManager, hookimpl
from sda_core.system import Axis, SDESystem, SystemSpec


@attrs.frozen(kw_only=True)
class Plate(SDESystem):
    """Noisy relaxation of two variables on a plane of 6 x 4 points."""

    block_size = 4
    substeps = 1

    @property
    def spec(self) -> SystemSpec:
        axes = (Axis("lon", np.arange(6.0), "m"), Axis("lat", np.arange(4.0), "m"))
        return SystemSpec(variables=("T [K]", "q"), axes=axes, time_step=0.5, time_units="s")

    def prior(self, shape, generator: Generator) -> Tensor:
        return torch.randn(*shape, 2, 6, 4, generator=generator)

    def drift(self, x: Tensor) -> Tensor:
        return -x

    def diffusion(self, x: Tensor) -> float:
        return 0.5


class Plugin:
    """Registers the plate; its scores and pictures depend on ``pictures``."""

    sda_interface = 1
    pictures = False

    @hookimpl
    def sda_register_components(self):
        return [Component("system", "plate", f"{__name__}:Plate", "A plate")]

    @hookimpl
    def sda_scores(self, problem, ensemble):
        return {"warmest_point": float(ensemble[:, :, 0].max())}

    @hookimpl
    def sda_figures(self, run, problem, ensembles):
        if not self.pictures:
            return []
        caption = ", ".join(ensembles)
        return [Picture(name="own", caption=f"of {caption}", figure=Figure())]


def _problem(std: float | tuple[float, ...] = 0.5) -> Problem:
    system, length = Plate(), 3
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(length, 2, 6, 4, generator=generator)
    model = Select(variables=("T",), std=std).bind(system.spec, length)
    # A fair coin's noise: its root mean square is the std.
    coin = 2.0 * torch.randint(2, model.shape, generator=generator) - 1
    return Problem(
        system=system,
        observation=model,
        y=model.operator(truth.double()) + model.std * coin,
        truth=truth,
    )


@pytest.mark.parametrize("std", [0.5, (0.1, 1.0, 10.0, 100.0)])
def test_the_truth_has_residuals_of_the_observation_std(std) -> None:
    problem = _problem(std)
    assert problem.truth is not None
    scores = evaluate_ensemble(problem, problem.truth.expand(5, 3, 2, 6, 4))
    assert scores["residual_std"] == pytest.approx(1)
    assert scores["rmse"] == scores["crps"] == 0
    assert not {"spread", "spread_skill", "coverage_90"} & set(scores)


def test_scores_of_a_shifted_ensemble() -> None:
    problem = _problem()
    assert problem.truth is not None
    moves = torch.tensor([1.0, 3.0, 5.0]).reshape(3, 1, 1, 1, 1)
    scores = evaluate_ensemble(problem, problem.truth + moves)
    # Of (A(x) - y) / std = 2 move - coin.
    coin = (problem.y - problem.observation.operator(problem.truth.double())) / 0.5
    squares = [float((2 * move - coin).square().mean()) for move in (1, 3, 5)]
    assert scores["residual_std"] == pytest.approx(math.sqrt(sum(squares) / 3))
    assert scores["rmse"] == pytest.approx(3)
    assert scores["spread"] == pytest.approx(math.sqrt(4 * 4 / 3))
    assert scores["spread_skill"] == pytest.approx(scores["spread"] / 3)
    expected = problem.observation.log_prob(problem.y, (problem.truth + moves).double()).mean()
    assert scores["log_likelihood"] == pytest.approx(float(expected))


def test_scores_of_a_mean_without_error() -> None:
    problem = _problem()
    assert problem.truth is not None
    away = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1, 1)
    truth = problem.truth.round()
    scores = evaluate_ensemble(attrs.evolve(problem, truth=truth), truth + away)
    assert scores["rmse"] == 0
    assert "spread" in scores
    assert "spread_skill" not in scores


def test_rows_are_the_known_scores_in_order_and_then_those_of_plugins() -> None:
    rows = score_rows({"posterior": {"own_score": 1.0, "rmse": 2.0}, "baseline": {"crps": 3.0}})
    assert rows == [
        ("RMSE of the mean", ["2", ""]),
        ("CRPS", ["", "3"]),
        ("own score", ["1", ""]),
    ]


@pytest.fixture
def plugin() -> Plugin:
    return Plugin()


@pytest.fixture
def run(plugin: Plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run of the plate, assimilated."""
    manager = PluginManager(plugins={"plate": plugin})
    monkeypatch.setattr("sda_core.experiment.run.default_manager", lambda: manager)
    path = tmp_path / "plate.toml"
    path.write_text("""\
system.name = "plate"
data = { trajectories = 20, length = 6, burn_in = 0 }
observation = { name = "select", variables = ["T"], every = 2, std = 2.0 }
method = { name = "particle-filter", particles = 64, burn_in = 2 }
assimilate = { members = 8, length = 5 }
[evaluate]
baseline = { name = "particle-filter", particles = 8, burn_in = 2 }
reference = { name = "particle-filter", particles = 128, burn_in = 2 }
""")
    experiment = sda.load_experiment(path, manager=manager)
    directory = tmp_path / "run"
    stages.simulate(experiment, directory, progress=False)
    stages.assimilate(experiment, directory, progress=False)
    return Run(experiment, directory, manager)


def test_evaluate_compares_with_baseline_and_reference(run: Run) -> None:
    scores = stages.evaluate(run.experiment, run.directory, progress=False)
    assert scores == json.loads((run.directory / "metrics.json").read_text())
    assert list(scores) == ["posterior", "baseline", "reference"]
    for name, values in scores.items():
        assert {"residual_std", "rmse", "wasserstein1", "warmest_point"} <= set(values), name
    assert scores["posterior"]["warmest_point"] != scores["baseline"]["warmest_point"]
    assert (run.directory / "baseline.nc").is_file()
    page = (run.directory / "report.html").read_text()
    assert "<th>posterior</th><th>particle-filter</th><th>reference</th>" in page
    assert "warmest point" in page
    for name in ("T-panels.png", "T-animation.gif", "rank-histogram.png", "spread-skill.png"):
        assert (run.directory / "figures" / name).stat().st_size > 5_000
        assert f'src="figures/{name}"' in page


def test_pictures_of_plugins_come_first_and_in_place_of_the_plain_ones(
    run: Run, plugin: Plugin
) -> None:
    plugin.pictures = True
    stages.evaluate(run.experiment, run.directory, progress=False)
    page = (run.directory / "report.html").read_text()
    assert "of posterior, baseline, reference" in page
    assert 0 < page.index('src="figures/own.png"') < page.index('src="figures/posterior.png"')
    assert not (run.directory / "figures" / "T-panels.png").exists()
