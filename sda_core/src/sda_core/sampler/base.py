r"""Samplers: from noise to samples.

A sampler walks a denoiser down a grid of times 1 = t_0 > t_1 > ... It consumes a denoiser and
nothing else, so every guidance runs under every sampler. The samplers differ in what they make of
the probability-flow equation

    d(x / alpha) / dr = eps,    r = sigma / alpha,

or of a stochastic one with the same marginal distributions.

Time grids
    ===========  ===================================================================
    ``time``     uniform in t
    ``log-snr``  uniform in log(alpha / sigma)
    ``rho``      (sigma / alpha)^(1/rho) uniform (Karras et al., 2022, eq. 5)
    ===========  ===================================================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Literal

import attrs
import torch
from torch import Tensor

from sda_core.config import at_least, between, component, option
from sda_core.denoiser.base import Denoiser
from sda_core.errors import ConfigError
from sda_core.random import MemberNoise, NoiseSource
from sda_core.schedule.base import Schedule


@attrs.frozen(eq=False)
class SamplerState:
    r"""How far a sampler has come: with its noise, all that it needs to resume.

    Attributes:
        x: State at the time that it has come to, (M, L, C, \*S).
        step: Index of that time in the grid; the grid's length once x is denoised at its end.
        past: What it keeps of earlier steps, newest first, each (M, L, C, \*S).
    """

    x: Tensor
    step: int = 0
    past: tuple[Tensor, ...] = ()


@component
class Sampler(ABC):
    """Turns noise into samples.

    Class attributes:
        order: Order of convergence in the number of steps, of the sample itself for
            deterministic samplers, of its mean and covariance for stochastic ones.
    """

    sda_kind: ClassVar[str] = "sampler"
    order: ClassVar[int]

    steps: int = option(default=64, check=between(2, 10**6), help="number of steps")
    grid: Literal["time", "log-snr", "rho"] = option(
        default="time", help="what the steps are uniform in"
    )
    rho: float = option(default=7.0, check=at_least(1), help="exponent of the rho grid")
    denoise_final: bool = option(
        default=True,
        help="return the denoised state of the last noise level (true), or the state that still "
        "holds the schedule's smallest noise (false)",
    )

    def times(self, schedule: Schedule) -> Tensor:
        """The grid, float64, from 1 to 0: ``steps`` points, one more without ``denoise_final``."""
        n = self.steps + (not self.denoise_final)
        u = torch.linspace(0, 1, n, dtype=torch.float64)
        if self.grid == "time":
            return 1 - u
        low, high = schedule.log_snr(u[[-1, 0]])  # at t = 1 and t = 0
        if self.grid == "log-snr":
            log_snr = low + u * (high - low)
        else:
            a, b = torch.exp(-low / 2 / self.rho), torch.exp(-high / 2 / self.rho)
            log_snr = -2 * self.rho * torch.log(a + u * (b - a))
        t = schedule.time(log_snr)
        t[0], t[-1] = 1.0, 0.0
        return t

    def sample(
        self,
        denoiser: Denoiser,
        shape: Sequence[int],
        noise: NoiseSource | None = None,
        on_step: Callable[[int, int], None] | None = None,
        on_state: Callable[[SamplerState, Tensor], None] | None = None,
        start: SamplerState | None = None,
        *,
        seed: int | None = None,
    ) -> Tensor:
        r"""Draw samples.

        Args:
            denoiser: The denoiser of what is sampled.
            shape: (M, L, C, \*S), M members.
            noise: Source of noise; it also sets type and device. None for ``seed``.
            on_step: Called with (steps done, number of steps) after each step.
            on_state: Called with each new state and its time s, ().
            start: Where to resume, with the noise as it was there; None to begin with noise.
            seed: Seed of the noise, where no source is given: float32, on the denoiser's device;
                a member depends on it and on its number alone.

        Returns:
            Samples in model space, of the given shape.

        Raises:
            ConfigError: Neither a source of noise nor a seed is given, or both are.
        """
        if (noise is None) == (seed is None):
            raise ConfigError("a sampler needs noise: give seed=0, or a source of noise")
        if noise is None:
            first = next(denoiser.parameters(), next(denoiser.buffers(), torch.empty(0)))
            noise = MemberNoise(seed or 0, range(shape[0]), device=first.device)
        grid = self.times(denoiser.schedule)
        if start is None:
            z = noise.normal(shape)
            start = SamplerState(denoiser.schedule.sigma(grid[0].to(z)) * z)
        times, state = grid.to(start.x), start

        def arrive(state: SamplerState, s: Tensor, step: int) -> None:
            if on_state:
                on_state(state, s)
            if on_step:
                on_step(step, self.steps)

        with torch.no_grad():
            for state in self.walk(denoiser, start, grid, noise):
                arrive(state, times[state.step], state.step)
            if self.denoise_final and state.step < len(grid):
                state = SamplerState(denoiser(state.x, times[-1]).detach(), len(grid))
                arrive(state, times[-1], self.steps)
        return state.x

    def walk(
        self, denoiser: Denoiser, start: SamplerState, times: Tensor, noise: NoiseSource
    ) -> Iterator[SamplerState]:
        """Go down a grid of times, without gradients.

        Args:
            denoiser: The denoiser.
            start: Where to begin.
            times: The grid, float64.
            noise: Source of noise.

        Yields:
            The state at each later time.
        """
        x, rounded = start.x, times.to(start.x)
        for i in range(start.step + 1, len(times)):
            x = self.step(denoiser, x, rounded[i - 1], rounded[i], noise)
            yield SamplerState(x, i)

    @abstractmethod
    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource
    ) -> Tensor:
        r"""Go from x_t to x_s.

        Args:
            denoiser: The denoiser.
            x: State x_t, (M, L, C, \*S).
            t: Time, ().
            s: Next time, (), s < t.
            noise: Source of noise.

        Returns:
            State x_s.
        """
