"""Scores and pictures of flows, and the hooks that give them."""

from __future__ import annotations

import math

import attrs
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sda_core.method import Problem
from sda_core.observation import Coarsen, Observation, Region, Select, Sensors
from sda_core.system import Axis, System, SystemSpec
from sda_kolmogorov import plugin
from sda_kolmogorov.figures import observed_vorticity, spectra_figure
from sda_kolmogorov.kolmogorov import KolmogorovFlow
from sda_kolmogorov.observation import Saturation
from sda_kolmogorov.physics import energy_spectrum, velocity_from_vorticity, vorticity
from sda_kolmogorov.scores import kolmogorov_scores

N, LENGTH = 16, 4


def _flows(*shape: int, seed: int = 0) -> Tensor:
    """Random flows without divergence and with energy at all wavenumbers, (..., 2, N, N)."""
    w = torch.randn(*shape, N, N, generator=torch.Generator().manual_seed(seed))
    return velocity_from_vorticity(w.double())


def _problem(observation: Observation, truth: Tensor) -> Problem:
    system = KolmogorovFlow(size=N, coarsening=1)
    model = observation.bind(system.spec, len(truth))
    return Problem(system=system, observation=model, y=model.operator(truth), truth=truth)


def test_the_truth_has_perfect_scores() -> None:
    truth = _flows(LENGTH)
    scores = kolmogorov_scores(_problem(Select(std=1), truth), truth.expand(3, -1, -1, -1, -1))
    assert scores["rmse_vorticity"] == pytest.approx(0, abs=1e-12)
    assert scores["divergence_rms"] == pytest.approx(0, abs=1e-12)
    assert scores["kinetic_energy_ratio"] == pytest.approx(1)
    assert scores["spectrum_error"] == pytest.approx(0, abs=1e-12)


def test_a_flow_three_times_as_fast() -> None:
    truth = _flows(LENGTH)
    scores = kolmogorov_scores(_problem(Select(std=1), truth), torch.stack((3 * truth, 3 * truth)))
    assert scores["kinetic_energy_ratio"] == pytest.approx(9)
    assert scores["spectrum_error"] == pytest.approx(math.log10(9))
    rms = float(vorticity(truth).square().mean().sqrt())
    assert scores["rmse_vorticity"] == pytest.approx(2 * rms)


def test_the_spectrum_error_does_not_cancel_between_members() -> None:
    truth = _flows(LENGTH)
    slow_and_fast = torch.stack((truth / 10, 10 * truth))
    scores = kolmogorov_scores(_problem(Select(std=1), truth), slow_and_fast)
    assert scores["spectrum_error"] == pytest.approx(2)


def test_divergence_is_relative_to_vorticity() -> None:
    x = torch.from_numpy(KolmogorovFlow(size=N).spec.axes[0].values)
    u = 3 * torch.sin(x)[:, None] + torch.sin(x)  # div = 3 cos x, w = - cos y
    flow = torch.stack((u, torch.zeros_like(u))).expand(LENGTH, 2, N, N)
    problem = attrs.evolve(_problem(Select(std=1), flow), truth=None)
    assert kolmogorov_scores(problem, flow[None]) == {"divergence_rms": pytest.approx(3)}


def test_coarse_velocities_are_shown_as_their_vorticity() -> None:
    truth = _flows(LENGTH)
    problem = _problem(Coarsen(factor=2, every=2, std=1), truth)
    maps = observed_vorticity(problem, truth)
    assert maps is not None
    assert maps.label == "vorticity"
    assert maps.images[1] is maps.images[3] is None
    np.testing.assert_allclose(maps.images[2], vorticity(problem.y[1]))


