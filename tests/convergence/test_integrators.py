"""Integrators have the order they declare, measured by a slope fit in float64."""

from __future__ import annotations

import math

import attrs
import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from sda_core.system import ODESystem, SDESystem, SystemSpec
from sda_lorenz.lorenz63 import Lorenz63
from sda_lorenz.lorenz96 import Lorenz96
from sda_lorenz.lotka_volterra import LotkaVolterra

NONE = torch.Generator()


def _slope(steps, errors) -> float:
    return float(np.polyfit(-np.log(np.asarray(steps, float)), np.log(errors), 1)[0])


def _reference(system, x, time: float):
    """SciPy's DOP853 at tight tolerances, member by member."""

    def rhs(_, flat):
        return system.rhs(torch.from_numpy(flat).reshape(x[0].shape)).numpy().ravel()

    ends = []
    for member in x:
        start = member.numpy().ravel()
        solution = solve_ivp(rhs, (0, time), start, method="DOP853", rtol=1e-12, atol=1e-12)
        ends.append(solution.y[:, -1])
    return torch.tensor(np.array(ends)).reshape(x.shape)


@pytest.mark.parametrize("cls", [Lorenz63, Lorenz96, LotkaVolterra])
def test_rk4_has_order_4_and_agrees_with_scipy(cls) -> None:
    time = 0.4
    coarse = cls(dt=time)
    x = coarse.prior((3,), torch.Generator().manual_seed(0))
    expected = _reference(coarse, x, time)
    steps = [64, 128, 256, 512]
    errors = [
        float((attrs.evolve(coarse, substeps=n).transition(x, NONE) - expected).abs().max())
        for n in steps
    ]
    assert _slope(steps, errors) == pytest.approx(4, abs=0.3)
    assert errors[-1] < 1e-7


@attrs.frozen
class Clock(ODESystem):
    """dx/dt = x cos(t), with time as a second variable: the exact answer is x_0 exp(sin t)."""

    substeps: int

    @property
    def spec(self):
        return SystemSpec(variables=("x", "t"), time_step=2.0)

    def prior(self, shape, generator):
        return torch.tensor([1.0, 0.0], dtype=torch.float64).expand(*shape, 2)

    def rhs(self, x):
        return torch.stack((x[..., 0] * x[..., 1].cos(), torch.ones_like(x[..., 1])), -1)


def test_rk4_of_an_ode_of_ones_own() -> None:
    steps = [8, 16, 32, 64]
    exact = math.exp(math.sin(2.0))
    ends = [Clock(n).transition(Clock(n).prior((1,), NONE), NONE)[0, 0] for n in steps]
    errors = [abs(float(end) - exact) for end in ends]
    assert _slope(steps, errors) == pytest.approx(4, abs=0.3)


@attrs.frozen
class Relaxation(SDESystem):
    """dx = -sin(2 x) dt + 0.5 (1 + state x) dW."""

    substeps: int
    state: float = 0.0

    @property
    def spec(self):
        return SystemSpec(variables=("x",), time_step=1.0)

    def prior(self, shape, generator):
        return torch.ones(*shape, 1, dtype=torch.float64)

    def drift(self, x):
        return -torch.sin(2 * x)

    def diffusion(self, x):
        return 0.5 * (1 + self.state * x)


@pytest.mark.parametrize(("state", "order"), [(0.0, 1.0), (2.0, 0.5)])
def test_euler_maruyama_strong_order(state, order, monkeypatch) -> None:
    """Order 1 for additive noise, 1/2 where the noise depends on the state."""
    members, finest = 1024, 2048
    z = torch.randn(
        finest, members, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )

    def solve(n):
        # The same Brownian paths: each coarse increment is a sum of fine ones.
        increments = iter(z.reshape(n, finest // n, members, 1).sum(1) / math.sqrt(finest // n))
        monkeypatch.setattr(torch, "randn", lambda *_, **__: next(increments))
        system = Relaxation(n, state)
        return system.transition(torch.ones(members, 1, dtype=torch.float64), NONE)

    exact = solve(finest)
    steps = [8, 16, 32, 64, 128]
    errors = [float((solve(n) - exact).square().mean().sqrt()) for n in steps]
    assert _slope(steps, errors) == pytest.approx(order, abs=0.15)


def test_euler_maruyama_draws_independent_noise_of_the_right_size() -> None:
    class Brownian(Relaxation):
        def drift(self, x):
            return torch.zeros_like(x)

    generator = torch.Generator().manual_seed(0)
    x = Brownian(10).transition(torch.zeros(20_000, 1, dtype=torch.float64), generator)
    assert float(x.var()) == pytest.approx(0.25, rel=5 * math.sqrt(2 / 20_000))
    assert abs(float(x.mean())) < 5 * 0.5 / math.sqrt(20_000)
