"""Twin experiments: a simulated truth, observed."""

from __future__ import annotations

from sda_core.errors import ConfigError
from sda_core.method.base import Problem
from sda_core.observation import Observation
from sda_core.random import seeded_generator
from sda_core.system import System, trajectory


def twin_experiment(
    system: System, observation: Observation, *, length: int, seed: int = 0, burn_in: int = 1024
) -> Problem:
    """Simulate a trajectory and observe it.

    Args:
        system: The system.
        observation: What is observed of it, with its error.
        length: Number L of states.
        seed: Source of all randomness.
        burn_in: Steps that the system takes before, to come to its attractor.

    Returns:
        The problem, which knows the truth.

    Raises:
        ConfigError: The length is not positive, or the observation does not fit the system.
        SimulationError: A state is not finite.
    """
    if length < 1 or burn_in < 0:
        raise ConfigError(
            f"length = {length} must be at least 1, and burn_in = {burn_in} at least 0"
        )
    generator = seeded_generator(seed, 0)
    initial = system.prior((1,), generator)
    truth = trajectory(system, initial, length, generator, burn_in)[0]
    model = observation.bind(system.spec, length)
    y = model.sample(truth, seeded_generator(seed, 1))
    return Problem(system=system, observation=model, y=y, truth=truth)
