"""Lotka-Volterra and the damped spring: conserved quantities, periods, matrices."""

from __future__ import annotations

import math

import pytest
import torch

from sda_core.errors import SimulationError
from sda_core.system import simulate_block
from sda_lorenz.damped_spring import DampedSpring
from sda_lorenz.lotka_volterra import LotkaVolterra


def _conserved(s, x):
    log_u, log_v = x.unbind(-1)
    return s.delta * log_u.exp() - s.gamma * log_u + s.beta * log_v.exp() - s.alpha * log_v


@pytest.mark.parametrize(
    "system", [LotkaVolterra(), LotkaVolterra(alpha=1.5, beta=0.5, delta=0.8, gamma=1.2)]
)
def test_lotka_volterra_conserves_h(system) -> None:
    h = _conserved(system, simulate_block(system, 0, 0, 400))
    assert (h - h[:, :1]).abs().max() < 1e-4
    assert float(h[:, 0].std()) > 0.01  # which is not the same for all
    x = system.prior((20,), torch.Generator().manual_seed(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(_conserved(system, x).sum(), x)
    assert (gradient * system.rhs(x)).sum(-1).abs().max() < 1e-12


def test_lotka_volterra_is_that_of_the_populations() -> None:
    s = LotkaVolterra(alpha=1.5, beta=0.5, delta=0.8, gamma=1.2)
    x = torch.randn(5, 2, dtype=torch.float64)
    u, v = x.exp().unbind(-1)
    du, dv = (s.rhs(x) * x.exp()).unbind(-1)
    torch.testing.assert_close(du, s.alpha * u - s.beta * u * v)
    torch.testing.assert_close(dv, s.delta * u * v - s.gamma * v)


def test_lotka_volterra_periods() -> None:
    log_u = simulate_block(LotkaVolterra(dt=0.02), 0, 0, 2000)[..., 0]
    upwards = (log_u[:, :-1] < 0) & (log_u[:, 1:] >= 0)
    times = [row.nonzero().flatten().double() * 0.02 for row in upwards]
    periods = torch.stack([t.diff().mean() for t in times])
    assert float(periods.min()) == pytest.approx(2 * math.pi, abs=0.05)
    assert float(periods.max()) == pytest.approx(7.8, abs=0.1)
    assert float(periods.mean()) == pytest.approx(6.7, abs=0.1)


def test_spring_period() -> None:
    _, _, F, _, _ = DampedSpring().linear_gaussian()
    angles = torch.linalg.eigvals(F).angle().abs()
    assert 2 * math.pi * 0.01 / float(angles.max()) == pytest.approx(9, abs=0.2)
    assert torch.linalg.eigvals(F).abs().max() < 1


def test_spring_matrices_are_those_of_the_original_code() -> None:
    m, P, F, b, Q = DampedSpring(dt=0.1).linear_gaussian()
    assert m.tolist() == [1, 0, 0, 0]
    assert torch.equal(P, torch.eye(4, dtype=torch.float64))
    x = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    expected = [1 + 0.1 * 2 + 0.005 * 3, 2 + 0.1 * 3, -0.5 - 0.2 + 0.8, 0.99 * 4]
    assert (F @ x + b).tolist() == pytest.approx(expected)
    assert Q.diagonal().tolist() == pytest.approx([0.01, 0.01, 0.01, 0.1])
    assert torch.equal(Q, Q.diagonal().diag())


def test_spring_log_prob() -> None:
    system = DampedSpring()
    _, _, F, _, Q = system.linear_gaussian()
    x, x_next = torch.randn(2, 3, 4, dtype=torch.float64)
    noise = torch.distributions.Normal(x @ F.T, Q.diagonal().sqrt())
    torch.testing.assert_close(system.log_prob(x, x_next), noise.log_prob(x_next).sum(-1))


def test_parameters_beyond_what_numbers_can_hold() -> None:
    with pytest.raises(SimulationError, match=r"seed 0, trajectories 0 to \d+: OverflowError"):
        simulate_block(DampedSpring(dt=1e300), 0, 0, 4)
