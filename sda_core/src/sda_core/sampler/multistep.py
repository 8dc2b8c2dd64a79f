"""Samplers that look back: what earlier steps evaluated stands in for further evaluations."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sda_core.config import component
from sda_core.denoiser.base import Denoiser
from sda_core.random import Noise
from sda_core.sampler.base import Sampler
from sda_core.schedule.base import Schedule


@component
class Multistep(Sampler):
    """Extrapolates the last ``order`` estimates; one evaluation per step."""

    def walk(self, denoiser: Denoiser, x: Tensor, times: Tensor, noise: Noise) -> Iterator[Tensor]:
        """Go down a grid of times; the first steps have fewer estimates to look back at."""
        past: deque[Tensor] = deque(maxlen=self.order)
        for i, (t, s) in enumerate(pairwise(times)):
            past.appendleft(self.estimate(denoiser, x, t.to(x)).detach())
            recent = times[max(0, i + 1 - self.order) : i + 1].flip(0)
            x = self.advance(denoiser.schedule, x, recent, s, past)
            yield x

    def step(self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        """One step from t to s that has nothing to look back at."""
        return next(self.walk(denoiser, x, torch.stack([t, s]), noise))

    @abstractmethod
    def estimate(self, denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
        """What is extrapolated: E[x_0 | x_t] or E[eps | x_t]."""

    @abstractmethod
    def advance(
        self, schedule: Schedule, x: Tensor, times: Tensor, s: Tensor, estimates: Sequence[Tensor]
    ) -> Tensor:
        r"""Go from x_t to x_s.

        Args:
            schedule: The noise schedule.
            x: State x_t, (M, L, C, \*S).
            times: Times of the estimates, the present time t first, float64: on fine grids
                neighbouring times may be equal in float32.
            s: Next time, (), float64.
            estimates: The estimates, each (M, L, C, \*S).

        Returns:
            State x_s.
        """
