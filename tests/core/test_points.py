"""Interpolation to points: exact for what is linear, and differentiable."""

from __future__ import annotations

import json
import math

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor

from sda_core.errors import ConfigError
from sda_core.model import spec_from_json, spec_to_json
from sda_core.observation import Points, Select, Stations
from sda_core.observation.multilinear import Interpolation, fractional_index
from sda_core.system import Axis, SystemSpec

RNG = np.random.default_rng(0)
LENGTH = 5
#: Uneven, and falling as latitudes often are.
LON, LAT = Axis("lon", [0.0, 1.0, 1.5, 4.0]), Axis("lat", [3.0, 1.0, -2.0])
SPEC = SystemSpec(variables=("u", "v"), axes=(LON, LAT), time_step=0.5)
PLAIN = SystemSpec(variables=("u", "v"), time_step=0.5)


def linear_field(variable: int, t, lon, lat):
    """Linear in each of time, longitude and latitude, with all products."""
    return (variable + 1) * (1 + 2 * t) * (3 - lon) * (0.5 + lat)


def linear_trajectory() -> Tensor:
    t, lon, lat = np.meshgrid(np.arange(LENGTH), LON.values, LAT.values, indexing="ij")
    return torch.from_numpy(np.stack([linear_field(c, t, lon, lat) for c in (0, 1)], 1))


def random_entries(n: int) -> tuple[tuple[float | str, ...], ...]:
    time, lon, lat = RNG.uniform(0, 4, n), RNG.uniform(0, 4, n), RNG.uniform(-2, 3, n)
    names = np.where(RNG.random(n) < 0.5, "u", "v").tolist()
    return tuple(zip(time.tolist(), names, lon.tolist(), lat.tolist(), strict=True))


def test_linear_fields_are_interpolated_exactly() -> None:
    entries = (*random_entries(50), (4.0, "v", 4.0, -2.0), (0.0, "u", 0.0, 3.0))
    model = Points(entries=entries, std=0.1).bind(SPEC, LENGTH)
    expected = [linear_field("uv".index(str(c)), t, lon, lat) for t, c, lon, lat in entries]
    torch.testing.assert_close(
        model.operator(linear_trajectory()), torch.tensor(expected, dtype=torch.float64)
    )


def test_systems_without_a_grid_are_interpolated_in_time() -> None:
    x = torch.randn(3, LENGTH, 2, dtype=torch.float64)
    A = Points(entries=((2.25, "v"), (1, "u")), std=0.1).bind(PLAIN, LENGTH).operator
    expected = torch.stack([0.75 * x[:, 2, 1] + 0.25 * x[:, 3, 1], x[:, 1, 0]], -1)
    torch.testing.assert_close(A(x), expected)


def test_points_on_the_grid_are_its_values_and_have_times() -> None:
    x = torch.randn(2, LENGTH, 2, 4, 3, dtype=torch.float64)
    # The coordinates may have been rounded.
    model = Points(entries=((3, "v", 1.50001, 1.0), (0, "u", 4.00001, -2)), std=1.0)
    bound = model.bind(SPEC, LENGTH)
    assert torch.equal(bound.operator(x), torch.stack([x[:, 3, 1, 2, 1], x[:, 0, 0, 3, 2]], -1))
    assert bound.times is not None
    assert bound.times.tolist() == [3, 0]


def test_between_states_there_is_no_time_index() -> None:
    assert Points(entries=((1, "u"), (1.5, "u")), std=1.0).bind(PLAIN, LENGTH).times is None
    times = Points(entries=((1, "u"), (2.99999, "u")), std=1.0).bind(PLAIN, LENGTH).times
    assert times is not None
    assert times.tolist() == [1, 3]


@pytest.mark.parametrize("order", [1, -1])
def test_periodic_axes_wrap(order: int) -> None:
    angles = np.arange(8) * 45.0 + 10
    axis = Axis("angle", angles[::order], "deg", period=360)
    spec = SystemSpec(variables=("u",), axes=(axis,), time_step=1.0)
    x = torch.randn(1, 1, 8, dtype=torch.float64)
    first, last = x[0, 0, [0, -1][::order]]  # at 10 and 325 degrees
    coordinates = [10, 370, -350, 325, 325 + 9, 1, -35 + 9, 325 - 720]
    entries = tuple((0, "u", c) for c in coordinates)
    out = Points(entries=entries, std=1.0).bind(spec, 1).operator(x)
    near_last, near_first = 0.8 * last + 0.2 * first, 0.2 * last + 0.8 * first
    expected = [first, first, first, last, near_last, near_first, near_last, last]
    torch.testing.assert_close(out, torch.stack(expected))


def test_fractional_index_of_a_single_point() -> None:
    index = fractional_index(Axis("z", [2.0]), np.array([2.0, 2.1, np.nan]))
    np.testing.assert_array_equal(index, [0.0, np.nan, np.nan])


def test_neighbours_are_read_only_where_they_are_needed() -> None:
    whole = np.array([[1.0, 2.0], [0.0, 1.0]])
    half, both = whole.copy(), whole + 0.5
    half[0, 1] += 0.5
    for indices, ends in ((whole, 1), (half, 2), (both, 4)):
        assert Interpolation(indices, (3, 4))._index.shape == (2, ends)


