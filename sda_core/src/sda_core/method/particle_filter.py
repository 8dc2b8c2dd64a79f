r"""Bootstrap particle filter.

References:
    - Gordon, Salmond & Smith, "Novel approach to nonlinear/non-Gaussian Bayesian state
      estimation", 1993, https://doi.org/10.1049/ip-f-2.1993.0015
"""

from __future__ import annotations

import torch
from torch import Tensor

from sda_core.config import at_least, component, non_negative, option
from sda_core.errors import AssimilationError
from sda_core.method.base import Execution, Method, Problem
from sda_core.method.resampling import check_members, systematic_resampling
from sda_core.random import seeded_generator


@component
class ParticleFilter(Method):
    r"""Moves particles with the system and resamples whole paths by their likelihood.

    The first state is distributed as the system's prior after ``burn_in`` transitions. Particles
    are resampled (systematically) at each time that has observations. Asymptotically exact; for a
    finite number of particles the early states of paths descend from few ancestors.

    Good values: 16,384 particles for noisy Lorenz-63.
    """

    particles: int = option(default=16384, check=at_least(2), help="number of particles")
    burn_in: int = option(default=64, check=non_negative, help="transitions from the prior to x_1")

    def draw(
        self, problem: Problem, members: int, seed: int, execution: Execution = Execution()
    ) -> Tensor:
        """Filter, then draw ``members`` of the surviving paths.

        Raises:
            AssimilationError: There are more members than particles, the operator mixes times, or
                no particle is compatible with the observations.
        """
        check_members(members, self.particles)
        generator = seeded_generator(seed)
        x = problem.system.prior((self.particles,), generator)
        for _ in range(self.burn_in):
            x = problem.system.transition(x, generator)
        states: list[Tensor] = []
        ancestors: list[Tensor] = []  # of each particle of this time, at the time before
        parents = torch.arange(self.particles)
        for i in range(problem.length):
            if i:
                x = problem.system.transition(x, generator)
            log_w = problem.observation.log_prob_at(i, problem.y, x)
            states.append(x)
            ancestors.append(parents)
            parents = torch.arange(self.particles)
            if log_w is not None:
                parents = self._resample(log_w, i, generator)
                x = x[parents]
            if execution.on_step:
                execution.on_step(i + 1, problem.length)
        # Resampled indices only point back one time: walk the family tree from the leaves.
        index = parents[torch.randperm(self.particles, generator=generator)[:members]]
        path = []
        for state, parents in zip(reversed(states), reversed(ancestors), strict=True):
            path.append(state[index])
            index = parents[index]
        return torch.stack(path[::-1], dim=1)

    def _resample(self, log_w: Tensor, time: int, generator: torch.Generator) -> Tensor:
        if not bool(torch.isfinite(log_w).any()):
            raise AssimilationError(
                f"particle filter: no particle is compatible with the observations at time index "
                f"{time}. Use more particles (now {self.particles}) or check the observations' "
                "units and std"
            )
        return systematic_resampling(log_w, generator, self.particles)
