"""Operators on grids: coarsening, spacing, sensors and regions, in one to three dimensions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sda_core.config import structure
from sda_core.errors import ConfigError, ShapeError
from sda_core.noise import StudentT
from sda_core.observation import (
    Coarsen,
    Compose,
    Observation,
    Region,
    Select,
    Sensors,
    block_means,
)
from sda_core.system import Axis, SystemSpec
from sda_core.testing import checks


def make_spec(*shape: int) -> SystemSpec:
    names = ("grid_x", "grid_y", "grid_z")
    return SystemSpec(
        variables=("u", "v"),
        axes=[Axis(name, (np.arange(n) + 0.5) / n) for name, n in zip(names, shape, strict=False)],
        time_step=0.5,
        mean=(1.0, -1.0),
        std=(2.0, 4.0),
    )


SPECS = {1: make_spec(8), 2: make_spec(4, 6), 3: make_spec(2, 4, 6)}
SPEC = SPECS[2]
POINT = SystemSpec(variables=("x", "y"), time_step=0.1)
X = torch.randn(3, 5, 2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

COMMON = {"variables": ["v"], "every": 3, "offset": 1}
TABLES = (
    {"name": "coarsen", "factor": 2},
    {"name": "coarsen", "factor": 2, **COMMON},
    {"name": "select", "spacing": 2},
    {"name": "select", "spacing": 3, "standardized": True, **COMMON},
    {"name": "sensors", "count": 3},
    {"name": "sensors", "fraction": 0.5, "seed": 1, **COMMON},
    {"name": "region", "box": {"grid_x": [0.0, 0.6]}},
    {"name": "region", "box": {"grid_x": [0.0, 0.6]}, "outside": True, **COMMON},
)


def conformance() -> list:
    found = []
    for d, spec in SPECS.items():
        for i, table in enumerate(TABLES):
            fields = {k: v for k, v in table.items() if k != "name"} | {"std": 0.3}
            for check in checks("observation", table["name"], fields, spec=spec):
                found.append(pytest.param(check, id=f"{check}-{i}-{d}d"))
    return found


@pytest.mark.parametrize("check", conformance())
def test_conformance(check) -> None:
    check()


# --- coarsen ---


def test_coarsen() -> None:
    out = Coarsen(factor=2, every=2).operator(SPEC)(X)
    assert out.shape == (3, 3, 2, 2, 3)
    for i in range(2):
        for j in range(3):
            block = X[:, ::2, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            torch.testing.assert_close(out[..., i, j], block.mean((-2, -1)))
    one = Coarsen(factor=1, variables=("v",)).operator(SPEC)(X)
    assert torch.equal(one, X[:, :, 1:])


def test_coarse_grid() -> None:
    out = Coarsen(factor=2, every=2, variables=("v",)).output(SPEC)
    assert [a.name for a in out.axes] == ["grid_x", "grid_y"]
    np.testing.assert_allclose(out.axes[0].values, [0.25, 0.75])
    np.testing.assert_allclose(out.axes[1].values, [1 / 6, 1 / 2, 5 / 6])
    assert (out.variable_names, out.time_step) == (("v",), 1.0)
    assert (out.mean, out.std) == ((-1.0,), (4.0,))
    # Blocks of blocks are blocks.
    x = torch.randn(5, 2, 2, 4, 8, dtype=torch.float64)
    spec = make_spec(2, 4, 8)
    twice = Compose(parts=(Coarsen(factor=2), Select(), Coarsen(factor=1)))
    torch.testing.assert_close(
        twice.operator(spec)(x), x.reshape(5, 2, 1, 2, 2, 2, 4, 2).mean((3, 5, 7))
    )


def test_coarse_velocities_in_one_table() -> None:
    table = {"name": "coarsen", "factor": 8, "every": 4, "std": 0.1}
    model = structure(Observation, table).bind(make_spec(64, 64), 9)
    assert model.shape == (3, 2, 8, 8)
    assert model.times[:, 0, 0, 0].tolist() == [0, 4, 8]
    assert bool((model.std == 0.1).all())


def test_block_means_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match=r"blocks of 4 points do not fill the grid \(4, 6\)"):
        block_means(X, 4, 2)
    assert torch.equal(block_means(X, 2, 1), X.reshape(3, 5, 2, 4, 3, 2).mean(-1))


# --- select ---


def test_spacing() -> None:
    out = Select(spacing=4, every=2, variables=("v", "u")).operator(SPEC)(X)
    assert torch.equal(out, X[:, ::2, [1, 0], ::4, ::4])
    scaled = Select(spacing=2, standardized=True).operator(SPEC)(X)
    expected = torch.stack(((X[:, :, 0] - 1) / 2, (X[:, :, 1] + 1) / 4), 2)[..., ::2, ::2]
    torch.testing.assert_close(scaled, expected)


def test_spaced_grid() -> None:
    out = Select(spacing=4).output(SPEC)
    assert out.grid_shape == (1, 2)
    assert out.axes[1].values.tolist() == SPEC.axes[1].values[[0, 4]].tolist()


# --- sensors ---


def test_sensors() -> None:
    sensors = Sensors(count=5, variables=("v",), every=2)
    places = sensors.places(SPEC)
    assert places.shape == (5, 2)
    out = sensors.operator(SPEC)(X)
    assert out.shape == (3, 3, 1, 5)
    for n, (i, j) in enumerate(places.tolist()):
        assert torch.equal(out[..., n], X[:, ::2, 1:, i, j])
    assert sensors.output(SPEC).state_shape == (1, 5)


def test_sensors_are_drawn_without_replacement() -> None:
    for count in (1, 23, 24):
        places = Sensors(count=count, seed=3).places(SPEC)
        assert len({tuple(p) for p in places.tolist()}) == count
    torch.testing.assert_close(Sensors(count=24).operator(SPEC)(X), X.flatten(-2))


def test_every_point_is_as_likely_as_any_other() -> None:
    drawn = torch.zeros(4, 6)
    for seed in range(600):
        drawn[tuple(Sensors(count=4, seed=seed).places(SPEC).T)] += 1
    # Each count is binomial(600, 1/6): mean 100, standard deviation 9.1.
    assert float((drawn - 100).abs().max()) < 5 * 9.1


def test_networks_of_a_seed_are_nested() -> None:
    few, many = (Sensors(count=n, seed=7).places(SPEC).tolist() for n in (3, 9))
    assert all(place in many for place in few)
    assert few == Sensors(fraction=3 / 24, seed=7).places(SPEC).tolist()
    assert few != Sensors(count=3, seed=8).places(SPEC).tolist()


def test_fraction() -> None:
    for fraction, count in ((1.0, 24), (0.5, 12), (0.1, 2), (1e-9, 1)):
        assert len(Sensors(fraction=fraction).places(SPEC)) == count


def test_std_per_sensor() -> None:
    model = Sensors(count=3, std=(0.1, 0.2, 0.3)).bind(SPEC, 4)
    assert model.std[2, 1].tolist() == [0.1, 0.2, 0.3]
    with pytest.raises(ConfigError, match=r"std has 4 entries, .* \(4, 2, 3\).* 1 or 2 or 3"):
        Sensors(count=3, std=(0.1, 0.2, 0.3, 0.4)).bind(SPEC, 4)


def test_std_per_variable() -> None:
    for observation in (Sensors(count=3, std=(0.1, 5.0)), Select(std=(0.1, 5.0))):
        std = observation.bind(SPEC, 4).std
        assert torch.equal(std[:, 0], torch.full_like(std[:, 0], 0.1))
        assert torch.equal(std[:, 1], torch.full_like(std[:, 1], 5.0))
    with pytest.raises(ConfigError, match=r"std = .*0.1, 5.0.* could be one for each variable or"):
        Sensors(count=2, std=(0.1, 5.0)).bind(SPEC, 4)
    noise = StudentT(scale=(0.1, 5.0))
    with pytest.raises(ConfigError, match=r"noise.scale = .*could be one for each variable or"):
        Sensors(count=2, noise=noise).bind(SPEC, 4)
    one = Sensors(count=2, variables=("u",), std=(0.1, 5.0)).bind(SPEC, 4)
    assert one.std[0, 0].tolist() == [0.1, 5.0]


# --- region ---


def test_region() -> None:
    box = {"grid_x": (0.3, 0.9), "grid_y": (0.0, 0.5)}
    inside = Region(box=box, offset=1)
    assert inside.places(SPEC).tolist() == [[i, j] for i in (1, 2, 3) for j in (0, 1, 2)]
    assert torch.equal(inside.operator(SPEC)(X), X[:, 1:, :, 1:, :3].flatten(-2))
    outside = Region(box=box, outside=True)
    assert outside.places(SPEC).tolist() == [
        [i, j] for i in range(4) for j in range(6) if i == 0 or j > 2
    ]
    assert outside.output(SPEC).state_shape == (2, 15)


def test_axes_left_out_are_not_bounded() -> None:
    out = Region(box={"grid_y": (0.5, math.inf)}).operator(SPEC)(X)
    assert torch.equal(out, X[..., 3:].flatten(-2))


def test_a_box_is_closed() -> None:
    lower, upper = (float(v) for v in SPEC.axes[1].values[[1, 3]])
    places = Region(box={"grid_y": (lower, upper)}).places(SPEC)
    assert places[:3, 1].tolist() == [1, 2, 3]
    assert len(places) == 12


# --- what follows ---


def test_composed_with_each_other() -> None:
    """Operators know the grid that the one before them leaves."""
    parts = (Coarsen(factor=2, every=2), Region(box={"grid_x": (0.5, 1.0)}), Select(every=2))
    composed = Compose(parts=parts)
    expected = block_means(X[:, ::4], 2, 2)[..., 1, :]
    torch.testing.assert_close(composed.operator(SPEC)(X), expected)
    assert composed.times(torch.arange(5)).tolist() == [0, 4]
    assert composed.output(SPEC).state_shape == (2, 3)


@pytest.mark.parametrize(
    ("observation", "spec", "message"),
    [
        (Coarsen(factor=3), SPEC, r"factor = 3 does not divide .*\(4, 6\), allowed: \[1, 2\]$"),
        (Coarsen(factor=2), POINT, r"factor = 2 needs a system with a grid, .* \['x', 'y'\] with"),
        (Select(spacing=2), POINT, r"observation.spacing = 2 needs a system with a grid"),
        (Sensors(count=2), POINT, r"observation.count needs a system with a grid"),
        (Sensors(fraction=0.1), POINT, r"observation.fraction needs a system with a grid"),
        (Sensors(count=25), SPEC, r"count = 25 is more than the 24 points of the grid \(4, 6\)"),
        (
            Region(box={"gridx": (0, 1)}),
            SPEC,
            r"box: there is no axis 'gridx'; did you mean 'grid_x'\. .*\['grid_x', 'grid_y'\]",
        ),
        (Region(box={"grid_x": (0, 1)}), POINT, r"no axis 'grid_x'. This system has \[\]"),
        (
            Region(box={"grid_x": (2, 3)}),
            SPEC,
            r"box has none of the grid's points .* grid_x from 0.125 to 0.875, grid_y from",
        ),
        (Region(box={"grid_x": (0, 1)}, outside=True), SPEC, r"box has all of the grid's points"),
        (Coarsen(factor=2, variables=("w",)), SPEC, r"variables: there is no variable 'w'"),
        (Sensors(count=2, offset=4), SPEC, r"offset = 4 lies beyond the trajectory of 4 states"),
    ],
    ids=lambda p: type(p).__name__ if isinstance(p, Observation) else "",
)
def test_errors_when_bound(observation, spec, message) -> None:
    with pytest.raises(ConfigError, match=message):
        observation.bind(spec, 4)


def test_errors_when_made() -> None:
    for fields in ({}, {"count": 2, "fraction": 0.1}):
        with pytest.raises(ConfigError, match=r"observation.count = .* give exactly one of them"):
            Sensors(**fields)
    with pytest.raises(ConfigError, match=r"observation.box is empty: give \[lower, upper\]"):
        Region(box={})
    with pytest.raises(ConfigError, match=r"box.grid_x = \[2, 1\]: the lower bound must not be"):
        Region(box={"grid_x": (2.0, 1.0)})
    tables = (
        ({"name": "sensors", "fraction": 0.0}, r"fraction: got 0.0, allowed: greater than 0 and"),
        ({"name": "sensors", "fraction": 1.5}, r"fraction: got 1.5"),
        ({"name": "coarsen"}, r"factor: missing, but required"),
        ({"name": "coarsen", "factor": 0}, r"factor: got 0, allowed: 1 or greater"),
    )
    for table, message in tables:
        with pytest.raises(ConfigError, match=message):
            structure(Observation, table)
