"""Where all is observed with errors of one size, the observations are a noised trajectory."""

from __future__ import annotations

import math

import pytest
import torch

from sda_core.random import MemberNoise
from sda_core.sampler import DDPM, SamplerState
from sda_core.schedule import VE, VP, LogNormal
from sda_core.testing import (
    GaussianChain,
    GaussianDenoiser,
    gaussian_posterior,
    linear_gaussian_moments,
)

STD, LENGTH = 0.3, 6


@pytest.fixture
def chain():
    mean, covariance = linear_gaussian_moments(GaussianChain(), LENGTH)
    y = torch.linspace(-2, 1, len(mean), dtype=torch.float64)
    H = torch.eye(len(mean), dtype=torch.float64)
    posterior = gaussian_posterior(mean, covariance, H, y, torch.full_like(y, STD))
    return mean, covariance, y.reshape(1, LENGTH, -1), posterior


@pytest.mark.parametrize("schedule", [VE(), VP(), LogNormal()])
def test_the_denoiser_of_the_observations_is_the_posterior_mean(chain, schedule) -> None:
    mean, covariance, y, (posterior, _) = chain
    t = schedule.time(torch.tensor(-2 * math.log(STD), dtype=torch.float64))
    x0 = GaussianDenoiser(mean, covariance, schedule)(schedule.alpha(t) * y, t)
    torch.testing.assert_close(x0.flatten(), posterior, rtol=1e-6, atol=1e-6)


def test_sampling_from_the_observations_on_is_the_posterior(chain) -> None:
    """Mean and variance of 4096 members, within 4 standard errors; without any guidance."""
    mean, covariance, y, (posterior, spread) = chain
    schedule, members = VE(), 4096
    denoiser = GaussianDenoiser(mean, covariance, schedule)
    ends = schedule.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64))
    low = torch.tensor(-2 * math.log(STD), dtype=torch.float64)
    times = schedule.time(low + torch.linspace(0, 1, 256, dtype=torch.float64) * (ends[0] - low))
    start = SamplerState(y.expand(members, *y.shape[1:]).clone())
    noise = MemberNoise(0, range(members), dtype=torch.float64)
    *_, end = DDPM(steps=256).walk(denoiser, start, times, noise)
    x = denoiser(end.x, times[-1]).flatten(1)
    scale = spread.diagonal().sqrt()
    assert float(((x.mean(0) - posterior) / scale).abs().max()) < 4 / math.sqrt(members)
    assert float((x.var(0) / scale**2 - 1).abs().max()) < 4 * math.sqrt(2 / members) + 0.02
