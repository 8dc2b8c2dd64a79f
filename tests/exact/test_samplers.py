"""With the exact score, samplers give the prior's mean and covariance."""

from __future__ import annotations

import pytest
import torch

from sda_core.sampler import (
    DDIM,
    DDPM,
    EDM,
    AdamsBashforth,
    DPMSolver,
    Heun,
    PredictorCorrector,
)
from sda_core.schedule import VE, VP, RectifiedFlow
from sda_core.testing import affine_moments, gaussian_problem, sampled_moments
from sda_lorenz.damped_spring import DampedSpring

GRID = {"grid": "log-snr"}


def _errors(sampler, problem, moments=None) -> tuple[float, float]:
    denoiser, shape = problem.model.denoiser, problem.problem.shape
    mean, covariance = moments or affine_moments(sampler, denoiser, shape)
    std = denoiser.covariance.diagonal().sqrt()
    return (
        float(((mean - denoiser.mean.flatten()) / std).abs().max()),
        float(((covariance - denoiser.covariance) / (std[:, None] * std)).abs().max()),
    )


@pytest.mark.parametrize(
    ("sampler", "tolerance"),
    [
        (DDIM(steps=512, **GRID), 0.015),
        (DDIM(steps=512), 0.03),
        (PredictorCorrector(steps=512), 0.03),
        (DDIM(steps=256, eta=0.5, **GRID), 0.04),
        (DDPM(steps=256, **GRID), 0.09),
        (DDPM(steps=256, grid="rho"), 0.09),
        (DDPM(steps=256), 0.09),
        (Heun(steps=96, **GRID), 0.015),
        (EDM(steps=192), 0.015),
        (EDM(steps=192, s_churn=40.0, s_min=0.05, s_max=50.0, **GRID), 0.03),
        (DPMSolver(steps=96), 0.01),
        (AdamsBashforth(steps=96, order=2), 0.01),
        (AdamsBashforth(steps=96), 0.005),
    ],
)
@pytest.mark.parametrize("schedule", [VP(), VE(), RectifiedFlow()])
def test_prior(sampler, tolerance, schedule) -> None:
    problem = gaussian_problem(length=4, schedule=schedule)
    if isinstance(schedule, VE) and sampler.grid == "time":
        tolerance = max(tolerance, 0.04)  # for VE time is log-snr
    mean, covariance = _errors(sampler, problem)
    assert mean < 0.01 + _lost_mean(problem, schedule)
    assert covariance < tolerance


def _lost_mean(problem, schedule) -> float:
    """What starting from pure noise, without alpha(1) times the mean, costs the exact flow."""
    denoiser, one = problem.model.denoiser, torch.ones((), dtype=torch.float64)
    alpha, sigma = schedule.alpha(one), schedule.sigma(one)
    v, U = denoiser.variances, denoiser.directions
    flow = U @ (v / (alpha**2 * v + sigma**2)).sqrt().diag() @ U.T
    lost = flow @ (alpha * denoiser.mean.flatten())
    return float((lost / denoiser.covariance.diagonal().sqrt()).abs().max())


@pytest.mark.parametrize("sampler", [DDIM(steps=512, **GRID), DDPM(steps=128, **GRID)])
def test_prior_of_the_spring(sampler) -> None:
    # Neighbouring states are almost equal here: variances from 1e-4 to 10.
    mean, covariance = _errors(sampler, gaussian_problem(DampedSpring(), length=3))
    assert mean < 0.02
    assert covariance < 0.2


@pytest.mark.parametrize("largest", [None, 0.1])
def test_predictor_corrector_with_corrections(largest) -> None:
    problem = gaussian_problem(length=32)
    sampler = PredictorCorrector(steps=64, corrections=1, tau=0.1, largest_step=largest)
    denoiser, shape = problem.model.denoiser, problem.problem.shape
    assert affine_moments(PredictorCorrector(steps=3, corrections=1), denoiser, shape) is None
    members = 512
    moments = sampled_moments(sampler, denoiser, shape, members=members)
    mean, covariance = _errors(sampler, problem, moments)
    assert mean < 4.5 / members**0.5
    assert covariance < 0.05 + 4.5 / members**0.5
    std = denoiser.covariance.diagonal()
    assert (moments[1].diagonal() / std - 1).mean().abs() < 0.05


def test_bounded_langevin_steps_hardly_widen_samples() -> None:
    """In few dimensions, where an unbounded step fluctuates."""
    problem = gaussian_problem(length=3)
    denoiser, shape = problem.model.denoiser, problem.problem.shape
    widened = {}
    for largest in (None, 0.1):
        sampler = PredictorCorrector(steps=64, corrections=1, tau=0.1, largest_step=largest)
        _, covariance = sampled_moments(sampler, denoiser, shape, members=4096)
        ratio = covariance.diagonal() / denoiser.covariance.diagonal()
        widened[largest] = float(ratio.mean()) - 1
    assert widened[None] > 0.15
    assert abs(widened[0.1]) < 0.08


def test_exact_moments_agree_with_estimates() -> None:
    problem = gaussian_problem(length=3)
    denoiser, shape = problem.model.denoiser, problem.problem.shape
    sampler = DDPM(steps=8)
    mean, covariance = affine_moments(sampler, denoiser, shape)
    m, C = sampled_moments(sampler, denoiser, shape, members=4096)
    std = covariance.diagonal().sqrt()
    assert ((m - mean) / std).abs().max() < 5 / 64
    assert ((C - covariance) / (std[:, None] * std)).abs().max() < 7 / 64
