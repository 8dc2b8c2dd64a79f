"""Samplers that look back: what earlier steps evaluated stands in for further evaluations."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sda_core.config import component
from sda_core.denoiser.base import Denoiser
from sda_core.random import NoiseSource
from sda_core.sampler.base import Sampler, SamplerState
from sda_core.schedule.base import Schedule


@component
class Multistep(Sampler):
    """Extrapolates the last ``order`` estimates; one evaluation per step."""

    def walk(
        self, denoiser: Denoiser, start: SamplerState, times: Tensor, noise: NoiseSource
    ) -> Iterator[SamplerState]:
        """Go down a grid of times; the first steps have fewer estimates to look back at."""
        x, past = start.x, start.past
        for i in range(start.step + 1, len(times)):
            estimates = (self.estimate(denoiser, x, times[i - 1].to(x)).detach(), *past)
            recent = times[i - len(estimates) : i].flip(0)
            x = self.advance(denoiser.schedule, x, recent, times[i], estimates)
            past = estimates[: self.order - 1]
            yield SamplerState(x, i, past)

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource
    ) -> Tensor:
        """One step from t to s that has nothing to look back at."""
        return next(self.walk(denoiser, SamplerState(x), torch.stack([t, s]), noise)).x

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
