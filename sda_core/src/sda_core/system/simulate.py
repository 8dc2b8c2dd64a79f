"""Simulating trajectories, alone and block by block.

Trajectory number i of a data set is row ``i % block_size`` of block ``i // block_size``, and each
block is simulated whole from a generator seeded by (seed, block). So a trajectory depends on
(seed, i) alone: not on how many are made, nor on the number of workers. A trajectory that leaves
the range of finite numbers is replaced by the same row of the block simulated anew, from a
generator seeded by (seed, block, attempt).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from sda_core.errors import SimulationError, SimulationWarning
from sda_core.plugins.names import cause_text
from sda_core.random import seeded_generator
from sda_core.system.base import HasTrajectory, System

#: How often a trajectory that leaves the range of finite numbers is drawn again.
MAX_REDRAWS = 3


def trajectory(
    system: System, x: Tensor, length: int, generator: Generator, burn_in: int = 0
) -> Tensor:
    r"""Simulate from initial states.

    Args:
        system: The system.
        x: Initial states x_0, (B, C, \*S).
        length: Number L of states kept.
        generator: Source of randomness.
        burn_in: Number of steps taken first and thrown away.

    Returns:
        (x_b+1, ..., x_b+L) with b = ``burn_in``, shape (B, L, C, \*S).

    Raises:
        SimulationError: A state is not finite.
    """
    out = _advance(system, x, length, generator, burn_in)
    if diverged := _not_finite(out):
        raise SimulationError(_not_finite_text(system, out, diverged, burn_in + length))
    return out


def _advance(system: System, x: Tensor, length: int, generator: Generator, burn_in: int) -> Tensor:
    if isinstance(system, HasTrajectory):
        return system.trajectory(x, length, burn_in, generator)
    for _ in range(burn_in):
        x = system.transition(x, generator)
    states = []
    for _ in range(length):
        x = system.transition(x, generator)
        states.append(x)
    return torch.stack(states, dim=1)


def _not_finite(x: Tensor) -> list[int]:
    """The members with a value that is not finite."""
    if x.isfinite().all():
        return []
    return (~x.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()


def _not_finite_text(system: System, x: Tensor, diverged: list[int], steps: int) -> str:
    return (
        f"{type(system).__name__}: members {diverged} of {len(x)} left the range of finite numbers "
        f"within {steps} steps of dt = {system.spec.time_step}. {system.advice}"
    )


def _warn(message: str) -> None:
    warnings.warn(message, SimulationWarning, stacklevel=3)


def simulate_block(
    system: System,
    seed: int,
    block: int,
    length: int,
    burn_in: int = 0,
    on_redraw: Callable[[str], None] = _warn,
) -> Tensor:
    r"""Simulate block number ``block`` of the data set with this seed.

    A member that leaves the range of finite numbers is taken from the same block drawn anew, up to
    three times; the others stay as they are.

    Args:
        system: The system.
        seed: Seed of the data set.
        block: Number of the block.
        length: Number L of states kept.
        burn_in: Number of steps taken first and thrown away.
        on_redraw: Told of each redraw, in words; by default a
            :class:`~sda_core.errors.SimulationWarning` is given.

    Returns:
        ``system.block_size`` trajectories, (block_size, L, C, \*S), in physical units.

    Raises:
        SimulationError: More than half of the members are not finite, or one is not after three
            redraws, or the system cannot compute them; says the seed and the trajectories' numbers.
    """
    first = block * system.block_size

    def draw(*attempt: int) -> Tensor:
        generator = seeded_generator(seed, block, *attempt)
        x = system.prior((system.block_size,), generator)
        return _advance(system, x, length, generator, burn_in)

    try:
        x, attempt = draw(), 0
        while diverged := _not_finite(x):
            # If most members diverge, it is not the draw that is wrong.
            if attempt == MAX_REDRAWS or 2 * len(diverged) > len(x):
                again = f"drawn again {attempt} times, " if attempt else ""
                text = _not_finite_text(system, x, diverged, burn_in + length)
                raise SimulationError(again + text)
            attempt += 1
            on_redraw(
                f"seed {seed}, trajectories {[first + member for member in diverged]}: "
                f"{type(system).__name__} left the range of finite numbers; drawn again, attempt "
                f"{attempt} of {MAX_REDRAWS}"
            )
            rows = torch.tensor(diverged, device=x.device)
            x = x.index_copy(0, rows, draw(attempt)[rows])
    except ArithmeticError as error:
        said = str(error) if isinstance(error, SimulationError) else cause_text(error)
        raise SimulationError(
            f"seed {seed}, trajectories {first} to {first + system.block_size - 1}: {said}"
        ) from error
    return x