def test_gradient_is_the_transpose() -> None:
    entries = random_entries(7)
    A = Points(entries=entries, std=1.0).bind(SPEC, LENGTH).operator
    x = torch.randn(2, LENGTH, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(A, x)
    y = torch.randn(2, 7, dtype=torch.float64)
    (transposed,) = torch.autograd.grad(A(x), x, y)
    other = torch.randn_like(x)
    torch.testing.assert_close((transposed * other).sum(), (A(other) * y).sum())


def test_stations_are_points_at_every_nth_state() -> None:
    places = ((0.3, 2.0), (3.0, -1.5), (4.0, 3.0))
    x = torch.randn(3, LENGTH, 2, 4, 3, dtype=torch.float64)
    stations = Stations(places=places, variables=("v",), every=2, offset=1, std=1.0)
    model = stations.bind(SPEC, LENGTH)
    entries = tuple((t, "v", *place) for t in (1, 3) for place in places)
    points = Points(entries=entries, std=1.0).bind(SPEC, LENGTH)
    torch.testing.assert_close(model.operator(x).flatten(1), points.operator(x))
    assert model.times is not None
    assert points.times is not None
    assert model.times.flatten().tolist() == points.times.tolist()
    assert stations.output(SPEC).state_shape == (1, 3)


def test_stations_on_all_points_are_the_field() -> None:
    places = tuple((lon, lat) for lon in LON.values.tolist() for lat in LAT.values.tolist())
    x = torch.randn(LENGTH, 2, 4, 3)
    A = Stations(places=places, std=1.0).bind(SPEC, LENGTH).operator
    assert torch.equal(A(x), Select(std=1.0).bind(SPEC, LENGTH).operator(x).flatten(2))


def test_points_are_standardized_by_variable() -> None:
    spec = attrs.evolve(PLAIN, mean=(1.0, -2.0), std=(2.0, 0.5))
    x = torch.randn(3, LENGTH, 2, dtype=torch.float64)
    points = Points(entries=((1, "v"), (0.5, "u")), std=1.0)
    plain = points.bind(PLAIN, LENGTH).operator(x)
    A = attrs.evolve(points, standardized=True).bind(spec, LENGTH).operator
    expected = (plain - torch.tensor([-2.0, 1.0])) / torch.tensor([0.5, 2.0])
    torch.testing.assert_close(A(x), expected)
    with pytest.raises(ConfigError, match="standardized = true needs a system with"):
        attrs.evolve(points, standardized=True).bind(PLAIN, LENGTH)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ((), r"observation\.entries is empty"),
        ((("u", 0, 1.0, 1.0),), r"entries\[0\] = \['u', 0, 1\.0, 1\.0\] is not \(time, variable"),
        (((-1, "u", 1.0, 1.0),), "with a time of 0 or greater"),
        (((math.inf, "u", 1.0, 1.0),), r"entries: got \(\(inf"),
        (((0, "u", 1.0, 1.0), (0, "u", 1.0)), r"entries\[1\].*1 coordinates.*\['lon', 'lat'\]"),
        (((0, "w", 1.0, 1.0),), r"there is no variable 'w'.*\['u', 'v'\]"),
        (((0, "u", 4.1, 1.0),), r"entries\[0\]: lon = 4\.1 is outside of.*from 0 to 4.*period"),
        (((0, "u", 1.0, -2.1),), r"entries\[0\]: lat = -2\.1 is outside of.*from -2 to 3"),
        (((4.5, "u", 1.0, 1.0),), r"the time 4\.5, but the last of the 5 states is 4"),
    ],
)
def test_entries_that_do_not_fit_are_refused(entries, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Points(entries=entries, std=1.0).bind(SPEC, LENGTH)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ((), r"observation\.places is empty"),
        (((1.0,),), r"places\[0\] = \[1\.0\] has 1 coordinates.*\['lon', 'lat'\]"),
        (((1.0, 1.0), (1.0, 3.1)), r"observation\.places\[1\]: lat = 3\.1 is outside"),
    ],
)
def test_places_that_do_not_fit_are_refused(places, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Stations(places=places, std=1.0).bind(SPEC, LENGTH)
    with pytest.raises(ConfigError, match="needs a system with a grid"):
        Stations(places=((1.0,),), std=1.0).bind(PLAIN, LENGTH)


def test_axes_that_cannot_be_interpolated_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"along axis 'z'.*must rise or fall, but are \[0, 2, 1\]"
    ):
        fractional_index(Axis("z", [0, 2, 1]), np.zeros(1))
    with pytest.raises(ConfigError, match=r"'lon' has a period of 360, but points from 0 to 360"):
        Axis("lon", np.linspace(0, 360, 9), period=360)


def test_the_period_is_saved_with_a_model() -> None:
    spec = SystemSpec(variables=("u",), axes=(Axis("x", [0, 1], period=3.0),), time_step=1.0)
    data = json.loads(json.dumps(spec_to_json(spec)))
    assert spec_from_json(data).axes[0].period == 3
    del data["axes"][0]["period"]  # as models of earlier versions have it
    assert spec_from_json(data).axes[0].period is None
