"""Guidance by the smoother: exact where it says so, graded where not."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from sda_core.sampler import DDIM, DDPM, PredictorCorrector
from sda_core.schedule import VE, VP
from sda_core.testing import (
    ExactGuidance,
    affine_moments,
    gaussian_problem,
    grade,
    linear_gaussian_moments,
)
from sda_dps.gaussian import GaussianGuidance
from sda_dps.mmps import MMPS
from sda_lorenz.damped_spring import DampedSpring

SAMPLERS = [
    DDIM(steps=12),
    DDIM(steps=12, eta=0.5, grid="rho"),
    DDPM(steps=12, grid="log-snr"),
    PredictorCorrector(steps=12),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["ddim", "ddim-eta", "ddpm", "predictor"])
@pytest.mark.parametrize("std", [1e-3, 0.4])
@pytest.mark.parametrize("system", [None, DampedSpring()], ids=["chain", "spring"])
def test_mmps_is_exact_under_every_sampler(sampler, std, system) -> None:
    """However few the steps, what is sampled is what the exact posterior denoiser gives."""
    problem = gaussian_problem(system, length=4, std=std, schedule=VE() if std < 0.1 else VP())
    shape = problem.problem.shape
    prior, likelihood = problem.model.denoiser, problem.likelihood
    moments = [
        affine_moments(sampler, guidance(prior, likelihood), shape)
        for guidance in (MMPS(), ExactGuidance())
    ]
    (mean, covariance), (exact_mean, exact_covariance) = moments
    scale = exact_covariance.diagonal().sqrt()
    assert ((mean - exact_mean) / scale).abs().max() < 1e-4
    assert ((covariance - exact_covariance) / (scale[:, None] * scale)).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("sampler", "tolerance"),
    [
        (DDIM(steps=512, grid="log-snr"), 0.03),
        (DDPM(steps=256, grid="log-snr"), 0.08),
        (PredictorCorrector(steps=512, grid="log-snr"), 0.03),
    ],
    ids=["ddim", "ddpm", "predictor"],
)
def test_mmps_gives_the_smoother(sampler, tolerance) -> None:
    result = grade(MMPS(), sampler, gaussian_problem(length=4))
    assert result.exact
    assert result.mean < 0.02
    assert result.covariance < tolerance


def test_mmps_gives_the_smoother_for_accurate_observations() -> None:
    # The posterior's std at observed times is 0.01; the noise has to fall well below it.
    schedule = VE(sigma_min=5e-4, sigma_max=1000.0)
    problem = gaussian_problem(length=3, std=0.01, every=1, schedule=schedule)
    result = grade(MMPS(), DDIM(steps=768), problem)
    assert result.exact
    assert result.mean < 0.05
    assert result.covariance < 0.05


def _benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "guidance_grades.py"
    spec = importlib.util.spec_from_file_location("guidance_grades", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_grades(capsys) -> None:
    benchmark = _benchmark()
    samplers = ({"name": "ddim"}, {"name": "ddpm"})
    rows = list(benchmark.grades(48, 0.4, length=5, members=256, samplers=samplers))
    with capsys.disabled():
        print()
        benchmark.print_table(iter(rows), 48)
    problem = gaussian_problem(length=5, std=0.4)
    prior = linear_gaussian_moments(problem.problem.system, 5)[1].diagonal()
    unguided = (prior / problem.covariance.diagonal() - 1).max()
    by_name = {(guidance, sampler): result for guidance, sampler, result in rows}
    for sampler in ("ddim", "ddpm"):
        exact, mmps = by_name["closed form", sampler], by_name["mmps", sampler]
        assert mmps.covariance == pytest.approx(exact.covariance, abs=1e-5)
        assert mmps.mean == pytest.approx(exact.mean, abs=1e-5)
        for (guidance, under), result in by_name.items():
            if under == sampler and guidance.startswith(("gaussian", "dps")):
                # They are no better than what is exact, and still keep to the observations.
                assert result.mean + result.covariance > mmps.mean + mmps.covariance
                assert result.mean < 1.5
                assert result.covariance < unguided


def test_gaussian_guidance_is_exact_where_its_variance_is() -> None:
    """For a prior far wider than the noise, Cov[x_0 | x_t] = (sigma / alpha)^2 in model space."""
    problem = gaussian_problem(length=3)
    prior = problem.model.denoiser
    wide = type(prior)(prior.mean, 1e8 * torch.eye(6, dtype=torch.float64), VP())
    x = torch.randn(4, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor(0.4, dtype=torch.float64)
    exact = ExactGuidance()(wide, problem.likelihood)(x, t)
    u_std = problem.problem.system.spec.std[0]
    guided = GaussianGuidance(gamma=u_std**2)(wide, problem.likelihood)(x, t)
    torch.testing.assert_close(guided, exact, rtol=1e-5, atol=1e-5)
    other = GaussianGuidance(gamma=0.5)(wide, problem.likelihood)(x, t)
    assert (other - exact).abs().max() > 0.05
