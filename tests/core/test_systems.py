"""Systems: specs, simulation and base classes for systems of one's own."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
import torch

from sda_core.errors import ConfigError, SimulationError, SimulationWarning
from sda_core.random import seeded_generator
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
from sda_core.testing import GaussianChain, check_system

from .data_systems import Swing, Walk, Wave


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


@attrs.frozen(kw_only=True)
class Runaway(Swing):
    """Loses the first ``lost`` members, whatever they are."""

    lost: int = 1

    def transition(self, x, generator):
        return torch.where(torch.arange(len(x))[:, None] < self.lost, torch.inf, x)


def test_trajectories_that_run_away_are_an_error() -> None:
    with pytest.raises(SimulationError, match=r"members \[0\] of 8 left .* within 5 steps of dt"):
        trajectory(Runaway(), torch.zeros(8, 2), 3, torch.Generator(), burn_in=2)


def draw(system: Wave, seed: int, block: int, *attempt: int) -> torch.Tensor:
    """Three states of a block after a burn-in of two, whether finite or not."""
    generator = seeded_generator(seed, block, *attempt)
    return system.trajectory(system.prior((system.block_size,), generator), 3, 2, generator)


def test_lost_members_are_drawn_again_and_the_others_are_untouched() -> None:
    system = Wave(limit=2.3)
    with pytest.warns(SimulationWarning) as warned:
        x = simulate_block(system, 1, 2, 3, burn_in=2)
    assert [str(warning.message) for warning in warned] == [
        "seed 1, trajectories [9, 10]: Wave left the range of finite numbers; drawn again, "
        "attempt 1 of 3",
        "seed 1, trajectories [10]: Wave left the range of finite numbers; drawn again, "
        "attempt 2 of 3",
    ]
    first = draw(system, 1, 2)
    assert first.isfinite().flatten(1).all(1).tolist() == [True, False, False, True]
    assert torch.equal(x[[0, 3]], first[[0, 3]])
    assert torch.equal(x[1], draw(system, 1, 2, 1)[1])
    assert torch.equal(x[2], draw(system, 1, 2, 2)[2])


def test_blocks_without_loss_are_silent(recwarn) -> None:
    assert torch.equal(simulate_block(Wave(), 1, 2, 3, burn_in=2), draw(Wave(), 1, 2))
    assert not recwarn


def test_members_lost_however_often_they_are_drawn() -> None:
    messages: list[str] = []
    message = (
        r"seed 9, trajectories 16 to 23: drawn again 3 times, Runaway: members \[0\] of 8 left"
    )
    with pytest.raises(SimulationError, match=message):
        simulate_block(Runaway(), 9, 2, 3, on_redraw=messages.append)
    assert [message[-14:] for message in messages] == [f"attempt {i} of 3" for i in (1, 2, 3)]


@pytest.mark.parametrize(("lost", "redraws"), [(4, 3), (5, 0)])
def test_most_members_lost_is_no_accident(lost, redraws) -> None:
    messages: list[str] = []
    with pytest.raises(SimulationError, match=r"of 8 left .* Use a smaller time step"):
        simulate_block(Runaway(lost=lost), 9, 2, 3, on_redraw=messages.append)
    assert len(messages) == redraws


def test_grid_systems() -> None:
    walk = Walk()
    assert simulate_block(walk, 0, 0, 3).shape == (4, 3, 2, 4)
    wave = Wave(block_size=3)  # of its own, not the class's
    assert simulate_block(wave, 0, 0, 7).shape == (3, 7, 2, 3, 5)
    check_system(wave)
