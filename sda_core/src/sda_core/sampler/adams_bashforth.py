r"""Exponential Adams-Bashforth methods.

References:
    - Zhang & Chen, "Fast Sampling of Diffusion Models with Exponential Integrator", 2023,
      https://arxiv.org/abs/2204.13902 (DEIS), with the polynomial in the log of the noise level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from sda_core.config import component, one_of, option
from sda_core.denoiser.base import Denoiser
from sda_core.sampler.multistep import Multistep
from sda_core.schedule.base import Schedule


@component
class AdamsBashforth(Multistep):
    r"""Deterministic steps that extrapolate eps by a polynomial in l = log(sigma / alpha).

    The equation d(x / alpha) = eps exp(l) dl is integrated exactly for that polynomial. The first
    steps know too few estimates for the full order, but where noise is strongest eps hardly varies.
    """

    order: int = option(  # type: ignore[misc]  # here the order is chosen
        default=3, check=one_of(2, 3), help="order, the number of estimates extrapolated from"
    )
    grid: Literal["time", "log-snr", "rho"] = option(
        default="log-snr", help="what the steps are uniform in"
    )

    def estimate(self, denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
        """E[eps | x_t]."""
        return denoiser.eps(x, t)

    def advance(
        self, schedule: Schedule, x: Tensor, times: Tensor, s: Tensor, estimates: Sequence[Tensor]
    ) -> Tensor:
        """x_s / alpha_s = x_t / alpha_t + sum_j w_j eps_j."""
        level = -schedule.log_snr(times) / 2
        weights = torch.exp(level[0]) * _weights(
            level - level[0], -schedule.log_snr(s) / 2 - level[0]
        )
        change = sum((w * eps for w, eps in zip(weights, estimates, strict=True)), start=0 * x)
        return schedule.alpha(s) * (x / schedule.alpha(times[0]) + change)


def _weights(nodes: Tensor, h: Tensor) -> Tensor:
    """Weights w with sum_j w_j p(node_j) = integral of e^l p(l) from 0 to h, p a polynomial."""
    # Of the powers of l, by parts.
    powers = [torch.expm1(h)]
    for k in range(1, len(nodes)):
        powers.append(h**k * torch.exp(h) - k * powers[-1])
    return torch.linalg.solve(torch.vander(nodes, increasing=True).T, torch.stack(powers))
