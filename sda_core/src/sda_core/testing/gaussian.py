r"""Gaussian problems, where everything is known in closed form.

With x_0 ~ N(m, C) and x_t = alpha x_0 + sigma eps,

    E[x_0 | x_t] = m + alpha C (alpha^2 C + sigma^2 I)^-1 (x_t - alpha m),

and with y = H x_0 + N(0, R) the posterior is N(m + K (y - H m), (I - K H) C), where
K = C H^T (H C H^T + R)^-1. Trajectories (L, C, \*S) are flattened to vectors of d values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from sda_core.denoiser import Conditional, Denoiser
from sda_core.guidance import Guidance, Likelihood
from sda_core.schedule import Schedule


class GaussianDenoiser(Denoiser):
    r"""The exact E[x_0 | x_t] of Gaussian trajectories.

    Args:
        mean: m, (L, C, \*S).
        covariance: C, (d, d) with d = L C prod(S).
        schedule: The noise schedule.

    Attributes:
        past: Number of states that a forecast is given.
        block: Number of states that it gives; with ``past`` at most L.
    """

    past = 1
    block = 2

    mean: Tensor
    covariance: Tensor
    variances: Tensor
    directions: Tensor

    def __init__(self, mean: Tensor, covariance: Tensor, schedule: Schedule) -> None:
        super().__init__(schedule)
        variances, directions = torch.linalg.eigh(covariance)
        self.register_buffer("mean", mean)
        self.register_buffer("covariance", covariance)
        self.register_buffer("variances", variances.clamp_min(0))
        self.register_buffer("directions", directions)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        r"""E[x_0 | x_t]: (B, L, C, \*S), () or (B,) -> (B, L, C, \*S)."""
        alpha, sigma = (scale.reshape(-1, 1) for scale in self.scales(x_t, t))
        mean, U, v = (m.to(x_t) for m in (self.mean, self.directions, self.variances))
        gain = alpha * v / (alpha**2 * v + sigma**2)
        offset = (x_t.flatten(1) - alpha * mean.flatten()) @ U
        return (mean.flatten() + (gain * offset) @ U.T).reshape(x_t.shape)

    def conditional(self, past: Tensor | None, shape: Sequence[int]) -> Conditional:
        r"""The exact distribution of the next states, of a stationary process.

        As :meth:`sda_core.denoiser.ForecastDenoiser.conditional` gives it.
        """
        rows, *state = shape
        width, n = self.past + self.block, math.prod(state)
        m, C = self.mean.flatten()[: width * n], self.covariance[: width * n, : width * n]
        mean = m.expand(rows, -1)
        if past is not None:
            k = self.past * n
            K = torch.linalg.solve(C[:k, :k], C[:k, k:]).T
            mean = m[k:] + (past.flatten(1).to(m) - m[:k]) @ K.T
            C = C[k:, k:] - K @ C[:k, k:]
        std = C.diagonal().sqrt()
        of = (len(std) // n, *state)
        denoiser = GaussianDenoiser(m.new_zeros(of), C / std[:, None] / std, self.schedule)
        return Conditional(
            denoiser=denoiser,
            mean=mean.reshape(rows, *of).float(),
            std=std.reshape(of).expand(rows, *of).float(),
        )


def gaussian_posterior(
    mean: Tensor, covariance: Tensor, H: Tensor, y: Tensor, std: Tensor
) -> tuple[Tensor, Tensor]:
    """Condition N(mean, covariance) on y = H x + N(0, std^2).

    Args:
        mean: (d,).
        covariance: (d, d).
        H: (n, d).
        y: (n,).
        std: (n,) or ().

    Returns:
        Mean (d,) and covariance (d, d) of x given y.
    """
    R = (std.expand(len(y)) ** 2).diag()
    K = torch.linalg.solve(H @ covariance @ H.T + R, H @ covariance).T
    rest = torch.eye(len(mean), dtype=mean.dtype) - K @ H
    # Joseph's form stays positive definite however small std is.
    return mean + K @ (y - H @ mean), rest @ covariance @ rest.T + K @ R @ K.T


def affine_map(operator: Callable[[Tensor], Tensor], shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    r"""The matrix H and offset c of an affine operator A(x) = H x + c on flattened trajectories.

    Args:
        operator: A, (B, L, C, \*S) -> (B, \*obs).
        shape: (L, C, \*S).

    Returns:
        H, (n, d), and c, (n,), float64.
    """
    d = int(torch.tensor(shape).prod())
    c = operator(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
    columns = operator(torch.eye(d, dtype=torch.float64).reshape(d, *shape)).reshape(d, -1)
    return (columns - c).T, c


class ExactGuidance(Guidance):
    """Exact guidance of a :class:`GaussianDenoiser` by an affine operator: the reference."""

    exact_for_gaussian: ClassVar[bool] = True

    def __call__(self, prior: Denoiser, likelihood: Likelihood) -> GaussianDenoiser:
        """Make the denoiser of the posterior.

        Raises:
            TypeError: The prior is not Gaussian.
        """
        if not isinstance(prior, GaussianDenoiser):
            raise TypeError(f"exact guidance takes a GaussianDenoiser, got {type(prior).__name__}")
        # Whitened residuals, y - H x with independent errors.
        H, y = affine_map(likelihood.residual, prior.mean.shape)
        mean, covariance = gaussian_posterior(
            prior.mean.flatten().double(),
            prior.covariance.double(),
            -H,
            y,
            likelihood.noise.std,
        )
        return GaussianDenoiser(mean.reshape(prior.mean.shape), covariance, prior.schedule)
