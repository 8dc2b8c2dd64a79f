"""What every sampler promises."""

from __future__ import annotations

import torch
from torch import Tensor

from sda_core.denoiser import Denoiser
from sda_core.random import MemberNoise
from sda_core.sampler import Sampler
from sda_core.schedule import VE, VP, RectifiedFlow, Schedule
from sda_core.testing.chain import gaussian_problem
from sda_core.testing.moments import affine_moments, sampled_moments
from sda_core.testing.promises import keep, require, require_close

_LENGTH = 3


def _prior(schedule: Schedule | None = None) -> Denoiser:
    return gaussian_problem(length=_LENGTH, schedule=schedule).model.denoiser


def _sample(sampler: Sampler, members: range, seed: int = 0) -> Tensor:
    noise = MemberNoise(seed, members, dtype=torch.float64)
    return sampler.sample(_prior(), (len(members), _LENGTH, 2), noise)


def _grid(sampler: Sampler, tolerance: float) -> None:
    """Times fall strictly from 1 to 0, for any schedule."""
    for schedule in (VP(), VE(), RectifiedFlow()):
        times = sampler.times(schedule)
        require(float(times[0]) == 1 and float(times[-1]) == 0, f"they are {times.tolist()}")
        require(bool((times.diff() < 0).all()), f"they do not fall: {times.tolist()}")


def _shape(sampler: Sampler, tolerance: float) -> None:
    """Samples have the shape asked for and the noise's type, are finite, and keep no graph."""
    for dtype in (torch.float32, torch.float64):
        noise = MemberNoise(0, range(4), dtype=dtype)
        x = sampler.sample(_prior(), (4, _LENGTH, 2), noise)
        require(
            x.shape == (4, _LENGTH, 2) and x.dtype == dtype,
            f"(4, {_LENGTH}, 2), {dtype} became {tuple(x.shape)}, {x.dtype}",
        )
        require(bool(x.isfinite().all()), f"samples in {dtype} are not finite")
        require(not x.requires_grad, "samples require gradients")


def _noise(sampler: Sampler, tolerance: float) -> None:
    """The noise given is all the randomness there is."""
    state = torch.get_rng_state()
    first, second = (_sample(sampler, range(4)) for _ in range(2))
    require(torch.equal(first, second), "the same noise gives other samples")
    require(torch.equal(torch.get_rng_state(), state), "it drew from torch's global state")
    require(
        not torch.equal(first, _sample(sampler, range(4), seed=1)), "other noise changes nothing"
    )


def _members(sampler: Sampler, tolerance: float) -> None:
    """A member does not depend on its batch mates."""
    together, alone = _sample(sampler, range(4)), _sample(sampler, range(2, 3))
    require_close(alone, together[2:3], "member 2 alone", rtol=1e-8, atol=1e-8)


def _progress(sampler: Sampler, tolerance: float) -> None:
    """on_step hears (steps done, number of steps), rising to the end."""
    heard: list[tuple[int, int]] = []
    noise = MemberNoise(0, range(1), dtype=torch.float64)
    sampler.sample(_prior(), (1, _LENGTH, 2), noise, on_step=lambda i, n: heard.append((i, n)))
    require(heard == [(i + 1, len(heard)) for i in range(len(heard))], f"it heard {heard}")
    require(heard, "it heard nothing")


def _moments(sampler: Sampler, tolerance: float) -> None:
    """Samples of a Gaussian have its mean and covariance, up to the declared tolerance."""
    problem = gaussian_problem(length=_LENGTH)
    denoiser, shape = problem.model.denoiser, problem.problem.shape
    mean, covariance = affine_moments(sampler, denoiser, shape) or sampled_moments(
        sampler, denoiser, shape, members=4096
    )
    std = denoiser.covariance.diagonal().sqrt()
    error_mean = float(((mean - denoiser.mean.flatten()) / std).abs().max())
    error = float(((covariance - denoiser.covariance) / (std[:, None] * std)).abs().max())
    require(error_mean < tolerance, f"a mean is {error_mean:.3f} std off (allowed: {tolerance})")
    require(error < tolerance, f"a covariance is {error:.3f} std^2 off (allowed: {tolerance})")


PROMISES = (_grid, _shape, _noise, _members, _progress, _moments)

#: Allowed error of mean and covariance, in units of the std.
DEFAULT_TOLERANCE = 0.1


def check_sampler(sampler: Sampler, tolerance: float = DEFAULT_TOLERANCE) -> None:
    """Check what every sampler promises.

    Args:
        sampler: The sampler, with as many steps as it takes to keep the tolerance.
        tolerance: Allowed error of mean and covariance, in units of the standard deviation.

    Raises:
        AssertionError: A promise is broken; says which, and how.
    """
    keep(PROMISES, sampler, tolerance)
