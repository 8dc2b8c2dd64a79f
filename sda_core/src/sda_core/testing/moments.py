r"""What a sampler makes of a denoiser: exact moments where it is affine, and grades.

Where the denoiser is affine in x_t (a Gaussian prior, with guidance that keeps it so), DDIM and
DDPM map their noise to samples by x = c + sum_k A_k z_k. Sending unit vectors through the sampler
in place of noise gives c and all A_k, and so the mean c and the covariance sum_k A_k A_k^T of its
samples, with no Monte-Carlo error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from sda_core.denoiser import Denoiser
from sda_core.guidance import Guidance
from sda_core.random import MemberNoise
from sda_core.sampler import Sampler
from sda_core.testing.chain import GaussianProblem
from sda_core.testing.gaussian import affine_map


class _CountingNoise:
    def __init__(self) -> None:
        self.draws = 0

    def normal(self, shape: Sequence[int]) -> Tensor:
        self.draws += 1
        return torch.zeros(*shape, dtype=torch.float64)


class _FixedNoise:
    """Noise given in advance, (draws, M, d)."""

    def __init__(self, z: Tensor) -> None:
        self._draws = iter(z)

    def normal(self, shape: Sequence[int]) -> Tensor:
        return next(self._draws).reshape(*shape)


def affine_moments(
    sampler: Sampler, denoiser: Denoiser, shape: Sequence[int]
) -> tuple[Tensor, Tensor] | None:
    r"""The exact mean and covariance of a sampler's samples, up to rounding.

    Args:
        sampler: The sampler.
        denoiser: The denoiser.
        shape: (L, C, \*S).

    Returns:
        Mean (d,) and covariance (d, d) in model space, float64; None where the samples are not an
        affine function of the noise (Langevin corrections, DPS).
    """
    d = math.prod(shape)
    counting = _CountingNoise()
    sampler.sample(denoiser, (1, *shape), counting)
    draws = counting.draws
    n = draws * d
    z = torch.zeros(draws, n + 3, d, dtype=torch.float64)
    # Row 0 is without noise, n rows have one unit vector each, and two show that it is affine.
    z[:, 1 : n + 1] = torch.eye(n, dtype=torch.float64).reshape(n, draws, d).transpose(0, 1)
    z[:, n + 1] = torch.randn(
        draws, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    z[:, n + 2] = -2 * z[:, n + 1]
    x = sampler.sample(denoiser, (n + 3, *shape), _FixedNoise(z)).reshape(n + 3, d)
    mean, columns, probe = x[0], x[1 : n + 1] - x[0], x[n + 1 :] - x[0]
    predicted = torch.einsum("kri,kij->rj", z[:, n + 1 :], columns.reshape(draws, d, d))
    if not torch.allclose(probe, predicted, rtol=1e-6, atol=1e-8 * float(x.abs().max())):
        return None
    return mean, columns.T @ columns


def sampled_moments(
    sampler: Sampler, denoiser: Denoiser, shape: Sequence[int], members: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """The mean (d,) and covariance (d, d) of this many samples, float64."""
    noise = MemberNoise(seed, range(members), dtype=torch.float64)
    x = sampler.sample(denoiser, (members, *shape), noise).flatten(1)
    return x.mean(0), x.T.cov()


@attrs.frozen
class Grade:
    """How far a sampled posterior is from the exact one, in units of the posterior's std.

    Attributes:
        mean: Largest error of a mean, over its exact standard deviation.
        covariance: Largest error of a covariance, over both exact standard deviations.
        exact: Whether the errors are exact; else they hold about 4 / sqrt(members) of noise.
    """

    mean: float
    covariance: float
    exact: bool


def grade(
    guidance: Guidance, sampler: Sampler, problem: GaussianProblem, members: int = 2048
) -> Grade:
    """Grade a guidance under a sampler by a problem whose answer is known.

    Args:
        guidance: The guidance, applied to the exact prior.
        sampler: The sampler.
        problem: The problem.
        members: Ensemble size, where the moments can only be estimated.
    """
    denoiser = guidance(problem.model.denoiser, problem.likelihood)
    shape = problem.problem.shape
    exact = affine_moments(sampler, denoiser, shape)
    mean, covariance = exact or sampled_moments(sampler, denoiser, shape, members)
    scale = affine_map(problem.model.standardization.to_physical, shape)[0].diagonal()
    mean = problem.model.standardization.to_physical(mean.reshape(shape))
    covariance = scale[:, None] * covariance * scale
    std = problem.std.flatten()
    return Grade(
        float(((mean - problem.mean).flatten() / std).abs().max()),
        float(((covariance - problem.covariance) / (std[:, None] * std)).abs().max()),
        exact is not None,
    )
