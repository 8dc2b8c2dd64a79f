"""Guidance by the smoother: exact where it says so, graded where not."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from sda_core.config import structure
from sda_core.random import MemberNoise
from sda_core.sampler import DDIM, DDPM, AdamsBashforth, DPMSolver, PredictorCorrector, Sampler
from sda_core.schedule import VE, VP
from sda_core.testing import (
    ExactGuidance,
    affine_moments,
    gaussian_problem,
    grade,
    linear_gaussian_moments,
)
from sda_dps.diffpir import DiffPIR
from sda_dps.gaussian import GaussianGuidance
from sda_dps.mmps import MMPS
from sda_dps.pigdm import PiGDM
from sda_dps.tmpd import TMPD
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
        for guidance in (ExactGuidance(), MMPS(), MMPS(solver="cg"), MMPS(solver="gmres"))
    ]
    exact_mean, exact_covariance = moments[0]
    scale = exact_covariance.diagonal().sqrt()
    for mean, covariance in moments[1:]:
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


@pytest.mark.parametrize(
    ("guidance", "sampler"),
    [
        (MMPS(), DPMSolver(steps=64, grid="log-snr")),
        (MMPS(solver="cg"), AdamsBashforth(steps=64, grid="log-snr")),
    ],
    ids=["direct", "cg"],
)
def test_within_one_percent_of_the_smoother_in_64_evaluations(guidance, sampler) -> None:
    problem = gaussian_problem(length=9)
    evaluations = []
    handle = problem.model.denoiser.register_forward_hook(lambda *_: evaluations.append(1))
    noise = MemberNoise(0, [0], dtype=torch.float64)
    posterior = guidance(problem.model.denoiser, problem.likelihood)
    sampler.sample(posterior, (1, *problem.problem.shape), noise)
    handle.remove()
    assert len(evaluations) == 64
    result = grade(guidance, sampler, problem)
    assert result.exact
    assert result.mean < 0.01
    assert result.covariance < 0.01


def test_mmps_gives_the_smoother_for_accurate_observations() -> None:
    # The posterior's std at observed times is 0.01; the noise has to fall well below it.
    schedule = VE(sigma_min=5e-4, sigma_max=1000.0)
    problem = gaussian_problem(length=3, std=0.01, every=1, schedule=schedule)
    result = grade(MMPS(), DDIM(steps=768), problem)
    assert result.exact
    assert result.mean < 0.05
    assert result.covariance < 0.05


@pytest.mark.parametrize("schedule", [VP(), VE()], ids=["vp", "ve"])
@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_exact_for_their_own_prior(schedule, t) -> None:
    """PiGDM for N(m, I); TMPD for independent entries and an operator that picks them."""
    problem = gaussian_problem(length=4)
    prior = problem.model.denoiser
    x = torch.randn(4, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    time = torch.tensor(t, dtype=torch.float64)
    identity = torch.eye(8, dtype=torch.float64)
    variances = torch.linspace(0.1, 3, 8, dtype=torch.float64).diag()
    for covariance, guidances in (
        (identity, (PiGDM(), PiGDM(detach=True), TMPD(), MMPS())),
        (variances, (TMPD(), MMPS())),
    ):
        made = type(prior)(prior.mean, covariance, schedule)
        exact = ExactGuidance()(made, problem.likelihood)(x, time)
        for guidance in guidances:
            torch.testing.assert_close(guidance(made, problem.likelihood)(x, time), exact)
    if t == 0.4:  # And for no other: at the last covariance, unequal variances.
        guided = PiGDM()(made, problem.likelihood)(x, time)
        assert (guided - exact).abs().max() > 1e-3


def test_diffpir_is_exact_for_a_wide_prior() -> None:
    problem = gaussian_problem(length=4)
    prior = problem.model.denoiser
    wide = type(prior)(prior.mean, 1e8 * torch.eye(8, dtype=torch.float64), VP())
    x = torch.randn(4, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor(0.4, dtype=torch.float64)
    exact = ExactGuidance()(wide, problem.likelihood)(x, t)
    guided = DiffPIR()(wide, problem.likelihood)(x, t)
    torch.testing.assert_close(guided, exact, rtol=1e-5, atol=1e-5)
    other = DiffPIR(weight=5.0)(wide, problem.likelihood)(x, t)
    assert (other - exact).abs().max() > 1e-3


def _benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "guidance_grades.py"
    spec = importlib.util.spec_from_file_location("guidance_grades", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_grades(capsys) -> None:
    benchmark = _benchmark()
    samplers = {name: structure(Sampler, {"name": name, "steps": 24}) for name in ("ddim", "ddpm")}
    rows = list(benchmark.grades(list(samplers.values()), length=5, members=256))
    with capsys.disabled():
        print()
        benchmark.print_table(list(samplers), iter(rows))
    problem = gaussian_problem(length=5, std=0.4)
    prior = linear_gaussian_moments(problem.problem.system, 5)[1].diagonal()
    unguided = (prior / problem.covariance.diagonal() - 1).max()
    by_name = dict(rows)
    for i in range(len(samplers)):
        exact = by_name["closed form"][i]
        for name in ("mmps", "mmps (solver = cg, iterations = 8)"):
            assert by_name[name][i].covariance == pytest.approx(exact.covariance, abs=1e-5)
            assert by_name[name][i].mean == pytest.approx(exact.mean, abs=1e-5)
        for guidance, results in rows:
            if not guidance.startswith(("closed form", "mmps")):
                # They are no better than what is exact, and still keep to the observations.
                result = results[i]
                assert result.mean + result.covariance > exact.mean + exact.covariance
                assert result.mean < 1.5
                assert result.covariance < unguided


def test_samplers_keep_to_their_evaluations() -> None:
    benchmark = _benchmark()
    assert benchmark.affordable({"name": "ddim"}, 10, "rho").steps == 10
    corrected = {"name": "predictor-corrector", "corrections": 1}
    assert benchmark.affordable(corrected, 11, "rho").steps == 5
    with pytest.raises(ValueError, match="ddim takes more than 1 evaluations"):
        benchmark.affordable({"name": "ddim"}, 1, "rho")


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
