r"""What composing windows costs, measured on a denoiser of windows itself.

A state i of a long trajectory lies in W windows, and the denoiser estimates it from each of them.
Let e_j be the error of the estimate from the window in which i has position j,

    e_j = D(x_t)_j - x_0,i,    G_jl = E<e_j, e_l>,

the expectation over trajectories, states and noise, <.,.> the mean over the values of a state. The
most central position c has the largest blanket, which is what the model knows best. A composition
(stride, fold) gives a state weights a_j over positions that depend on its phase, its distance to
the start of a window. So everything follows from G:

    error of the composed estimate       E|D_s - x_0|^2 = mean over phases of a^T G a
    its excess                           E|D_s - x_0|^2 / E|D_1 - x_0|^2 - 1
    distance to the full-width estimate  E|D_s - D_1|^2 = mean over phases of (a - c)^T G (a - c)

D_1 is the fold ``center`` at stride 1. States near the ends of a trajectory, whose blanket no
stride can change, are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import attrs
import torch
from torch import Tensor

from sda_core.denoiser.base import Denoiser
from sda_core.denoiser.markov_blanket import FoldName, fold_weights
from sda_core.errors import ShapeError
from sda_core.random import MemberNoise
from sda_core.schedule.base import Schedule

#: Noise levels sigma / alpha between which the error is looked at. States have a variance of about
#: 1: with less noise than that their neighbours, and with more the states themselves, say little.
LEAST_NOISE, MOST_NOISE = 0.01, 30.0


class Estimate(NamedTuple):
    """A mean over trajectories with its standard error."""

    value: Tensor
    std_error: Tensor


def noise_levels(schedule: Schedule, count: int) -> Tensor:
    """Times t, (count,) float64, at levels sigma / alpha that are equally spaced on a log scale.

    They reach from 0.01 to 30, as far as the schedule does.
    """
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    least, most = (-schedule.log_snr(ends) / 2).tolist()
    low, high = max(math.log(LEAST_NOISE), least), min(math.log(MOST_NOISE), most)
    return schedule.time(-2 * torch.linspace(low, high, count, dtype=torch.float64))


@lru_cache(maxsize=256)
def position_weights(window: int, stride: int, fold: FoldName) -> Tensor:
    """Weight of each position in a window, by the phase of a state in a long trajectory.

    Args:
        window: Width W.
        stride: Distance s between windows.
        fold: How windows become a trajectory.

    Returns:
        (s, W), float64; each row sums to 1.
    """
    steps = math.ceil((window + stride - 2) / stride)
    weights = fold_weights(steps * stride + window, window, stride, fold)
    positions = torch.zeros(stride, window, dtype=weights.dtype)
    for phase in range(stride):
        state = window - 1 + phase  # all windows that could hold it are there
        for n in range(steps + 1):
            j = state - n * stride
            if 0 <= j < window:
                positions[phase, j] = weights[n, j]
    return positions


@attrs.frozen(kw_only=True, eq=False)
class CompositionError:
    """Errors of a denoiser of windows by position, and what follows for any composition.

    Attributes:
        window: Width W.
        times: Diffusion times t, (T,).
        noise: Noise levels sigma / alpha there, (T,).
        products: Products G of the errors at two positions, of each trajectory, (N, T, W, W).
    """

    window: int
    times: Tensor
    noise: Tensor
    products: Tensor

    @property
    def full(self) -> Estimate:
        """E|D_1 - x_0|^2 of the most central position, per value of a state, (T,)."""
        errors = self._error(self._central[None])
        return Estimate(errors.mean(0), errors.std(0) / len(errors) ** 0.5)

    def excess_at(self, blanket: int) -> Estimate:
        """Excess error of positions with so many states to the nearer end of the window, (T,)."""
        ends = torch.tensor([blanket, self.window - 1 - blanket])
        at = torch.nn.functional.one_hot(ends, self.window).to(self.products)
        return self._relative(self._error(at), minus=1.0)

    def excess(self, stride: int, fold: FoldName = "center") -> Estimate:
        """E|D_s - x_0|^2 / E|D_1 - x_0|^2 - 1 of a composition, (T,)."""
        return self._relative(self._error(position_weights(self.window, stride, fold)), minus=1.0)

    def difference(self, stride: int, fold: FoldName = "center") -> Estimate:
        """E|D_s - D_1|^2 / E|D_1 - x_0|^2 of a composition, (T,)."""
        weights = position_weights(self.window, stride, fold) - self._central
        return self._relative(self._error(weights))

    def worst_excess(self, stride: int, fold: FoldName = "center") -> float:
        """The excess of a composition at the noise level where it is largest."""
        return float(self.excess(stride, fold).value.max())

    def recommended_stride(self, tolerance: float, fold: FoldName = "center") -> int | None:
        """The largest stride whose excess is below a tolerance at every noise level, if any is."""
        strides = range(self.window, 0, -1)
        return next((s for s in strides if self.worst_excess(s, fold) < tolerance), None)

    @property
    def _central(self) -> Tensor:
        return position_weights(self.window, 1, "center")[0]

    def _error(self, weights: Tensor) -> Tensor:
        """Mean over the rows a of weights of a^T G a, (N, T)."""
        return torch.einsum("pj,ntjl,pl->nt", weights, self.products, weights) / len(weights)

    def _relative(self, errors: Tensor, minus: float = 0.0) -> Estimate:
        """A ratio of means to the full-width error; the noise that both share cancels."""
        full = self._error(self._central[None])
        ratio = errors.mean(0) / full.mean(0)
        scatter = (errors - ratio * full).std(0) / len(errors) ** 0.5
        return Estimate(ratio - minus, scatter / full.mean(0))


def composition_error(
    denoiser: Denoiser,
    window: int,
    x: Tensor,
    times: Tensor,
    seed: int,
    *,
    chunk_size: int = 64,
    on_step: Callable[[int, int], None] | None = None,
) -> CompositionError:
    r"""Measure the errors of a denoiser of windows at all positions, on common noise.

    Args:
        denoiser: Denoiser of windows (B, W, C, \*S).
        window: Its width W.
        x: Clean trajectories in model space, (N, L, C, \*S), with L >= 2 W - 1; the states from
            W - 1 to L - W are used, which all W windows hold.
        times: Diffusion times, (T,).
        seed: Source of the noise; that of a trajectory is the same at all noise levels.
        chunk_size: Windows that are evaluated at once.
        on_step: Called with (evaluations of a whole trajectory done, their number).

    Raises:
        ShapeError: The trajectories are too short, or there is only one.
    """
    N, L = x.shape[:2]
    if N < 2 or 2 * window - 1 > L:
        raise ShapeError(
            f"the composition error was asked for from {N} trajectories of {L} states: give two or "
            f"more, for a standard error, of at least {2 * window - 1} states, so that one lies in "
            f"{window} windows of {window}"
        )
    products = torch.zeros(N, len(times), window, window, dtype=torch.float64)
    positions = torch.arange(window)
    states = range(window - 1, L - window + 1)
    for n, clean in enumerate(x):
        eps = MemberNoise(seed, [n], x.dtype, x.device).normal((1, L, *x.shape[2:]))[0]
        truth = clean.unfold(0, window, 1).movedim(-1, 1)  # (L - W + 1, W, C, *S)
        for level, t in enumerate(times.to(x)):
            alpha, sigma = denoiser.schedule.alpha(t), denoiser.schedule.sigma(t)
            noised = (alpha * clean + sigma * eps).unfold(0, window, 1).movedim(-1, 1)
            with torch.no_grad():
                parts = [denoiser(part, t) for part in noised.split(chunk_size)]
            error = (torch.cat(parts) - truth).flatten(2)
            for i in states:
                e = error[i - positions, positions].double()  # (W, values of a state)
                products[n, level] += (e @ e.T).cpu() / e.shape[1]
            if on_step:
                on_step(n * len(times) + level + 1, N * len(times))
    alpha, sigma = denoiser.schedule.alpha(times), denoiser.schedule.sigma(times)
    return CompositionError(
        window=window, times=times, noise=sigma / alpha, products=products / len(states)
    )
