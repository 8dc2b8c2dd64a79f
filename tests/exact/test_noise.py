"""Guidance under errors that are not independent and Gaussian, against exact posteriors."""

from __future__ import annotations

import math

import pytest
import torch

from sda_core.denoiser import Denoiser
from sda_core.guidance import Likelihood
from sda_core.noise import Correlated, Gaussian, JointNoise, Laplace, Poisson, StudentT
from sda_core.observation import Concatenate, Select
from sda_core.sampler import AdamsBashforth
from sda_core.schedule import VE, VP
from sda_core.testing import (
    GaussianChain,
    GaussianDenoiser,
    affine_map,
    gaussian_problem,
    linear_gaussian_moments,
    rts_smoother,
)
from sda_dps.diffpir import DiffPIR
from sda_dps.gaussian import GaussianGuidance
from sda_dps.linearized import Linearized
from sda_dps.mmps import MMPS
from sda_dps.pigdm import PiGDM
from sda_dps.tmpd import TMPD

LENGTH = 6
R = torch.tensor([[0.5, 0.24], [0.24, 0.2]], dtype=torch.float64)
EXACT = [MMPS(), MMPS(solver="cg", iterations=16), MMPS(solver="gmres", iterations=16)]


def _chain(observation, covariance):
    """Prior, likelihood and exact posterior denoiser; y ~ N(A(x), covariance)."""
    chain, model = GaussianChain(), gaussian_problem(length=LENGTH).model
    bound = observation.bind(chain.spec, LENGTH)
    mean, C = linear_gaussian_moments(chain, LENGTH, 64)
    H, c = affine_map(bound.operator, (LENGTH, 2))
    y = bound.sample(mean.reshape(LENGTH, 2), torch.Generator().manual_seed(3))
    K = torch.linalg.solve(H @ C @ H.T + covariance, H @ C).T
    posterior = mean + K @ (y.flatten() - c - H @ mean), C - K @ H @ C
    scale = 1 / affine_map(model.standardization.to_physical, (LENGTH, 2))[0].diagonal()
    exact = GaussianDenoiser(
        model.standardization.to_model(posterior[0].reshape(LENGTH, 2)),
        scale[:, None] * posterior[1] * scale,
        model.denoiser.schedule,
    )
    likelihood = Likelihood(
        operator=lambda x: bound.operator(model.standardization.to_physical(x)),
        y=y,
        noise=bound.noise,
    )
    return model.denoiser, likelihood, exact, posterior, y


