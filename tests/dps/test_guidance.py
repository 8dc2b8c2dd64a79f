"""Guidance methods against their formulas. The kit and tests/exact do the rest."""

from __future__ import annotations

import attrs
import pytest
import torch

from sda_core.denoiser import Denoiser
from sda_core.errors import AssimilationError
from sda_core.guidance import GaussianLikelihood
from sda_core.schedule import VE, VP
from sda_core.testing import check_guidance
from sda_dps.dps import DPS
from sda_dps.gaussian import GaussianGuidance
from sda_dps.mmps import MMPS


def _randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Nonlinear(Denoiser):
    """A denoiser with a full, state-dependent Jacobian."""

    mix = _randn(6, 6, seed=5)

    def forward(self, x_t, t):
        alpha, sigma = self.scales(x_t, t)
        flat = (x_t / (alpha + sigma)).flatten(1)
        return (flat + 0.3 * torch.tanh(flat @ self.mix)).reshape(x_t.shape)


STD = torch.tensor([[0.1], [0.2], [0.5]], dtype=torch.float64)
LIKELIHOOD = GaussianLikelihood(
    operator=lambda x: x[..., :1].sin() + x[..., 1:], y=_randn(3, 1, seed=2), std=STD
)
SCHEDULES = [VP(), VE()]
X = _randn(4, 3, 2, seed=3)
T = torch.tensor(0.35, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("gamma", [0.0, 0.03, 1.0])
@pytest.mark.parametrize("detach", [False, True])
def test_gaussian_is_that_of_the_original_code(schedule, gamma, detach) -> None:
    """GaussianScore: eps - sigma grad log N(y | A(x0), std^2 + gamma (sigma / mu)^2)."""
    prior = Nonlinear(schedule)
    mu, sigma = schedule.alpha(T), schedule.sigma(T)
    x = X.clone().requires_grad_()
    eps = prior.eps(x, T)
    if detach:
        eps = eps.detach()
    x_ = (x - sigma * eps) / mu
    error = LIKELIHOOD.y - LIKELIHOOD.operator(x_)
    variance = STD**2 + gamma * (sigma / mu) ** 2
    log_p = -(error**2 / variance).sum() / 2
    (s,) = torch.autograd.grad(log_p, x)
    expected = eps.detach() - sigma * s
    guided = GaussianGuidance(gamma=gamma, detach=detach)(prior, LIKELIHOOD)
    torch.testing.assert_close(guided.eps(X, T), expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_dps_takes_the_norm_per_member(schedule) -> None:
    """DPSGaussianScore of the original code, member by member: s = -zeta grad |r|^2 / |r|."""
    prior, zeta = Nonlinear(schedule), 0.7
    sigma = schedule.sigma(T)
    guided = DPS(zeta=zeta)(prior, LIKELIHOOD).eps(X, T)
    for i in range(len(X)):
        x = X[i : i + 1].clone().requires_grad_()
        x0 = prior(x, T)
        square = (LIKELIHOOD.y - LIKELIHOOD.operator(x0)).square().sum()
        (s,) = torch.autograd.grad(square, x)
        s = -s * zeta / square.sqrt()
        expected = prior.eps(X[i : i + 1], T) - sigma * s
        torch.testing.assert_close(guided[i : i + 1], expected)


def test_dps_of_an_observation_that_is_met_exactly() -> None:
    prior = Nonlinear(VP())
    y = LIKELIHOOD.operator(prior(X, T))[1]
    out = DPS()(prior, attrs.evolve(LIKELIHOOD, y=y))(X, T)
    assert out.isfinite().all()
    torch.testing.assert_close(out[1], prior(X, T)[1])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_mmps_is_its_formula(schedule) -> None:
    """x0 + V A^T (std^2 + A V A^T)^-1 (y - A(x0)) with V = sigma^2 / alpha dx0/dx_t."""
    prior = Nonlinear(schedule)
    alpha, sigma = schedule.alpha(T), schedule.sigma(T)
    guided = MMPS()(prior, LIKELIHOOD)(X, T)
    for i in range(len(X)):
        x = X[i : i + 1]
        x0 = prior(x, T)
        J = torch.autograd.functional.jacobian(lambda x: prior(x, T), x).reshape(6, 6)
        A = torch.autograd.functional.jacobian(LIKELIHOOD.operator, x0).reshape(3, 6)
        V = sigma**2 / alpha * J
        AVA = A @ V @ A.T
        values, vectors = torch.linalg.eigh((AVA + AVA.T) / 2)
        AVA = vectors @ values.clamp_min(0).diag() @ vectors.T
        r = (LIKELIHOOD.y - LIKELIHOOD.operator(x0)).flatten()
        # The pull-back takes the Jacobian transposed, which is the same where it is symmetric.
        step = V.T @ A.T @ torch.linalg.solve(AVA + (STD.flatten() ** 2).diag(), r)
        torch.testing.assert_close(guided[i].flatten(), x0.flatten() + step)


def test_mmps_of_a_prior_with_a_negative_jacobian_stays_bounded() -> None:
    """Only an imperfect network has one; without the bound the step's sign would turn."""

    class Wrong(Denoiser):
        def forward(self, x_t, t):
            return -x_t

    vague = attrs.evolve(LIKELIHOOD, operator=lambda x: x[..., :1])
    out = MMPS()(Wrong(VP()), vague)(X, T)
    residual = (vague.y - vague.operator(-X)).abs()
    step = (out + X)[..., :1].abs()
    ratio = float(VP().sigma(T) ** 2 / VP().alpha(T))
    torch.testing.assert_close(step, ratio * residual / STD**2)


def test_mmps_refuses_many_observations() -> None:
    many = attrs.evolve(LIKELIHOOD, y=torch.zeros(600), std=torch.ones(600))
    with pytest.raises(AssimilationError, match=r"there are 600 \(max_observations = 512\)"):
        MMPS()(Nonlinear(VP()), many)
    MMPS(max_observations=600)(Nonlinear(VP()), many)


@pytest.mark.parametrize(
    "guidance", [GaussianGuidance(gamma=0.0), GaussianGuidance(gamma=1.0), DPS(zeta=0.2)]
)
def test_other_settings_keep_the_promises(guidance) -> None:
    check_guidance(guidance)


def test_what_they_declare() -> None:
    assert MMPS.exact_for_gaussian
    assert not GaussianGuidance.exact_for_gaussian
    assert not DPS.exact_for_gaussian
    assert GaussianGuidance.uses_std
    assert not DPS.uses_std
