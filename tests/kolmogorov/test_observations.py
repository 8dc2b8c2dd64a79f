"""Observations of a flow: vorticity, saturating vorticity, speed."""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from sda_core.config import structure
from sda_core.errors import ConfigError
from sda_core.observation import Coarsen, Compose, Observation, Region, Select, Sensors
from sda_core.system import Axis, SystemSpec
from sda_core.testing import checks
from sda_kolmogorov import physics
from sda_kolmogorov.kolmogorov import KolmogorovFlow
from sda_kolmogorov.observation import Saturation, Speed, Vorticity


def axes(n: int, m: int, length: float = 2 * math.pi) -> tuple[Axis, Axis]:
    x, y = ((np.arange(i) + 0.5) * length / i for i in (n, m))
    return Axis("grid_x", x), Axis("grid_y", y)


SPEC = SystemSpec(
    variables=("u", "v"), axes=axes(8, 6), time_step=0.2, mean=(0.0, 1.0), std=(1.0, 2.0)
)
WARM = SystemSpec(variables=("T", "u", "v"), axes=axes(8, 6), time_step=0.2)
X = torch.randn(3, 5, 2, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
OPERATORS = (Vorticity, Saturation, Speed)


def conformance() -> list:
    found = []
    for name in ("vorticity", "saturation", "speed"):
        found += checks("observation", name, {"std": 0.3}, spec=SPEC)
        fields = {"std": 0.3, "every": 4, "offset": 2, "variables": ["u", "v"]}
        found += checks("observation", name, fields, spec=WARM)
    return [pytest.param(c, id=f"{c}-{i // (len(found) // 6) % 2}") for i, c in enumerate(found)]


@pytest.mark.parametrize("check", conformance())
def test_conformance(check) -> None:
    check()


def test_what_is_observed() -> None:
    w = physics.vorticity(X)[:, :, None]
    assert torch.equal(Vorticity().operator(SPEC)(X), w)
    assert torch.equal(Saturation().operator(SPEC)(X), w / (1 + w.abs()))
    speed = Speed().operator(SPEC)(X)
    torch.testing.assert_close(speed, torch.hypot(X[:, :, :1], X[:, :, 1:]))
    late = Vorticity(every=2, offset=1)
    assert torch.equal(late.operator(SPEC)(X), w[:, 1::2])
    assert late.times(torch.arange(5)).tolist() == [1, 3]


@pytest.mark.parametrize("cls", OPERATORS)
def test_what_comes_out(cls) -> None:
    out = cls(every=3).output(SPEC)
    assert out.variable_names == (cls.__name__.lower(),)
    assert (out.grid_shape, out.time_step) == ((8, 6), pytest.approx(0.6))
    assert out.mean is None
    assert out.std is None


def test_speed_at_rest() -> None:
    for dtype in (torch.float32, torch.float64):
        x = torch.zeros(1, 2, 8, 6, dtype=dtype, requires_grad=True)
        speed = Speed().operator(SPEC)(x)
        speed.sum().backward()
        assert speed.abs().max() < 1e-15
        assert torch.equal(x.grad, torch.zeros_like(x))


def test_composed() -> None:
    """As the paper's scenario: the saturating vorticity at some of the places."""
    places = Region(box={"grid_x": (0, math.pi)})
    model = Compose(parts=(Saturation(every=2), places), std=0.05).bind(SPEC, 5)
    w = physics.vorticity(X[:, ::2])
    expected = (w / (1 + w.abs()))[:, :, None, :4].flatten(-2)
    torch.testing.assert_close(model.operator(X), expected)
    assert model.times[:, 0, 0].tolist() == [0, 2, 4]
    named = Compose(parts=(Vorticity(), Select(variables=("vorticity",)), Sensors(count=4)))
    assert named.output(SPEC).state_shape == (1, 4)


def test_vorticity_of_coarse_velocities() -> None:
    """A coarse grid still covers the domain, so that the operator knows the derivatives."""
    flow = physics.velocity_from_vorticity(X[:, :, 0])
    coarse = Compose(parts=(Coarsen(factor=2), Vorticity())).operator(SPEC)(flow)
    torch.testing.assert_close(coarse[:, :, 0], physics.vorticity(physics.coarsen(flow, 2)))


def test_the_registered_system() -> None:
    spec = KolmogorovFlow(size=16).spec
    x = torch.randn(5, 2, 16, 16, dtype=torch.float64)
    table = {"name": "saturation", "every": 2, "std": 0.05}
    model = structure(Observation, table).bind(spec, 5)
    w = physics.vorticity(x[::2])
    torch.testing.assert_close(model.operator(x)[:, 0], w / (1 + w.abs()))


def test_the_tables_of_the_documentation() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "concepts" / "observation.md"
    text = page.read_text().partition("## Fields on grids")[2]
    shapes = []
    for table in re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        observation = structure(Observation, tomllib.loads(table)["observation"])
        shapes.append(observation.bind(KolmogorovFlow(size=64).spec, 9).shape)
    assert shapes == [(3, 2, 8, 8), (9, 2, 82), (39,), (3, 1, 64 * 32)]


@pytest.mark.parametrize("cls", OPERATORS)
def test_errors(cls) -> None:
    name = cls.__name__.lower()
    message = rf"^the {name} is that of two variables, .* asked of \['T', 'u', 'v'\] on the grid "
    with pytest.raises(ConfigError, match=message + r".*'grid_x': 8, 'grid_y': 6"):
        cls(std=0.1).bind(WARM, 4)
    with pytest.raises(ConfigError, match=r"asked of \['u'\] on the grid"):
        cls(std=0.1, variables=("u",)).bind(SPEC, 4)
    with pytest.raises(ConfigError, match=r"grid \{\}\. Choose the velocity"):
        cls(std=0.1).bind(SystemSpec(variables=("u", "v"), time_step=0.1), 4)
    other = SystemSpec(variables=("u", "v"), axes=axes(8, 6, length=1.0), time_step=0.1)
    with pytest.raises(ConfigError, match=r"covers the periodic square \[0, 2 pi\)\^2 evenly"):
        cls(std=0.1).bind(other, 4)
    # Every fourth of 6 points does not go round the domain evenly.
    with pytest.raises(ConfigError, match=r"covers the periodic square .*'grid_y': 2"):
        Compose(parts=(Select(spacing=4), cls()), std=0.1).bind(SPEC, 4)
