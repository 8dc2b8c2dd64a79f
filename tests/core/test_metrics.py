"""Scores, against hand-made and closed-form values."""

from __future__ import annotations

import math

import numpy as np
import ot
import pytest
import torch

from sda_core.evaluation.metrics import (
    coverage,
    crps,
    log_prior,
    rank_histogram,
    rmse,
    spread,
    spread_skill_curve,
    wasserstein1,
)
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


def test_crps_of_equal_members_is_the_absolute_error() -> None:
    point, truth = _randn(7, 2), _randn(7, 2, seed=1)
    assert crps(point.expand(4, 7, 2), truth) == pytest.approx(float((point - truth).abs().mean()))


def test_coverage() -> None:
    ensemble = torch.arange(101.0)[:, None, None].expand(101, 1, 4)
    truth = torch.tensor([[4.0, 4.2, 95.8, 96.0]])  # the interval is 4.1 to 95.9
    assert coverage(ensemble, truth) == pytest.approx(0.5)
    assert coverage(ensemble, truth, level=1.0) == 1


@pytest.mark.parametrize(("members", "expected"), [(499, 0.9), (19, 0.9), (9, 0.8)])
def test_calibrated_ensembles_of_any_size_cover_the_level(members: int, expected: float) -> None:
    # Nine members reach no further: (M - 1) / (M + 1) is what lies between two of them.
    draws = _randn(members + 1, 20_000, 1)
    assert coverage(draws[1:], draws[0]) == pytest.approx(expected, abs=0.01)


def test_rank_histogram_counts_smaller_members() -> None:
    ensemble = torch.tensor([[10.0] * 5, [20.0] * 5, [30.0] * 5])[:, None]
    truth = torch.tensor([[5.0, 15.0, 16.0, 25.0, 99.0]])
    assert rank_histogram(ensemble, truth).tolist() == [1, 2, 1, 1]


def _uniformity(counts: torch.Tensor) -> float:
    """Pearson's chi-square of counts against a flat histogram."""
    expected = counts.double().mean()
    return float(((counts - expected) ** 2 / expected).sum())


def test_rank_histogram_is_flat_for_exchangeable_draws() -> None:
    draws = _randn(10, 20_000, 1)
    # The 99.9 % quantile of chi-square with 9 degrees of freedom is 27.9.
    assert _uniformity(rank_histogram(draws[1:], draws[0])) < 27.9
    rounded = draws.round()  # equal values do not fill single ranks
    counts = rank_histogram(rounded[1:], rounded[0])
    assert _uniformity(counts) < 27.9
    assert torch.equal(counts, rank_histogram(rounded[1:], rounded[0]))
    assert not torch.equal(counts, rank_histogram(rounded[1:], rounded[0], seed=1))


def test_rank_histogram_is_u_shaped_for_members_too_sure() -> None:
    draws = _randn(10, 20_000, 1)
    counts = rank_histogram(draws[1:] / 3, draws[0])
    assert min(counts[0], counts[-1]) > 3 * counts[1:-1].max()
    hump = rank_histogram(draws[1:] * 3, draws[0])
    assert hump[4:6].min() > 5 * max(hump[0], hump[-1])


def test_spread_skill_curve() -> None:
    ensemble = torch.tensor([[[0.0, 0.0, 5.0, 1.0]], [[2.0, 4.0, 5.0, 1.0]]])
    truth = torch.tensor([[1.0, 3.0, 6.0, 4.0]])
    width, error = spread_skill_curve(ensemble, truth, bins=2)
    # Variances 0, 0 | 2, 8, times 3 / 2; errors 1, 3 | 0, 1.
    np.testing.assert_allclose(width, [0, math.sqrt(7.5)])
    np.testing.assert_allclose(error, [math.sqrt(5), math.sqrt(0.5)])
    assert len(spread_skill_curve(ensemble, truth, bins=99)[0]) == 4


def test_spread_skill_curve_is_the_diagonal_if_calibrated() -> None:
    scale = torch.linspace(0.1, 3, 6_000, dtype=torch.float64)[None]
    draws = scale * _randn(201, 1, 6_000)
    width, error = spread_skill_curve(draws[1:], draws[0], bins=6)
    assert width[-1] > 5 * width[0]
    np.testing.assert_allclose(width, error, rtol=0.08)  # the mean of 1,000 squares varies by 4.5 %
    _, error = spread_skill_curve(draws[1:], 2 * draws[0], bins=6)
    assert bool((error > 1.5 * width).all())
