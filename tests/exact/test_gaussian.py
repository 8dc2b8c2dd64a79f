"""The closed forms that everything else is graded by, each found in two ways."""

from __future__ import annotations

import pytest
import torch

from sda_core.denoiser import Denoiser
from sda_core.guidance import Likelihood
from sda_core.observation import Select
from sda_core.schedule import VE, VP
from sda_core.system import simulate_block
from sda_core.testing import (
    ExactGuidance,
    GaussianChain,
    GaussianDenoiser,
    affine_map,
    gaussian_posterior,
    gaussian_problem,
    linear_gaussian_moments,
    rts_smoother,
)
from sda_lorenz.damped_spring import DampedSpring


@pytest.mark.parametrize("system", [GaussianChain(), DampedSpring()], ids=["chain", "spring"])
@pytest.mark.parametrize("std", [1e-3, 0.4])
@pytest.mark.parametrize("every", [1, 3])
def test_rts_smoother_is_the_joint_posterior(system, std, every) -> None:
    problem = gaussian_problem(system, std=std, every=every, length=11)
    n = system.spec.state_shape[0]
    H = torch.eye(1, n, dtype=torch.float64)
    R = torch.tensor([[std**2]], dtype=torch.float64)
    observations = [
        (H, problem.problem.y[i // every], R) if i % every == 0 else None for i in range(11)
    ]
    smoothed = rts_smoother(system, observations, transitions=64)
    torch.testing.assert_close(smoothed.mean, problem.mean, rtol=1e-7, atol=1e-7)
    blocks = problem.covariance.reshape(11, n, 11, n)
    for i in range(11):
        torch.testing.assert_close(smoothed.covariance[i], blocks[i, :, i], rtol=1e-6, atol=1e-9)
    for i in range(10):
        torch.testing.assert_close(
            smoothed.cross_covariance[i], blocks[i, :, i + 1], rtol=1e-6, atol=1e-9
        )


def test_smoother_without_observations_is_the_prior() -> None:
    mean, covariance = linear_gaussian_moments(DampedSpring(), 4)
    smoothed = rts_smoother(DampedSpring(), [None] * 4)
    torch.testing.assert_close(smoothed.mean.flatten(), mean)
    torch.testing.assert_close(smoothed.covariance[2], covariance[8:12, 8:12])
    assert rts_smoother(DampedSpring(), [None]).cross_covariance.shape == (0, 4, 4)


@pytest.mark.parametrize("system", [GaussianChain(), DampedSpring()], ids=["chain", "spring"])
def test_moments_are_those_of_simulations(system) -> None:
    mean, covariance = linear_gaussian_moments(system, 3, transitions=6)
    x = torch.cat([simulate_block(system, 0, block, 3, burn_in=5) for block in range(64)])
    x = x.flatten(1)
    std = covariance.diagonal().sqrt()
    n = len(x) ** 0.5
    assert ((x.mean(0) - mean) / std).abs().max() < 5 / n
    assert ((x.T.cov() - covariance) / (std[:, None] * std)).abs().max() < 7 / n


@pytest.mark.parametrize("schedule", [VP(), VE()])
def test_denoiser_is_the_posterior_mean_given_the_noised_state(schedule) -> None:
    problem = gaussian_problem(length=4, schedule=schedule)
    denoiser = problem.model.denoiser
    mean, C = denoiser.mean.flatten(), denoiser.covariance
    x_t = torch.randn(3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    out = denoiser(x_t, t)
    eye = torch.eye(len(mean), dtype=torch.float64)
    for i in range(3):
        alpha, sigma = schedule.alpha(t[i]), schedule.sigma(t[i])
        expected, _ = gaussian_posterior(mean, C, alpha * eye, x_t[i].flatten(), sigma)
        torch.testing.assert_close(out[i].flatten(), expected)
        torch.testing.assert_close(denoiser(x_t[i : i + 1], t[i])[0], out[i])
        marginal = torch.distributions.MultivariateNormal(
            alpha * mean, alpha**2 * C + sigma**2 * eye
        )
        x = x_t[i].flatten().clone().requires_grad_()
        (score,) = torch.autograd.grad(marginal.log_prob(x), x)
        torch.testing.assert_close(denoiser.score(x_t, t)[i].flatten(), score)


def test_exact_guidance_agrees_with_the_problem() -> None:
    problem = gaussian_problem(length=5)
    guided = ExactGuidance()(problem.model.denoiser, problem.likelihood)
    torch.testing.assert_close(guided.mean, problem.posterior_denoiser.mean)
    torch.testing.assert_close(guided.covariance, problem.posterior_denoiser.covariance)


def test_exact_guidance_refuses_other_priors() -> None:
    class Zero(Denoiser):
        def forward(self, x_t, t):
            return 0 * x_t

    one = torch.ones(1)
    likelihood = Likelihood.gaussian(operator=lambda x: x, y=one, std=one)
    with pytest.raises(TypeError, match="takes a GaussianDenoiser, got Zero"):
        ExactGuidance()(Zero(VP()), likelihood)


def test_gaussian_problem_refuses_other_systems() -> None:
    from sda_lorenz.lorenz63 import Lorenz63

    with pytest.raises(TypeError, match="Lorenz63 is not linear and Gaussian"):
        gaussian_problem(Lorenz63())


def test_affine_map_of_an_operator_with_offset() -> None:
    spec = GaussianChain().spec
    A = Select(variables=("v",), every=2, standardized=True).operator(spec)
    H, c = affine_map(A, (3, 2))
    assert H.shape == (2, 6)
    x = torch.randn(5, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(x.flatten(1) @ H.T + c, A(x).flatten(1))


def test_denoiser_in_float32() -> None:
    denoiser = gaussian_problem(length=4).model.denoiser
    assert isinstance(denoiser, GaussianDenoiser)
    x = torch.randn(2, 4, 2)
    out = denoiser(x, torch.tensor(0.5))
    assert out.dtype == torch.float32
    torch.testing.assert_close(
        out.double(), denoiser(x.double(), torch.tensor(0.5).double()), rtol=1e-5, atol=1e-5
    )
