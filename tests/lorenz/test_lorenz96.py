"""Lorenz-96: right-hand side and what its docstring says."""

from __future__ import annotations

import math

import pytest
import torch

from sda_core.system import rk4_step, simulate_block
from sda_lorenz.lorenz96 import Lorenz96


def test_right_hand_side() -> None:
    x = torch.randn(3, 1, 6, dtype=torch.float64)
    out = Lorenz96(n=6, forcing=5.0).rhs(x)
    for j in range(6):
        expected = (x[..., (j + 1) % 6] - x[..., j - 2]) * x[..., j - 1] - x[..., j] + 5
        torch.testing.assert_close(out[..., j], expected)


def test_advection_conserves_energy() -> None:
    """Without forcing and damping, d(sum x^2)/dt = 0."""
    x = torch.randn(3, 1, 40, dtype=torch.float64)
    advection = Lorenz96(forcing=0.0).rhs(x) + x
    assert (advection * x).sum(-1).abs().max() < 1e-12


def test_rest_and_symmetry() -> None:
    rest = torch.full((1, 40), 8.0, dtype=torch.float64)
    assert Lorenz96().rhs(rest).abs().max() == 0
    x = torch.randn(1, 40, dtype=torch.float64)
    torch.testing.assert_close(Lorenz96().rhs(x.roll(3, -1)), Lorenz96().rhs(x).roll(3, -1))


def test_climate() -> None:
    x = simulate_block(Lorenz96(), 0, 0, 200, burn_in=400)
    assert float(x.mean()) == pytest.approx(2.3, abs=0.1)
    assert float(x.std()) == pytest.approx(3.6, abs=0.1)


def test_spec() -> None:
    spec = Lorenz96(n=12).spec
    assert spec.state_shape == (1, 12)
    assert spec.axes[0].values.tolist() == list(range(12))


@pytest.mark.slow
def test_lyapunov_spectrum() -> None:
    """13 positive exponents, and errors that double in about 0.4 time units."""

    class Tangent:
        """The state and 40 perturbations of it, (41, 40)."""

        def rhs(self, s):
            x, V = s[0], s[1:]
            n1, p1, p2 = x.roll(-1), x.roll(1), x.roll(2)
            dV = (V.roll(-1, -1) - V.roll(2, -1)) * p1 + (n1 - p2) * V.roll(1, -1) - V
            return torch.cat((((n1 - p2) * p1 - x + 8)[None], dV))

    x = simulate_block(Lorenz96(), 0, 0, 1, burn_in=400)[0, 0, 0]
    s = torch.cat((x[None], torch.eye(40, dtype=torch.float64)))
    growth, steps, h = torch.zeros(40, dtype=torch.float64), 24_000, 0.05
    for i in range(steps + 400):
        s = rk4_step(Tangent(), s, h)
        Q, R = torch.linalg.qr(s[1:].T)
        s = torch.cat((s[:1], Q.T))
        if i >= 400:
            growth += R.diagonal().abs().log()
    exponents = growth / (steps * h)
    assert int((exponents > 0.01).sum()) == 13
    assert math.log(2) / float(exponents[0]) == pytest.approx(0.4, abs=0.03)
    assert float(exponents.sum()) == pytest.approx(-40, abs=0.05)  # the divergence of rhs