def _same(guidance, prior, likelihood, exact) -> None:
    x = torch.randn(3, LENGTH, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (0.05, 0.3, 0.6, 0.9):
        time = torch.tensor(t, dtype=torch.float64)
        guided = guidance(prior, likelihood)(x, time)
        torch.testing.assert_close(guided, exact(x, time), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("guidance", EXACT, ids=["direct", "cg", "gmres"])
def test_errors_correlated_between_variables_give_the_smoother(guidance) -> None:
    noise = Correlated(covariance=R.tolist())
    problem = _chain(Select(noise=noise), torch.block_diag(*[R] * LENGTH))
    prior, likelihood, exact, (mean, covariance), y = problem
    smoothed = rts_smoother(
        GaussianChain(), [(torch.eye(2).double(), y_i, R) for y_i in y], transitions=64
    )
    torch.testing.assert_close(smoothed.mean.flatten(), mean)
    torch.testing.assert_close(smoothed.covariance[2], covariance[4:6, 4:6])
    _same(guidance, prior, likelihood, exact)


@pytest.mark.parametrize("guidance", EXACT, ids=["direct", "cg", "gmres"])
def test_errors_correlated_between_times_give_the_exact_posterior(guidance) -> None:
    std, length = 0.4, 2.5
    noise = Correlated(std=std, correlation_length=length, axis=0)
    i = torch.arange(LENGTH, dtype=torch.float64)
    covariance = std**2 * torch.exp(-(i[:, None] - i).abs() / length)
    *problem, _, _ = _chain(Select(variables=("u",), noise=noise), covariance)
    _same(guidance, *problem)


def test_several_groups_give_the_exact_posterior() -> None:
    """One with correlated errors, one with errors of their own."""
    parts = (
        Select(every=3, noise=Correlated(covariance=R.tolist())),
        Select(variables=("v",), every=2, std=0.3),
    )
    covariance = torch.block_diag(R, R, 0.09 * torch.eye(3))
    *problem, _, _ = _chain(Concatenate(parts=parts), covariance)
    for guidance in EXACT:
        _same(guidance, *problem)


# --- errors that are not Gaussian: moments by quadrature ---

M = 1024


class Normals:
    """Numbers that fill the normal distribution evenly, so that few members do."""

    def normal(self, shape):
        u = torch.quasirandom.SobolEngine(math.prod(shape[1:]), scramble=True, seed=1)
        return torch.special.ndtri(u.draw(shape[0]).double().clamp(1e-9, 1 - 1e-9)).reshape(shape)


def _case(d: int):
    """Mean and covariance of the prior, and an operator with one or two values."""
    i = torch.arange(d, dtype=torch.float64)
    covariance = 1.3 * 0.8 ** (i[:, None] - i).abs()
    A = torch.eye(d, dtype=torch.float64)[: min(d, 2)]
    if d == 5:
        A = torch.tensor([[1, 0.5, 0, 0, 0], [0, 0, 0, -1, 1]], dtype=torch.float64)
    return torch.linspace(0.4, -0.4, d, dtype=torch.float64), covariance, A


def _quadrature(mean, covariance, A, y, noise):
    """Mean and std of x given y, by integration over m = A x on a grid."""
    S = A @ covariance @ A.T
    axis = torch.linspace(-8, 8, 4001 if len(A) == 1 else 801, dtype=torch.float64)
    z = torch.cartesian_prod(*[axis] * len(A)).reshape(-1, len(A))
    m = A @ mean + z @ torch.linalg.cholesky(S).T
    w = torch.softmax(noise.log_prob(y, m) - 0.5 * z.square().sum(1), 0)
    gain = torch.linalg.solve(S, A @ covariance).T
    centre, spread = w @ m, ((m - w @ m) * w[:, None]).T @ (m - w @ m)
    rest = covariance - gain @ A @ covariance
    var = (rest + gain @ spread @ gain.T).diagonal()
    return mean + gain @ (centre - A @ mean), var.sqrt()


NOISES = {
    "student-t": StudentT(scale=0.3),
    "laplace": Laplace(scale=0.3),
    "poisson": Poisson(),
    "gaussian": Gaussian(std=0.3),
}
#: Errors at y, in units of the noise, of a usual observation and of one with an outlier.
DRAWN = {"usual": (0.5, -1.2), "outlier": (6.0, 0.4)}


def errors(guidance, d: int, name: str, drawn: str) -> tuple[float, float]:
    """Largest error of a posterior mean in its std, and of the log of a std."""
    mean, covariance, A = _case(d)
    noise = NOISES[name].bind((len(A),))
    if name == "poisson":  # rates of about 3, against a std of 1.1
        mean = mean + 3.0
        A = A.abs() if d == 5 else A
    m = A @ (mean + 0.5)
    y = m + noise.std_at(m) * torch.tensor(DRAWN[drawn][: len(A)], dtype=torch.float64)
    if name == "poisson":
        y = y.round().clamp_min(0)
    exact_mean, exact_std = _quadrature(mean, covariance, A, y, noise)
    prior = GaussianDenoiser(mean[None], covariance, VP())
    likelihood = Likelihood(operator=lambda x: x.flatten(1) @ A.to(x).T, y=y, noise=noise)
    posterior = guidance(prior, likelihood)
    x = AdamsBashforth(steps=48, grid="log-snr").sample(posterior, (M, 1, d), Normals()).flatten(1)
    error = (x.mean(0) - exact_mean) / exact_std
    return float(error.abs().max()), float((x.std(0) / exact_std).log().abs().max())


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("drawn", DRAWN)
@pytest.mark.parametrize("name", ["student-t", "laplace"])
def test_mmps_under_heavy_tails(name, drawn, d) -> None:
    mean, std = errors(MMPS(), d, name, drawn)
    assert mean < 0.15
    assert std < 0.12


@pytest.mark.parametrize("d", [1, 2, 5])
def test_mmps_under_counts(d) -> None:
    mean, std = errors(MMPS(), d, "poisson", "usual")
    assert mean < 0.1
    assert std < 0.05


@pytest.mark.parametrize(
    "guidance", [TMPD(), PiGDM(), DiffPIR(), GaussianGuidance(gamma=0.3)], ids=repr
)
@pytest.mark.parametrize("name", ["student-t", "laplace", "poisson"])
def test_other_guidance_is_as_good_as_under_gaussian_errors(guidance, name) -> None:
    mean, std = errors(guidance, 1, name, "usual")
    gaussian_mean, gaussian_std = errors(guidance, 1, "gaussian", "usual")
    diffpir_of_counts = isinstance(guidance, DiffPIR) and name == "poisson"
    assert mean < gaussian_mean + (0.5 if diffpir_of_counts else 0.15)
    assert std < gaussian_std + 0.2


@pytest.mark.parametrize("name", ["student-t", "laplace"])
def test_the_variance_at_the_estimate_would_not_do(name, monkeypatch) -> None:
    """Taken as certain, an estimate far from y makes an outlier of every observation."""
    monkeypatch.setattr(Linearized, "_diagonal", lambda self, variance: None)
    mean, std = errors(MMPS(), 1, name, "outlier")
    assert mean > 1.0
    assert std > 0.4


def test_a_group_without_outliers_is_not_touched_by_one_with() -> None:
    """Side by side, each of two independent values is estimated as it is alone."""
    prior = GaussianDenoiser(torch.zeros(1, 2).double(), torch.eye(2).double() * 1.3, VE())
    gaussian, heavy = (noise.bind((1,)) for noise in (Gaussian(std=0.3), StudentT(scale=0.3)))
    y = torch.tensor([0.7, 2.5], dtype=torch.float64)
    x, t = torch.randn(4, 1, 2, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)

    def guided(noise, entries):
        likelihood = Likelihood(
            operator=lambda x: x.flatten(1)[:, entries], y=y[entries], noise=noise
        )
        return MMPS()(prior, likelihood)(x, t)

    both = guided(JointNoise(parts=(gaussian, heavy)), [0, 1])
    torch.testing.assert_close(both[..., 0], guided(gaussian, [0])[..., 0])
    torch.testing.assert_close(both[..., 1], guided(heavy, [1])[..., 1])


def test_every_member_may_have_its_own_observation() -> None:
    prior: Denoiser = GaussianDenoiser(
        torch.zeros(1, 2).double(), torch.eye(2).double() * 1.3, VP()
    )
    y, x = torch.randn(2, 3, 1, 2, dtype=torch.float64)
    t = torch.tensor(0.4, dtype=torch.float64)
    noise = StudentT(scale=0.3).bind((1, 2))
    guidances = MMPS(), MMPS(solver="cg"), TMPD(), PiGDM(), DiffPIR(), GaussianGuidance()
    for guidance in guidances:
        together = guidance(prior, Likelihood(operator=lambda x: x, y=y, noise=noise))(x, t)
        for i in range(3):
            alone = Likelihood(operator=lambda x: x, y=y[i], noise=noise)
            torch.testing.assert_close(together[i], guidance(prior, alone)(x[i : i + 1], t)[0])


@pytest.mark.parametrize("guidance", [*EXACT, TMPD()], ids=["direct", "cg", "gmres", "tmpd"])
def test_a_member_without_a_derivative_takes_a_plain_step(guidance) -> None:
    """That of a prior with unit variance, under the errors that such a prior makes likely."""

    class Broken(GaussianDenoiser):
        def forward(self, x_t, t):
            x0 = super().forward(x_t, t)
            return torch.cat((x0[:1] + 0 * torch.sqrt(0 * x_t[:1]), x0[1:]))

    given = torch.zeros(1, 2).double(), torch.eye(2).double() * 1.3, VP()
    y, x = torch.randn(2, 3, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor(0.4, dtype=torch.float64)
    likelihood = Likelihood(operator=lambda x: x, y=y, noise=StudentT(scale=0.3).bind((1, 2)))
    broken, sound = (
        guidance(kind(*given), likelihood)(x, t) for kind in (Broken, GaussianDenoiser)
    )
    x0, s = GaussianDenoiser(*given)(x, t), VP().sigma(t) ** 2  # alpha^2 + sigma^2 = 1
    v = likelihood.variance(x0, s.expand(3, 2)).reshape(3, 1, 2)
    torch.testing.assert_close(broken[0], (x0 + s / (s + v) * (y - x0))[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(broken[1:], sound[1:])
