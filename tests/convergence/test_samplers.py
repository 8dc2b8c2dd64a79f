"""Samplers have the order they declare, measured by a slope fit in float64."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from sda_core.denoiser import Denoiser
from sda_core.random import MemberNoise
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
from sda_core.testing import GaussianDenoiser, affine_moments

STEPS = [48, 96, 192, 384]


def _slope(steps, errors) -> float:
    return float(np.polyfit(-np.log(np.asarray(steps, float)), np.log(errors), 1)[0])


def _gaussian(variance: float, schedule) -> GaussianDenoiser:
    covariance = torch.tensor([[variance]], dtype=torch.float64)
    return GaussianDenoiser(torch.full((1, 1), 0.7, dtype=torch.float64), covariance, schedule)


class Mixture(Denoiser):
    """The exact denoiser of a mixture of Gaussians on the line."""

    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    means = torch.tensor([-1.5, 1.0], dtype=torch.float64)
    variances = torch.tensor([0.2, 0.5], dtype=torch.float64)

    def forward(self, x_t, t):
        alpha, sigma = self.scales(x_t, t)
        x = x_t.unsqueeze(-1)
        total = alpha**2 * self.variances + sigma**2
        log_p = self.weights.log() - 0.5 * ((x - alpha * self.means) ** 2 / total + total.log())
        x0 = self.means + alpha * self.variances / total * (x - alpha * self.means)
        return (log_p.softmax(-1) * x0).sum(-1)


def test_the_mixture_is_exact() -> None:
    denoiser, t = Mixture(VP()), torch.tensor(0.4, dtype=torch.float64)
    alpha, sigma = VP().alpha(t), VP().sigma(t)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(9, 1, 1).requires_grad_()
    std = (alpha**2 * Mixture.variances + sigma**2).sqrt()
    parts = torch.distributions.Normal(alpha * Mixture.means, std).log_prob(x.unsqueeze(-1))
    log_p = torch.logsumexp(parts + Mixture.weights.log(), -1)
    (score,) = torch.autograd.grad(log_p.sum(), x)
    torch.testing.assert_close(denoiser.score(x, t), score)


def _samples(sampler, denoiser, members=8):
    noise = MemberNoise(0, range(members), dtype=torch.float64)
    return sampler.sample(denoiser, (members, 1, 1), noise)


def _flow(denoiser, members=8):
    """Where the probability-flow ODE du/dr = eps, u = x / alpha, r = sigma / alpha takes noise."""
    schedule = denoiser.schedule
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)

    def rhs(time, u):
        t = torch.tensor(time, dtype=torch.float64, requires_grad=True)
        (dr_dt,) = torch.autograd.grad(schedule.sigma(t) / schedule.alpha(t), t)
        t = t.detach()
        x = schedule.alpha(t) * torch.from_numpy(u).reshape(-1, 1, 1)
        return denoiser.eps(x, t).numpy().ravel() * float(dr_dt)

    z = MemberNoise(0, range(members), dtype=torch.float64).normal((members, 1, 1))
    start = (schedule.sigma(one) / schedule.alpha(one) * z).numpy().ravel()
    solution = solve_ivp(rhs, (1, 0), start, method="DOP853", rtol=1e-8, atol=1e-8)
    return schedule.alpha(zero) * torch.from_numpy(solution.y[:, -1]).reshape(-1, 1, 1)


@pytest.mark.parametrize(
    "made",
    [
        _gaussian(2.5, VP()),
        Mixture(VP()),
        Mixture(VP(alpha_shape="lin")),
        Mixture(VE()),
        Mixture(RectifiedFlow()),
    ],
    ids=lambda d: f"{type(d).__name__}-{type(d.schedule).__name__}",
)
def test_ddim_order(made) -> None:
    exact = _flow(made)
    errors = [
        float(
            (_samples(DDIM(steps=n, grid="log-snr", denoise_final=False), made) - exact).abs().max()
        )
        for n in STEPS
    ]
    assert _slope(STEPS, errors) == pytest.approx(DDIM.order, abs=0.3)
    assert errors[-1] < 0.05


@pytest.fixture(scope="module", params=[VP, VE, RectifiedFlow], ids=lambda cls: cls.__name__)
def mixture(request):
    """A mixture and where its flow takes noise."""
    denoiser = Mixture(request.param())
    return denoiser, _flow(denoiser)


@pytest.mark.parametrize(
    "sampler",
    [Heun(), EDM(s_churn=0.0), DPMSolver(), AdamsBashforth(order=2), AdamsBashforth(order=3)],
    ids=lambda s: f"{type(s).__name__}-{s.order}",
)
def test_order(sampler, mixture) -> None:
    denoiser, exact = mixture
    errors = []
    for n in STEPS:
        at_n = attrs.evolve(sampler, steps=n, grid="log-snr", denoise_final=False)
        error = _samples(at_n, denoiser) - exact  # the largest may be that of one start alone
        errors.append(float(error.square().mean().sqrt()))
    assert _slope(STEPS, errors) == pytest.approx(sampler.order, abs=0.3)
    assert errors[-1] < 5e-4


def test_the_flow_of_a_gaussian_is_known() -> None:
    """So the reference of the test above is checked by a closed form."""
    denoiser = _gaussian(2.5, VP())
    ends = torch.tensor([1.0, 0.0], dtype=torch.float64)
    alpha, sigma = VP().alpha(ends), VP().sigma(ends)
    x = sigma[0] * MemberNoise(0, range(8), dtype=torch.float64).normal((8, 1, 1))
    std = (alpha**2 * 2.5 + sigma**2).sqrt()
    exact = alpha[1] * 0.7 + std[1] * (x - alpha[0] * 0.7) / std[0]
    torch.testing.assert_close(_flow(denoiser), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variance", [0.3, 2.5])
@pytest.mark.parametrize("grid", ["time", "log-snr", "rho"])
@pytest.mark.parametrize("cls", [DDIM, DDPM, PredictorCorrector], ids=["ddim", "ddpm", "predictor"])
def test_weak_order(cls, grid, variance) -> None:
    """The exact variance of samples converges to the prior's."""
    denoiser = _gaussian(variance, VP())
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    final = float(VP().alpha(zero) ** 2 * variance + VP().sigma(zero) ** 2)
    if cls is not DDPM:
        # The flow stretches the sampler's start, sigma(1)^2, as it would alpha^2 v + sigma^2.
        final *= float(1 / (1 + VP().alpha(one) ** 2 * variance / VP().sigma(one) ** 2))
    errors = []
    for n in STEPS:
        sampler = cls(steps=n, grid=grid, denoise_final=False)
        _, covariance = affine_moments(sampler, denoiser, (1, 1))
        errors.append(abs(float(covariance) - final))
    assert _slope(STEPS, errors) == pytest.approx(cls.order, abs=0.3)


