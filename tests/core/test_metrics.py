"""Scores, against hand-made and closed-form values."""

from __future__ import annotations

import math

import numpy as np
import ot
import pytest
import torch

from sda_core.metrics import coverage, crps, log_prior, rmse, spread, wasserstein1
from sda_core.system import simulate_block
from sda_core.testing import GaussianChain, linear_gaussian_moments


def _randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_log_prior_is_the_joint_over_the_first_marginal() -> None:
    chain, length = GaussianChain(), 5
    x = simulate_block(chain, 0, 0, length)[:6]
    mean, covariance = linear_gaussian_moments(chain, length)
    joint = torch.distributions.MultivariateNormal(mean, covariance)
    first = torch.distributions.MultivariateNormal(mean[:2], covariance[:2, :2])
    expected = joint.log_prob(x.flatten(1)) - first.log_prob(x[:, 0])
    torch.testing.assert_close(log_prior(chain, x), expected)
    torch.testing.assert_close(log_prior(chain, x.reshape(2, 3, length, 2)).flatten(), expected)
    torch.testing.assert_close(log_prior(chain, x[0]), expected[0])


def test_wasserstein() -> None:
    x = _randn(40, 3, 2)
    assert wasserstein1(x, x) == pytest.approx(0, abs=1e-6)
    shift = torch.full((3, 2), 0.5, dtype=torch.float64)
    assert wasserstein1(x, x[torch.randperm(40)] + shift) == pytest.approx(0.5 * math.sqrt(6))
    y = _randn(40, 1, seed=1)
    line = ot.wasserstein_1d(x[:, 0, :1].numpy().ravel(), y.numpy().ravel(), p=1)
    assert wasserstein1(x[:, 0, :1], y) == pytest.approx(float(line))
    assert wasserstein1(x[:4], x[:2]) > 0  # sizes may differ


def test_rmse_and_spread() -> None:
    ensemble = torch.tensor([[[1.0]], [[3.0]]])
    assert rmse(ensemble, torch.tensor([[5.0]])) == pytest.approx(3)
    assert spread(ensemble) == pytest.approx(math.sqrt(1.5 * 2))


def test_spread_equals_rmse_if_calibrated() -> None:
    draws = _randn(9, 20_000, 1)
    assert spread(draws[1:]) == pytest.approx(rmse(draws[1:], draws[0]), rel=0.03)


def test_crps_is_fair() -> None:
    """E|X - y| - E|X - X'| / 2 over different members: on average the same for any size."""
    ensemble, truth = _randn(5, 7, 2), _randn(7, 2, seed=1)
    x = ensemble.numpy()
    to_truth = np.abs(x - truth.numpy()).mean(0)
    between = np.abs(x[:, None] - x[None]).sum((0, 1)) / (5 * 4)
    assert crps(ensemble, truth) == pytest.approx(float((to_truth - between / 2).mean()))
    # Standard normal: (sqrt(2) - 1) / sqrt(pi) + ... in expectation 1 / sqrt(pi).
    big = _randn(3, 40_000, 1)
    assert crps(big[1:], big[0]) == pytest.approx(1 / math.sqrt(math.pi), abs=0.02)


def test_coverage() -> None:
    ensemble = torch.arange(101.0)[:, None, None].expand(101, 1, 4)
    truth = torch.tensor([[4.0, 5.0, 95.0, 96.0]])
    assert coverage(ensemble, truth) == pytest.approx(0.5)
    assert coverage(ensemble, truth, level=1.0) == 1
    draws = _randn(500, 4000, 1)
    assert coverage(draws[1:], draws[0]) == pytest.approx(0.9, abs=0.02)
