"""The double pendulum against what is known exactly."""

import math

import pytest
import torch
from sda_double_pendulum.double_pendulum import DoublePendulum

from sda_core.system import trajectory
from sda_core.testing import Check, checks


@pytest.mark.parametrize("check", checks("system", "double-pendulum"), ids=str)
def test_conformance(check: Check) -> None:
    """What every system has to satisfy."""
    check()


def energy(system: DoublePendulum, x: torch.Tensor) -> torch.Tensor:
    """Energy over mass and squared rod, zero for the pendulum at rest."""
    a, b, u, v = x.unbind(-1)
    kinetic = u**2 + v**2 / 2 + u * v * torch.cos(a - b)
    return kinetic + system.gravity / system.rod * (3 - 2 * a.cos() - b.cos())


def test_energy_is_conserved() -> None:
    """There is no friction."""
    system, generator = DoublePendulum(), torch.Generator().manual_seed(0)
    start = system.prior((16,), generator)
    x = trajectory(system, start, 200, generator)
    drift = (energy(system, x) - energy(system, start)[:, None]).abs()
    assert drift.max() < 1e-4 * energy(system, start).max()


def test_small_oscillations() -> None:
    """Near rest, angle_2 = -+sqrt(2) angle_1 swings at omega^2 = (2 +- sqrt(2)) g / rod."""
    system, generator = DoublePendulum(rod=0.7), torch.Generator()
    for sign in (-1, 1):
        omega = math.sqrt((2 + sign * math.sqrt(2)) * system.gravity / system.rod)
        start = 1e-4 * torch.tensor([[1.0, -sign * math.sqrt(2), 0.0, 0.0]], dtype=torch.float64)
        x = trajectory(system, start, 40, generator)[0]
        times = system.dt * torch.arange(1, 41, dtype=torch.float64)
        expected = torch.outer(torch.cos(omega * times), start[0, :2])
        torch.testing.assert_close(x[:, :2], expected, rtol=0, atol=1e-7)


def test_rods_do_not_turn_over() -> None:
    """A start at rest within 1.23 rad has too little energy for that."""
    system, generator = DoublePendulum(release=1.23), torch.Generator().manual_seed(1)
    x = trajectory(system, system.prior((64,), generator), 400, generator)
    assert x[..., :2].abs().max() < math.pi
