r"""Denoisers of windows of which some states are known: for forecasts in blocks.

The diffusion time t is given by state, (B, W): 0 for a known state, which is held, and the noise
level of the others. From the known states k alone a first network (the head) forecasts mean m and
standard deviation s of every other value, and the second one denoises what is left of it,

    z = (x - m) / s + r eps,   E[u | z, k] = c^2 z + r c F(c z, m, log r),   c = 1 / sqrt(1 + r^2),

with u = (x - m) / s and r = sigma / alpha: the preconditioning of Karras et al. (2022,
https://arxiv.org/abs/2206.00364, table 1) with the spread of the forecast for that of the data. A
chaotic system's next states are within a small spread of their forecast, so that the diffusion
has little left to do, and few steps are enough.

The loss is the mean square error of F, plus the Gaussian negative log likelihood of the head, from
which F's error takes no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import attrs
import torch
from torch import Generator, Tensor, nn

from sda_core.denoiser.base import Denoiser, expand_time
from sda_core.denoiser.window import Network, WindowDenoiser
from sda_core.schedule.base import Schedule

#: Which states of a window are known: none; the first ones; the first ones and the last.
PatternName = Literal["joint", "forecast", "infill"]
#: Bounds of log s, in standard deviations of the data.
_LOG_STD = (-7.0, 2.0)
#: Before training: log s, and the share of the head's outputs in m and log s.
_FIRST_LOG_STD, _FIRST_GAIN = -1.0, 0.1
#: log r is divided by this where a network sees it.
_LOG_LEVEL_SCALE = 4.0


@attrs.frozen(kw_only=True, eq=False)
class Conditional:
    r"""The distribution of a block of states, given those before: x = mean + std z.

    Attributes:
        denoiser: The denoiser of z, (N, K, C, \*S).
        mean: Mean of the forecast in model space, (N, K, C, \*S).
        std: Its standard deviation, likewise.
    """

    denoiser: Denoiser
    mean: Tensor
    std: Tensor

    def to_states(self, z: Tensor) -> Tensor:
        """States in model space."""
        return self.mean + self.std * z


class ForecastDenoiser(WindowDenoiser):
    r"""E[x_0 | x_t, known states] of windows (B, W, C, \*S).

    Args:
        kernel: The network F, built for 4 C variables: c z, m, log r and whether it is known; the
            first C of its outputs count.
        head: The network that forecasts, built for 2 C variables: the known values and whether each
            is known; it gives the mean, from the nearest known states on, and log s.
        schedule: The noise schedule of z.
        window: The width W that both were built for.
        variables: Number C of variables.
        patterns: Which states are known, in equal shares of the training.
        past: How many states are known before a forecast.
        context: Static fields that both are given with every window, (K, \*S).
    """

    _masks: Tensor

    def __init__(
        self,
        kernel: nn.Module,
        head: nn.Module,
        schedule: Schedule,
        window: int,
        variables: int,
        patterns: Sequence[PatternName],
        past: int,
        context: Tensor | None = None,
    ) -> None:
        super().__init__(kernel, schedule, window, "edm", context)
        self.head = head
        self.patterns, self.past = tuple(patterns), past
        self.offset = nn.Parameter(torch.zeros(2, window, variables))
        masks = torch.stack([self.known(pattern) for pattern in self.patterns])
        self.register_buffer("_masks", masks, persistent=False)
        self.gain = nn.Parameter(torch.full((2, window, variables), _FIRST_GAIN))

    @property
    def block(self) -> int:
        """Number of states that a forecast gives."""
        return self.window - self.past

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        r"""E[x_0 | x_t]: (B, W, C, \*S), () or (B,) or (B, W) -> (B, W, C, \*S)."""
        times = _by_state(t, x_t)
        alpha, sigma = self.scales(x_t, times)
        known = expand_time(times == 0, x_t)
        mean, std = self.forecast(torch.where(known, x_t, 0), times == 0)
        z = torch.where(known, 0, (x_t / alpha - mean) / std)
        level = torch.where(known, 0, sigma / alpha / std)
        u = self.denoised(z, level, mean, times)
        return torch.where(known, x_t, mean + std * u)

    def forecast(self, values: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        r"""Mean and standard deviation of each value, given the known states.

        Args:
            values: The known states in model space, zero where a state is not known,
                (B, W, C, \*S).
            known: Which states are known, (B, W).

        Returns:
            Both of the shape of ``values``; known ones are their mean.
        """
        mask = expand_time(known, values).expand_as(values)
        inputs = torch.cat((values, mask.to(values)), dim=2)
        mean, log_std = self._evaluate(self.head, inputs, values.new_zeros(len(values))).chunk(2, 2)
        per = (2, *self.offset.shape[1:], *(1,) * (values.ndim - 3))
        gain, offset = self.gain.reshape(per), self.offset.reshape(per)
        mean = _nearest(values, known) + gain[0] * mean.float() + offset[0]
        log_std = gain[1] * log_std.float() + offset[1] + _FIRST_LOG_STD
        std = log_std.clamp(*_LOG_STD).exp()
        return torch.where(mask, values, mean), torch.where(mask, 1, std)

    def conditional(self, past: Tensor | None, shape: Sequence[int]) -> Conditional:
        r"""The distribution of the next states, or that of a window where nothing is known.

        Args:
            past: The states before, in model space, (N, P, C, \*S); None if none is known.
            shape: (N, C, \*S), of a state in each row.
        """
        rows, *state = shape
        first = 0 if past is None else self.past
        values = self.offset.new_zeros(rows, self.window, *state)
        known = torch.zeros(rows, self.window, dtype=torch.bool, device=values.device)
        if past is not None:
            values[:, :first], known[:, :first] = past, True
        mean, std = self.forecast(values, known)
        block = _Block(self, mean, first)
        return Conditional(denoiser=block, mean=mean[:, first:], std=std[:, first:])

    def draw(self, x: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        r"""Times by state and noise for the loss of a batch: (B, W), and of x's shape."""
        t, eps = super().draw(x, generator)
        choice = torch.randint(
            len(self.patterns), t.shape, generator=generator, device=generator.device
        )
        known = self._masks[choice.to(x.device)]
        return torch.where(known, 0, t[:, None].clamp_min(torch.finfo(t.dtype).tiny)), eps

    def known(self, pattern: PatternName) -> Tensor:
        """Which states of a window are known in a pattern, (W,)."""
        index = torch.arange(self.window)
        if pattern == "joint":
            return index < 0
        known = index < self.past
        return known | (index == self.window - 1) if pattern == "infill" else known

    def network(self, x: Tensor, t: Tensor) -> Tensor:
        r"""Errors of both networks: x and eps, (2, B, W, C, \*S), and (B, W) -> (2, B, W, C, \*S).

        Those of F squared, and the head's negative log likelihood above its lowest one; zero where
        a state is known.
        """
        x, eps = x.unbind()
        known = expand_time(t == 0, x)
        mean, std = self.forecast(torch.where(known, x, 0), t == 0)
        spread = (x - mean) / std
        likelihood = spread.square() / 2 + std.log() - _LOG_STD[0]
        u, mean = spread.detach(), mean.detach()
        alpha, sigma = self.scales(x, t)
        level = sigma / alpha
        z, c = u + level * eps, (1 + level**2).rsqrt()
        output = self._output(torch.where(known, 0, z), torch.where(known, 0, level), mean, t)
        error = (output - (u - c**2 * z) / (level * c)).square()
        return torch.where(known, 0, torch.stack((error, likelihood)))

    def errors_at(
        self, x: Tensor, t: Tensor, eps: Tensor, network: Network | None = None
    ) -> Tensor:
        """The sum of both errors, of x's shape, in which unknown states count for known ones."""
        evaluate = self.network if network is None else network
        error = evaluate(torch.stack((x, eps)), t).sum(0)
        share = (t != 0).float().mean(1)
        return error / expand_time(share, error)

    def denoised(self, z: Tensor, level: Tensor, mean: Tensor, t: Tensor) -> Tensor:
        r"""E[u | z, known states].

        Args:
            z: u with noise, zero where a state is known, (B, W, C, \*S).
            level: The level r of each value, likewise.
            mean: Mean of the forecast, likewise.
            t: Times by state, (B, W) or (B, 1).
        """
        c = (1 + level**2).rsqrt()
        return c**2 * z + level * c * self._output(z, level, mean, t)

    def _output(self, z: Tensor, level: Tensor, mean: Tensor, t: Tensor) -> Tensor:
        c, known = (1 + level**2).rsqrt(), level == 0
        log_level = torch.where(known, 0, level).clamp_min(1e-30).log() / _LOG_LEVEL_SCALE
        parts = (c * z, mean, torch.where(known, 0, log_level), known.to(z))
        inputs = torch.cat([part.expand_as(z) for part in parts], dim=2)
        return self._evaluate(self.kernel, inputs, t.amax(1))[:, :, : z.shape[2]].float()

    def _evaluate(self, network: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = network(x, t) if self.context is None else network(x, t, self.context)
        return out


class _Block(Denoiser):
    """The denoiser of z, the states after the first ones."""

    def __init__(self, model: ForecastDenoiser, mean: Tensor, first: int) -> None:
        super().__init__(model.schedule)
        self.model, self._mean, self._first = model, mean, first

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """E[z_0 | z_t], (N, K, C, *S), () or (N,)."""
        alpha, sigma = self.scales(x_t, t)
        held = x_t.new_zeros(len(x_t), self._first, *x_t.shape[2:])
        z = torch.cat((held, x_t / alpha), dim=1)
        level = torch.cat((held, (sigma / alpha).expand_as(x_t)), dim=1)
        times = t.expand(len(x_t))[:, None]
        return self.model.denoised(z, level, self._mean, times)[:, self._first :]


def _by_state(t: Tensor, x: Tensor) -> Tensor:
    """Times (), (B,) or (B, W) as (B, W)."""
    t = t[:, None] if t.ndim == 1 else t
    return t.expand(x.shape[:2])


def _nearest(values: Tensor, known: Tensor) -> Tensor:
    """Each state by linear interpolation in time between the nearest known ones; else zero.

    Args:
        values: The known states, zero elsewhere, (B, W, C, *S).
        known: Which are known, (B, W).
    """
    W = known.shape[1]
    index = torch.arange(W, device=known.device)
    before = torch.where(known, index, -1).cummax(1).values
    after = torch.where(known, index, W).flip(1).cummin(1).values.flip(1)
    left, right = (before >= 0).to(values), (after < W).to(values)
    distance = (after - before).clamp_min(1).to(values)
    share = torch.where(left * right > 0, (index - before).to(values) / distance, right)
    rows = torch.arange(len(known), device=known.device)[:, None]
    first, last = values[rows, before.clamp_min(0)], values[rows, after.clamp_max(W - 1)]
    share, none = expand_time(share, values), expand_time((left + right) == 0, values)
    return torch.where(none, 0, torch.lerp(first, last, share))
