r"""Denoisers: E[x_0 | x_t], and with it noise and score.

Notation
    ===========  ================================================================
    x_t          alpha x_0 + sigma eps, shape (B, L, C, \*S), in model space
    x0           E[x_0 | x_t], what a denoiser returns
    eps          E[eps | x_t] = (x_t - alpha x0) / sigma
    score        grad log p_t(x_t) = -eps / sigma   (Tweedie)
    ===========  ================================================================

A kernel with a schedule and a parameterization is a denoiser of windows; the Markov-blanket
composition of it is a denoiser of trajectories; guidance of that is a denoiser of the posterior.
Losses, samplers and guidance know denoisers only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from sda_core.schedule.base import Schedule


def expand_time(t: Tensor, x: Tensor) -> Tensor:
    """Let t, of shape (), (B,) or (B, W), broadcast against x of shape (B, W, ...)."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim)) if t.ndim else t


def x0_to_eps(x_t: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Noise estimate of a clean-state estimate: (x_t - alpha x0) / sigma."""
    return (x_t - alpha * x0) / sigma


def eps_to_x0(x_t: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Clean-state estimate of a noise estimate: (x_t - sigma eps) / alpha."""
    return (x_t - sigma * eps) / alpha


def eps_to_score(eps: Tensor, sigma: Tensor) -> Tensor:
    """Score of a noise estimate: -eps / sigma."""
    return -eps / sigma


def score_to_x0(x_t: Tensor, score: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Clean-state estimate of a score (Tweedie's formula): (x_t + sigma^2 score) / alpha."""
    return (x_t + sigma**2 * score) / alpha


class Denoiser(nn.Module, ABC):
    """A module that gives E[x_0 | x_t] under its schedule.

    Args:
        schedule: The noise schedule that x_t follows.
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        r"""E[x_0 | x_t].

        Args:
            x_t: Noised states, (B, L, C, \*S), in model space.
            t: Diffusion time, () or (B,).

        Returns:
            The clean-state estimate, of x_t's shape.
        """

    def scales(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha(t) and sigma(t), broadcastable against x_t."""
        t = expand_time(t, x_t)
        return self.schedule.alpha(t), self.schedule.sigma(t)

    def eps(self, x_t: Tensor, t: Tensor) -> Tensor:
        """E[eps | x_t], of x_t's shape."""
        return x0_to_eps(x_t, self(x_t, t), *self.scales(x_t, t))

    def score(self, x_t: Tensor, t: Tensor) -> Tensor:
        """grad log p_t(x_t), of x_t's shape."""
        return eps_to_score(self.eps(x_t, t), self.scales(x_t, t)[1])
