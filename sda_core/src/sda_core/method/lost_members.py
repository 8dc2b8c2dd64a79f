"""Members that sampling loses, non-finite or run away: found, told of, and drawn again."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from sda_core.errors import AssimilationError, AssimilationWarning
from sda_core.random import seeded_generator
from sda_core.schedule.base import Schedule

#: How often a member is drawn at most.
ATTEMPTS = 4

#: A member has run away where |x_t| / alpha is above this many times the largest sigma / alpha.
#: Noise that nothing is taken from, as by an untrained network, stays well below.
LIMIT = 100.0


class Watch:
    """Notes at which noise level each member is lost, while a sampler runs.

    Args:
        schedule: The noise schedule.

    Attributes:
        levels: sigma / alpha at which each member was lost, NaN for those that were not, (M,).
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.levels = torch.full((1,), torch.nan)

    def __call__(self, x: Tensor, t: Tensor) -> None:
        """Look at the state x_t. Nothing is read back from the device, which would have to wait."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        size = torch.linalg.vector_norm(x.flatten(1), ord=torch.inf, dim=1)
        one = torch.ones_like(t)
        most = LIMIT * alpha * self.schedule.sigma(one) / self.schedule.alpha(one)
        lost = ~(size <= most)  # written so that NaN is lost, too
        levels = self.levels.to(x)
        self.levels = torch.where(lost & levels.isnan(), sigma / alpha, levels)


def redraw(draw: Callable[[Tensor, int], Tensor], levels: Tensor, seed: int) -> None:
    """Draw lost members again until none is lost, each from (seed, its number, attempt) alone.

    Args:
        draw: Draws members of given numbers with a given seed, and gives their levels.
        levels: sigma / alpha at which each member was lost, NaN for those that were not, (M,).
        seed: The seed that they were drawn with.

    Raises:
        AssimilationError: More than half of several members are lost, or some in every attempt.
    """
    for attempt in range(1, ATTEMPTS + 1):
        lost = (~levels.isnan()).nonzero().flatten()
        if not len(lost):
            return
        where = ", ".join(f"{level:.3g}" for level in levels[lost[:8]].tolist())
        what = (
            f"{len(lost)} of {len(levels)} members are not finite (first: {lost[:8].tolist()}, at "
            f"sigma / alpha = {where}; beyond {LIMIT:g} times the largest noise counts as such)"
        )
        if attempt == ATTEMPTS or len(lost) > max(1, len(levels) // 2):
            raise AssimilationError(
                f"{what}, after {attempt} attempt(s). The guidance is too strong for the "
                "number of steps: use more steps, a larger gamma, or a smaller tau for corrections"
            )
        warnings.warn(
            f"{what}: drawing them again, attempt {attempt + 1} of {ATTEMPTS}",
            AssimilationWarning,
            stacklevel=3,
        )
        levels[lost] = draw(lost, seeded_generator(seed, attempt).initial_seed())
