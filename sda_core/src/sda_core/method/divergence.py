"""Members that diverge, so that they are not finite or run away: found, reported, drawn again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sda_core.data import Standardization
from sda_core.errors import AssimilationWarning, DivergedMembersError
from sda_core.observation import ObservationModel
from sda_core.schedule.base import Schedule

#: How often a member is drawn at most.
ATTEMPTS = 4

#: A member has run away where |x_t| / alpha is above this many times the largest sigma / alpha.
#: Noise that nothing is taken from, as by an untrained network, stays well below.
LIMIT = 100.0


#: Root-mean-square misfit of a posterior, in errors, above which it says little of the states.
MISFIT_LIMIT = 3.0

_ADVICE = (
    "The guidance may be too strong for the number of steps: use more steps or weaker guidance (a "
    "larger gamma, of 'gaussian' in squared units of what is observed; 'auto' finds one)"
)


class DivergenceMonitor:
    """Notes at which noise level each member diverges, while a sampler runs.

    Args:
        schedule: The noise schedule.

    Attributes:
        levels: sigma / alpha at which each member diverged, NaN for those that did not, (M,).
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
        diverged = ~(size <= most)  # written so that NaN has diverged, too
        levels = self.levels.to(x)
        self.levels = torch.where(diverged & levels.isnan(), sigma / alpha, levels)


class RedrawTracker:
    """How often each member was drawn, and which diverged.

    Args:
        members: Number M of members.
        levels: sigma / alpha at which each diverged when it was last drawn, NaN for those that did
            not, infinite for those never drawn, (M,); None for none drawn.
        attempts: How often each was drawn, (M,); None for none drawn.
    """

    def __init__(
        self, members: int, levels: Tensor | None = None, attempts: Tensor | None = None
    ) -> None:
        self.levels = torch.full((members,), torch.inf) if levels is None else levels
        self.attempts = torch.zeros(members, dtype=torch.long) if attempts is None else attempts

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What it takes to make them again."""
        return {"levels": self.levels, "attempts": self.attempts}

    def record(self, numbers: Tensor, levels: Tensor) -> None:
        """Members of these numbers were drawn, with these levels."""
        self.levels[numbers] = levels
        self.attempts[numbers] += 1

    def complete(self, draw: Callable[[Tensor, int], None]) -> None:
        """Draw all members, and diverged ones again until none has.

        Args:
            draw: Draws and notes members of given numbers, in the attempt of a given number.

        Raises:
            DivergedMembersError: More than half of several members diverge, or some in every
                attempt.
        """
        for attempt in range(ATTEMPTS + 1):
            diverged = (~self.levels.isnan()).nonzero().flatten()
            if not len(diverged):
                return
            if attempt == self.attempts.max() > 0:  # nobody was drawn in this attempt before
                self._warn(diverged, attempt)
            todo = diverged[self.attempts[diverged] <= attempt]
            if len(todo):  # of a resumed attempt, some were drawn before
                draw(todo, attempt)

    def _warn(self, diverged: Tensor, attempts: int) -> None:
        first, members = diverged[:8].tolist(), len(self.levels)
        where = ", ".join(f"{level:.3g}" for level in self.levels[first].tolist())
        what = (
            f"{len(diverged)} of {members} members are not finite (first: {first}, at "
            f"sigma / alpha = {where}; beyond {LIMIT:g} times the largest noise counts as such)"
        )
        if attempts == ATTEMPTS or len(diverged) > max(1, members // 2):
            raise DivergedMembersError(
                f"{what}, after {attempts} attempt(s). {_ADVICE}, or a smaller tau for corrections"
            )
        warnings.warn(
            f"{what}: drawing them again, attempt {attempts + 1} of {ATTEMPTS}",
            AssimilationWarning,
            stacklevel=4,
        )


def warn_out_of_range(x: Tensor, scaling: Standardization, names: Sequence[str]) -> None:
    r"""Warn of members with states beyond the :meth:`~Standardization.limits` of the data.

    Args:
        x: The ensemble in physical units, (M, L, C, \*S).
        scaling: The standardization of the data.
        names: Names of the variables.
    """
    lower, upper = scaling.limits()
    beyond = torch.stack([_by_variable(~((m >= lower) & (m <= upper))) for m in x])  # (M, C)
    members = beyond.any(1).nonzero().flatten().tolist()
    if not members:
        return
    of = [name for name, found in zip(names, beyond.any(0).tolist(), strict=True) if found]
    warnings.warn(
        f"{len(members)} of {len(x)} members (first: {members[:8]}) have values of "
        f"{', '.join(of)} that are absurd, far outside of the range of the data: they have "
        f"diverged. {_ADVICE}; or the model needs more training",
        AssimilationWarning,
        stacklevel=4,
    )


def _by_variable(beyond: Tensor) -> Tensor:
    return beyond.reshape(*beyond.shape[:2], -1).any(2).any(0)


def warn_misfit(observation: ObservationModel, y: Tensor, x: Tensor, *, guided: bool) -> None:
    r"""Warn of an ensemble (M, L, C, \*S) that is far from its observations, (\*obs)."""
    squares = torch.stack([observation.misfit(y, member.double()).mean() for member in x])
    misfit = float(squares.mean().sqrt())
    if not misfit <= MISFIT_LIMIT:
        far = int((squares.sqrt() > MISFIT_LIMIT).sum())
        advice = f"{_ADVICE}; or the model needs more training; or the" if guided else "The"
        warnings.warn(
            f"the posterior misses its observations by {misfit:.3g} errors (root mean square; 1 "
            f"is right), {far} of {len(x)} members by more than {MISFIT_LIMIT:g}. {advice} errors "
            "of the observations may be understated",
            AssimilationWarning,
            stacklevel=4,
        )