def test_velocities_in_a_part_are_shown_as_vorticity_where_neighbours_are_known() -> None:
    truth = _flows(LENGTH)
    box = {"grid_x": (0.0, 3.1), "grid_y": (1.0, 4.0)}
    maps = observed_vorticity(_problem(Region(box=box, std=1), truth), truth)
    assert maps is not None
    assert maps.label == "vorticity"
    image = maps.images[1]
    assert image is not None
    axes = [axis.values for axis in KolmogorovFlow(size=N).spec.axes]
    inside = [(low <= a) & (a <= high) for a, (low, high) in zip(axes, box.values(), strict=True)]
    inner = [i & np.roll(i, 1) & np.roll(i, -1) for i in inside]
    known = inner[0][:, None] & inner[1]
    assert known.any()
    np.testing.assert_array_equal(np.isfinite(image), known)
    expected = vorticity(truth[1], "finite-difference").numpy()
    np.testing.assert_allclose(image[known], expected[known])


def test_other_observations_are_shown_as_they_are() -> None:
    truth = _flows(LENGTH)
    problem = _problem(Saturation(std=1), truth)
    saturation = observed_vorticity(problem, truth)
    assert saturation is not None
    assert saturation.label == "observed value"
    np.testing.assert_allclose(saturation.images[0], problem.y[0, 0])
    sensors = observed_vorticity(_problem(Sensors(count=5, std=1), truth), truth)
    assert sensors is not None
    assert sensors.label == "u"
    assert np.isfinite(sensors.images[0]).sum() == 5


def test_spectra() -> None:
    ensemble, truth = _flows(6, LENGTH), _flows(LENGTH, seed=1)
    figure = spectra_figure({"posterior": ensemble, "baseline": truth[None]}, truth)
    (axis,) = figure.axes
    lines = {line.get_label(): line.get_xydata().T for line in axis.lines}
    k, energy = energy_spectrum(truth)
    np.testing.assert_allclose(lines["truth"][0], k[1 : N // 2 + 1])
    np.testing.assert_allclose(lines["truth"][1], energy.mean(0)[1 : N // 2 + 1])
    np.testing.assert_allclose(lines["baseline"], lines["truth"])
    middle = energy_spectrum(ensemble)[1].mean(1).quantile(0.5, dim=0)[1 : N // 2 + 1]
    np.testing.assert_allclose(lines["posterior"][1], middle)
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")


def test_hooks_give_scores_and_pictures_of_flows() -> None:
    truth = _flows(LENGTH)
    problem = _problem(Coarsen(factor=2, std=1), truth)
    ensemble = _flows(2, LENGTH, seed=1)
    assert plugin.sda_scores(problem, ensemble) == kolmogorov_scores(problem, ensemble)
    pictures = plugin.sda_figures(problem, {"posterior": ensemble})
    names = ["vorticity-panels", "vorticity-animation", "vorticity-member", "spectra"]
    assert [picture.name for picture in pictures] == names
    strip = pictures[2].figure
    assert isinstance(strip, Figure)
    maps = [axis for axis in strip.axes if axis.images]
    assert len(maps) == LENGTH
    np.testing.assert_allclose(maps[1].images[0].get_array().T, vorticity(ensemble[0, 1]))
    pictures[1].figure._draw_was_started = True  # or matplotlib warns that it was not saved


@attrs.frozen
class OtherFlow(System):
    """A system of someone else with the same variables and axes."""

    @property
    def spec(self) -> SystemSpec:
        axes = tuple(Axis(name, np.arange(4.0)) for name in ("grid_x", "grid_y"))
        return SystemSpec(variables=("u", "v"), axes=axes, time_step=1.0)

    prior = transition = None  # type: ignore[assignment]


def test_hooks_give_nothing_for_other_systems() -> None:
    system = OtherFlow()
    model = Select(std=1).bind(system.spec, LENGTH)
    problem = Problem(system=system, observation=model, y=torch.zeros(model.shape))
    ensemble = torch.zeros(2, LENGTH, 2, 4, 4)
    assert plugin.sda_scores(problem, ensemble) == {}
    assert plugin.sda_figures(problem, {"posterior": ensemble}) == []
