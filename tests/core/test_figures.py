"""Figures: what is drawn, where, and in which colours."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Generator, Tensor

from sda_core.figures import (
    Maps,
    Picture,
    Plane,
    animation,
    ensemble_maps,
    ensemble_panels,
    field_strip,
    is_variable,
    observed_images,
    observed_maps,
    observed_places,
    posterior_series,
    rank_histogram_figure,
    shown_times,
    spread_skill_figure,
    variable_pictures,
)
from sda_core.method import Problem
from sda_core.observation import Coarsen, Concatenate, Function, Index, Observation, Select, Sensors
from sda_core.system import Axis, System, SystemSpec

PLANE = Plane(extent=(0.0, 8.0, 0.0, 4.0))


@attrs.frozen(kw_only=True)
class Plate(System):
    """Two variables on a plane of 8 x 4 points; it only says what it is."""

    @property
    def spec(self) -> SystemSpec:
        axes = (Axis("lon", np.arange(8) + 0.5, "deg"), Axis("lat", np.arange(4) + 0.5))
        return SystemSpec(
            variables=("T [K]", "q"),
            axes=axes,
            time_step=0.5,
            time_units="s",
            std=(2, 1),
            mean=(0, 0),
        )

    def prior(self, shape, generator: Generator) -> Tensor:
        raise NotImplementedError

    def transition(self, x: Tensor, generator: Generator) -> Tensor:
        raise NotImplementedError


def _randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _problem(observation: Observation, length: int = 6) -> Problem:
    model = observation.bind(Plate().spec, length)
    truth = _randn(length, 2, 8, 4)
    return Problem(system=Plate(), observation=model, y=model.operator(truth.double()), truth=truth)


def _x(problem: Problem) -> Tensor:
    assert problem.truth is not None
    return problem.truth


@pytest.mark.parametrize("first", [1, 2, 4])
def test_coarse_images_are_images(first: int) -> None:
    problem = _problem(Coarsen(factor=first, every=2, offset=1, std=0.1))
    images = observed_images(problem, _x(problem))
    assert images is not None
    assert [image is None for image in images] == [True, False] * 3
    for i, image in enumerate(images):
        if image is not None:
            torch.testing.assert_close(image, problem.y[i // 2])


def nonlinear(x: Tensor) -> Tensor:
    return x / (1 + x.abs())


def west(x: Tensor) -> Tensor:
    return x[..., :4, :]


def slope(x: Tensor) -> Tensor:
    return x[..., 1:, :] - x[..., :-1, :]


def flipped(x: Tensor) -> Tensor:
    return x.flip(-1)


@pytest.mark.parametrize("target", [west, slope, flipped])
def test_parts_and_flips_of_the_plane_are_no_images_of_it(target) -> None:
    problem = _problem(Function(target=target, std=1))
    assert observed_images(problem, _x(problem)) is None


def test_nonlinear_images_are_images_and_sensors_are_not() -> None:
    problem = _problem(Function(target=nonlinear, std=1))
    assert observed_images(problem, _x(problem)) is not None
    problem = _problem(Sensors(count=5, std=1))
    assert observed_images(problem, _x(problem)) is None


def test_values_are_put_back_to_their_places() -> None:
    entries = [(0, 0, 2, 1), (0, 1, 2, 1), (3, 0, 7, 3)]
    problem = _problem(Index(entries=entries, std=1))
    places = observed_places(problem, _x(problem))
    assert places is not None
    assert (~places.isnan()).sum() == 3
    for entry, y in zip(entries, problem.y, strict=True):
        assert places[entry] == pytest.approx(float(y))


def test_a_mean_is_at_all_places_that_it_is_of_and_overlaps_are_averaged() -> None:
    coarse = Coarsen(factor=4, std=1)
    problem = _problem(coarse)
    places = observed_places(problem, _x(problem))
    torch.testing.assert_close(places, problem.y.repeat_interleave(4, 2).repeat_interleave(4, 3))
    point = Index(entries=[(0, 0, 1, 1)], std=1)
    problem = _problem(Concatenate(parts=[point, point]))
    problem = attrs.evolve(problem, y=torch.tensor([1.0, 3.0], dtype=torch.float64))
    places = observed_places(problem, _x(problem))
    assert places is not None
    assert places[0, 0, 1, 1] == pytest.approx(2)


def test_differences_have_no_places() -> None:
    problem = _problem(Function(target=slope, std=1))
    assert observed_places(problem, _x(problem)) is None
    assert observed_maps(problem, _x(problem)) is None


def test_which_values_are_a_variable() -> None:
    coarse = _problem(Coarsen(factor=2, std=1))
    assert is_variable(coarse, 1)[:, 1].all()
    assert not is_variable(coarse, 1)[:, 0].any()
    for other in (Select(standardized=True, std=1), Function(target=nonlinear, std=1)):
        assert not is_variable(_problem(other), 0).any()
    for target in (lambda x: x + 1, lambda x: x**2, lambda x: x.norm(dim=-3, keepdim=True)):
        assert not is_variable(_problem(Function(target=target, std=1)), 0).any()


@pytest.mark.parametrize(
    ("observation", "label"),
    [
        (Coarsen(factor=2, every=3, std=1), "T [K]"),
        (Sensors(count=3, every=3, std=1), "T [K]"),
        (Select(standardized=True, every=3, std=1), "observed value"),
    ],
)
def test_observed_maps_say_what_they_show(observation: Observation, label: str) -> None:
    problem = _problem(observation)
    maps = observed_maps(problem, _x(problem))
    assert maps is not None
    assert maps.label == label
    assert [image is None for image in maps.images] == [False, True, True] * 2


def test_a_variable_that_was_not_observed_has_no_maps() -> None:
    problem = _problem(Sensors(count=3, variables=["q"], std=1))
    assert observed_maps(problem, _x(problem), 0) is None
    assert observed_maps(problem, _x(problem), 1) is not None


def test_shown_times_are_observed_ones_if_there_are_enough() -> None:
    assert shown_times(_problem(Select(every=2, offset=1, std=1), 9)) == [1, 3, 5, 7]
    assert shown_times(_problem(Select(std=1), 7)) == [0, 2, 4, 6]
    assert shown_times(_problem(Select(every=4, std=1), 9)) == [0, 4, 5, 8]
    assert shown_times(_problem(Select(offset=7, std=1), 8)) == [1, 3, 5, 7]
    assert shown_times(_problem(Select(std=1), 2)) == [0, 1]
    mixing = Function(target=lambda x: x.mean(-4), statewise=False, std=1)
    assert shown_times(_problem(mixing, 7)) == [0, 2, 4, 6]


def test_edges_and_labels_of_a_plane() -> None:
    plane = Plane.of(Plate().spec)
    assert plane.extent == (0, 8, 0, 4)
    assert plane.labels == ("lon [deg]", "lat")
    assert plane.ratio == 0.5


def _maps_axes(figure: Figure) -> list:
    return [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]


def test_the_first_index_is_horizontal_and_the_second_goes_up() -> None:
    field = np.zeros((8, 4))
    field[7, 1] = 5.0  # at x = 7.5, y = 1.5
    figure = field_strip(Maps(name="", images=[field], label="w"), [0.0], PLANE)
    (axis,) = _maps_axes(figure)
    (image,) = axis.images
    figure.draw_without_rendering()
    row, column = np.unravel_index(np.argmax(image.get_array()), image.get_array().shape)
    left, right, bottom, top = image.get_extent()
    assert image.origin == "lower"
    assert left + (column + 0.5) * (right - left) / 8 == 7.5
    assert bottom + (row + 0.5) * (top - bottom) / 4 == 1.5
    assert axis.get_aspect() == 1


def test_colour_scales() -> None:
    signed = np.linspace(-2, 6, 1000).reshape(50, 20)
    rows = [
        Maps(name="truth", images=[signed], label="w"),
        Maps(name="mean", images=[signed / 100], label="w"),
        Maps(name="warm", images=[280 + signed], label="T [K]"),
        Maps(name="spread", images=[signed + 3], label="std of w", sequential=True),
    ]
    figure = ensemble_panels(rows, [1.5], PLANE, "s")
    truth, mean, warm, spread = (axis.images[0] for axis in _maps_axes(figure))
    low, high = truth.get_clim()
    assert low == -high
    assert high == pytest.approx(np.quantile(np.abs([signed, signed / 100]), 0.995))
    assert mean.get_clim() == truth.get_clim()
    assert mean.cmap == truth.cmap != warm.cmap == spread.cmap
    assert warm.get_clim() == tuple(pytest.approx(280 + v, abs=0.1) for v in (-2, 6))
    assert spread.get_clim()[0] == 0
    bars = [axis.get_ylabel() for axis in figure.axes if axis.get_label() == "<colorbar>"]
    assert bars == ["w", "T [K]", "std of w"]
    assert _maps_axes(figure)[0].get_title() == "t = 1.5 s"


def test_what_was_not_observed_is_said_and_few_places_are_dots() -> None:
    few = np.full((8, 4), np.nan)
    few[2, 3] = 1.0
    images = [None, few, np.ones((4, 2))]
    figure = field_strip(Maps(name="observation", images=images, label="w"), [0, 1, 2], PLANE)
    nothing, dots, coarse = _maps_axes(figure)
    assert "not observed" in [text.get_text() for text in nothing.texts]
    np.testing.assert_allclose(dots.collections[0].get_offsets(), [[2.5, 3.5]])
    assert coarse.images[0].get_extent() == list(PLANE.extent)


def test_nothing_known_can_be_drawn() -> None:
    maps = Maps(name="observation", images=[None, np.full((8, 4), np.nan)], label="w")
    figure = field_strip(maps, [0, 1], PLANE)
    assert "not observed" in [text.get_text() for text in _maps_axes(figure)[0].texts]


def test_ensemble_maps() -> None:
    ensemble, truth = _randn(5, 2, 8, 4), _randn(2, 8, 4, seed=1)
    observed = Maps(name="observation", images=[None, None], label="w")
    rows = ensemble_maps(ensemble, "w", truth, observed)
    names = ["truth", "observation", "member 1", "member 2", "mean", "spread"]
    assert [maps.name for maps in rows] == names
    np.testing.assert_allclose(rows[-2].images[1], ensemble[:, 1].mean(0), atol=1e-6)
    np.testing.assert_allclose(rows[-1].images[0], ensemble[:, 0].std(0), atol=1e-6)
    other = attrs.evolve(observed, label="y")
    assert ensemble_maps(ensemble, "w", truth, other)[0].name == "observation"
    assert [maps.name for maps in ensemble_maps(ensemble, "w", members=0)] == ["mean", "spread"]


def test_animations_have_a_frame_for_each_time_and_one_palette(tmp_path: Path) -> None:
    fields = list(_randn(5, 8, 4).numpy())
    maps = Maps(name="truth", images=[*fields[:4], None], label="w")
    moving = animation([maps], np.arange(5.0), PLANE)
    path = Picture(name="moving", caption="", figure=moving).save(tmp_path / "figures")
    assert path == tmp_path / "figures" / "moving.gif"
    assert list(path.parent.iterdir()) == [path]
    with Image.open(path) as gif:
        assert gif.n_frames == 5
        assert gif.info["loop"] == 0
        frames = []
        for i in range(5):
            gif.seek(i)
            frames.append(np.asarray(gif.convert("RGB")).astype(int))
    assert all(np.abs(a - b).max() > 50 for a, b in pairwise(frames))
    # Nothing outside the maps may flicker: the colour bar, to the right.
    right = [frame[40:, int(0.82 * frame.shape[1]) :] for frame in frames]
    assert all((part == right[0]).all() for part in right)


def test_pictures_are_saved_under_their_names(tmp_path: Path) -> None:
    path = Picture(name="plain", caption="", figure=Figure()).save(tmp_path)
    assert path == tmp_path / "plain.png"
    assert path.read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize("known", [True, False])
def test_pictures_of_a_variable(known: bool) -> None:
    problem = _problem(Coarsen(factor=2, every=3, std=1))
    ensemble = _randn(3, 6, 2, 8, 4)
    if not known:
        problem = attrs.evolve(problem, truth=None)
    panels, moving = variable_pictures(problem, ensemble)
    assert [panels.name, moving.name] == ["T-panels", "T-animation"]
    assert isinstance(panels.figure, Figure)
    rows = [text.get_text() for axis in _maps_axes(panels.figure) for text in axis.texts]
    names = ["observation", "member 1", "member 2", "mean", "spread"]
    assert [row for row in rows if row != "not observed"] == ["truth"] * known + names
    moving.figure._draw_was_started = True  # or matplotlib warns that it was not saved


def test_series_of_all_ensembles() -> None:
    problem = _problem(Select(std=1))
    ensembles = {name: _randn(4, 6, 2, 8, 4) for name in ("posterior", "baseline", "reference")}
    figure = posterior_series(problem, ensembles)
    (legend,) = figure.legends
    labels = {text.get_text() for text in legend.get_texts()}
    assert labels == {
        "posterior, 90 %",
        "posterior, median",
        "reference, 90 %",
        "baseline, median",
        "truth",
    }


def test_calibration_figures() -> None:
    figure = rank_histogram_figure(torch.tensor([6, 0, 3]))
    assert [bar.get_height() for bar in figure.axes[0].patches] == [2, 0, 1]
    ranks = torch.randint(257, (200,), generator=torch.Generator().manual_seed(0))
    bars = rank_histogram_figure(ranks.bincount(minlength=257)).axes[0].patches
    assert len(bars) == 20  # of about ten values each
    area = sum(bar.get_height() * bar.get_width() / 0.95 for bar in bars)
    assert area == pytest.approx(257)
    figure = spread_skill_figure(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 2.5]), "K")
    line = figure.axes[0].lines[1]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 2], [1.5, 2.5])
    assert figure.axes[0].get_xlabel() == "spread [K]"
