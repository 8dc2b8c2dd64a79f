"""Systems: specs, simulation and base classes for systems of one's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sda_core.errors import ConfigError, SimulationError
from sda_core.system import (
    Axis,
    HasLogProb,
    HasRightHandSide,
    HasTrajectory,
    LinearGaussian,
    SystemSpec,
    Variable,
    simulate_block,
    trajectory,
)
from sda_core.testing import GaussianChain

from .data_systems import Swing, Walk


def test_spec() -> None:
    spec = SystemSpec(
        variables=["u [m/s]", Variable("T", "K")],
        axes=[Axis("x", [0.0, 0.5, 1.0]), Axis("y", range(4))],
        time_step=0.1,
        mean=[0, 1],
        std=np.array([1, 2]),
    )
    assert spec.variables == (Variable("u", "m/s"), Variable("T", "K"))
    assert Variable.parse("plain") == Variable("plain", "1")
    assert spec.state_shape == (2, 3, 4)
    assert (spec.mean, spec.std) == ((0.0, 1.0), (1.0, 2.0))


def test_spec_errors() -> None:
    with pytest.raises(ConfigError, match=r"different names, got \['u', 'u'\]"):
        SystemSpec(variables=("u", "u [m]"), time_step=1.0)
    with pytest.raises(ConfigError, match=r"std has 1 entries, but there are 2 variables"):
        SystemSpec(variables=("u", "v"), time_step=1.0, std=(1.0,))


def test_capabilities() -> None:
    chain, swing = GaussianChain(), Swing()
    assert isinstance(chain, HasLogProb)
    assert isinstance(chain, LinearGaussian)
    assert not isinstance(chain, HasRightHandSide)
    assert isinstance(swing, HasRightHandSide)
    assert not isinstance(swing, HasLogProb | HasTrajectory | LinearGaussian)


def test_trajectory_starts_after_the_burn_in() -> None:
    swing, generator = Swing(), torch.Generator()
    x = swing.prior((2,), generator)
    states = [x]
    for _ in range(5):
        states.append(swing.transition(states[-1], generator))
    out = trajectory(swing, x, 3, generator, burn_in=2)
    assert torch.equal(out, torch.stack(states[3:], 1))


def test_substeps_make_one_step() -> None:
    class Fine(Swing):
        substeps = 20

    x = Swing().prior((5,), torch.Generator().manual_seed(0)).double()
    coarse, fine = (s.transition(x, torch.Generator()) for s in (Swing(), Fine()))
    assert not torch.equal(coarse, fine)
    torch.testing.assert_close(coarse, fine, rtol=1e-5, atol=1e-5)


def test_blocks_that_run_away_are_reported() -> None:
    class Runaway(Swing):
        def transition(self, x, generator):
            return torch.where(torch.arange(len(x))[:, None] == 3, torch.inf, x)

    with pytest.raises(SimulationError, match=r"members \[3\] of 8 left .* within 5 steps of dt"):
        trajectory(Runaway(), torch.zeros(8, 2), 3, torch.Generator(), burn_in=2)
    with pytest.raises(SimulationError, match=r"seed 9, trajectories 16 to 23: Runaway: members"):
        simulate_block(Runaway(), 9, 2, 3)


def test_grid_systems() -> None:
    walk = Walk()
    assert simulate_block(walk, 0, 0, 3).shape == (4, 3, 2, 4)