@pytest.mark.parametrize("schedule", [VP(), VE(), RectifiedFlow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("window", [{}, {"s_min": 0.05, "s_max": 50.0}], ids=["all", "window"])
def test_weak_order_with_churn(window, schedule) -> None:
    """As of fresh noise what was before is forgotten, here is no stretching to account for."""
    denoiser, zero = _gaussian(2.5, schedule), torch.zeros((), dtype=torch.float64)
    final = float(schedule.alpha(zero) ** 2 * 2.5 + schedule.sigma(zero) ** 2)
    errors = []
    for n in STEPS[:3]:
        sampler = EDM(steps=n, s_churn=5.0, grid="log-snr", denoise_final=False, **window)
        _, covariance = affine_moments(sampler, denoiser, (1, 1))
        errors.append(abs(float(covariance) - final))
    assert _slope(STEPS[:3], errors) == pytest.approx(EDM.order, abs=0.3)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_final_denoising_takes_the_last_noise_away(eta) -> None:
    denoiser = _gaussian(2.5, VP(eta=0.1))
    moments = [
        affine_moments(DDIM(steps=n, eta=eta, denoise_final=final), denoiser, (1, 1))
        for n, final in ((33, True), (32, False))
    ]
    (denoised_mean, denoised), (mean, noisy) = moments
    # E[x_0 | x_t] at t = 0 of what the same 32 steps gave.
    shrink = 2.5 / (2.5 + 0.1**2)
    torch.testing.assert_close(denoised, shrink**2 * noisy)
    torch.testing.assert_close(denoised_mean, 0.7 + shrink * (mean - 0.7))
