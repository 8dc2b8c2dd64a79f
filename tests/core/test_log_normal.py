"""The log-normal schedule: the distribution of its noise levels, its ends, what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

from sda_core.errors import ConfigError
from sda_core.schedule import LogNormal
from sda_core.testing import check_schedule

T = (torch.arange(10_001, dtype=torch.float64) + 0.5) / 10_001


def test_promises() -> None:
    check_schedule(LogNormal())
    check_schedule(LogNormal(sigma_min=0.02, sigma_max=10.0, mean=-1.3))


def test_the_range() -> None:
    sigma = LogNormal(sigma_min=0.02, sigma_max=10.0).sigma(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(sigma, torch.tensor([0.02, 10.0]))


def test_a_uniform_time_is_a_log_normal_noise_level() -> None:
    """Over a range that cuts hardly anything off; the middle of the times is the median."""
    log_sigma = LogNormal(sigma_min=math.exp(-6.0), sigma_max=math.exp(4.0), mean=-1.0, std=1.1)
    values = log_sigma.sigma(T).log()
    assert float(values[5_000]) == pytest.approx(-1.0)
    assert float(values.mean()) == pytest.approx(-1.0, abs=1e-3)
    assert float(values.std()) == pytest.approx(1.1, rel=1e-3)
    within = (values + 1).abs() < 1.1
    assert float(within.double().mean()) == pytest.approx(math.erf(math.sqrt(0.5)), abs=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": 0.5}, "sigma_min = 0.002 is 10.0 standard deviations of log sigma .* larger std"),
        ({"sigma_max": 1e4}, r"sigma_max = 10000.0 is 8.7 standard .* at most 5 are allowed"),
        ({"sigma_min": 90.0}, "sigma_min = 90.0 must be smaller than sigma_max = 80.0"),
    ],
)
def test_errors(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        LogNormal(**options)
