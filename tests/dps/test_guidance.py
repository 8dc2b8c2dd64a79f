"""Guidance methods against their formulas. The kit and tests/exact do the rest."""

from __future__ import annotations

import inspect

import attrs
import pytest
import torch

from sda_core.denoiser import Denoiser
from sda_core.errors import AssimilationError
from sda_core.guidance import Likelihood
from sda_core.random import MemberNoise
from sda_core.sampler import DDPM
from sda_core.schedule import VE, VP
from sda_core.testing import check_guidance, gaussian_problem
from sda_dps.diffpir import DiffPIR
from sda_dps.dps import DPS
from sda_dps.gaussian import GaussianGuidance
from sda_dps.mmps import MMPS
from sda_dps.pigdm import PiGDM
from sda_dps.tmpd import TMPD


def _randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Nonlinear(Denoiser):
    """A denoiser with a full, state-dependent Jacobian."""

    mix = _randn(6, 6, seed=5)

    def forward(self, x_t, t):
        alpha, sigma = self.scales(x_t, t)
        flat = (x_t / (alpha + sigma)).flatten(1)
        return (flat + 0.3 * torch.tanh(flat @ self.mix)).reshape(x_t.shape)


class LogConcave(Denoiser):
    """A denoiser whose Jacobian is symmetric, between 0 and 1 / alpha, and state-dependent."""

    mix = _randn(6, 6, seed=5) / 8

    def forward(self, x_t, t):
        alpha, sigma = self.scales(x_t, t)
        flat = x_t.flatten(1)
        flat = flat - 0.5 * torch.tanh(flat @ self.mix) @ self.mix.T
        return alpha / (alpha**2 + sigma**2) * flat.reshape(x_t.shape)


STD = torch.tensor([[0.1], [0.2], [0.5]], dtype=torch.float64)
LIKELIHOOD = Likelihood.gaussian(
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


def _jacobians(prior, x):
    """x0, J, A' and y - A(x0) of one member, flattened."""
    x0 = prior(x, T)
    J = torch.autograd.functional.jacobian(lambda x: prior(x, T), x).reshape(6, 6)
    A = torch.autograd.functional.jacobian(LIKELIHOOD.operator, x0).reshape(3, 6)
    return x0.flatten(), J, A, (LIKELIHOOD.y - LIKELIHOOD.operator(x0)).flatten()


R = (STD.flatten() ** 2).diag()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("solver", ["direct", "cg", "gmres"])
def test_mmps_is_its_formula(schedule, solver) -> None:
    """x0 + V A^T (std^2 + A V A^T)^-1 (y - A(x0)) with V = sigma^2 / alpha dx0/dx_t."""
    prior = LogConcave(schedule)
    guided = MMPS(solver=solver)(prior, LIKELIHOOD)(X, T)
    for i in range(len(X)):
        x0, J, A, r = _jacobians(prior, X[i : i + 1])
        V = schedule.sigma(T) ** 2 / schedule.alpha(T) * J
        step = V @ A.T @ torch.linalg.solve(A @ V @ A.T + R, r)
        torch.testing.assert_close(guided[i].flatten(), x0 + step)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tmpd_is_its_formula(schedule) -> None:
    """MMPS with the row sums of A V A^T on the diagonal."""
    prior = LogConcave(schedule)
    guided = TMPD()(prior, LIKELIHOOD)(X, T)
    for i in range(len(X)):
        x0, J, A, r = _jacobians(prior, X[i : i + 1])
        V = schedule.sigma(T) ** 2 / schedule.alpha(T) * J
        sums = (A @ V @ A.T).sum(1)
        assert (sums > 0).all()
        step = V @ A.T @ (r / (sums + R.diagonal()))
        torch.testing.assert_close(guided[i].flatten(), x0 + step)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("detach", [False, True])
def test_pigdm_is_its_formula(schedule, detach) -> None:
    """grad = J^T A^T (r^2 A A^T + std^2)^-1 (y - A(x0)), r^2 = sigma^2 / (alpha^2 + sigma^2)."""
    prior = Nonlinear(schedule)
    alpha, sigma = schedule.alpha(T), schedule.sigma(T)
    guided = PiGDM(detach=detach)(prior, LIKELIHOOD)(X, T)
    for i in range(len(X)):
        x0, J, A, r = _jacobians(prior, X[i : i + 1])
        r2 = sigma**2 / (alpha**2 + sigma**2)
        if detach:
            J = alpha / (alpha**2 + sigma**2) * torch.eye(6, dtype=torch.float64)
        score = J.T @ A.T @ torch.linalg.solve(r2 * A @ A.T + R, r)
        torch.testing.assert_close(guided[i].flatten(), x0 + sigma**2 / alpha * score)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_diffpir_is_the_minimum(schedule) -> None:
    """The gradient of |y - A(x)|^2 / std^2 + weight (alpha / sigma)^2 |x - x0|^2 is zero."""
    prior, weight = Nonlinear(schedule), 3.0
    x = DiffPIR(weight=weight, newton_steps=64)(prior, LIKELIHOOD)(X, T).requires_grad_()
    precision = weight * (schedule.alpha(T) / schedule.sigma(T)) ** 2
    misfit = (LIKELIHOOD.residual(x) ** 2 / LIKELIHOOD.variance(x)).sum()
    (gradient,) = torch.autograd.grad(misfit + precision * (x - prior(X, T)).square().sum(), x)
    assert gradient.abs().max() < 1e-6 * misfit


def test_diffpir_takes_no_step_that_goes_up() -> None:
    """Gauss-Newton overshoots on an operator that saturates; the objective must not rise."""
    steep = attrs.evolve(
        LIKELIHOOD, operator=lambda x: (8 * x[..., :1]).tanh(), y=torch.full((3, 1), 0.999)
    )
    prior = Nonlinear(VP())
    ratio = float(VP().sigma(T) / VP().alpha(T))
    x0 = prior(X, T)
    for steps in (1, 4):
        x = DiffPIR(newton_steps=steps)(prior, steep)(X, T)
        misfit = [(steep.residual(v) ** 2 / steep.variance(v)).sum(1) for v in (x0, x)]
        assert ((x - x0).square().sum((1, 2)) / ratio**2 + misfit[1] <= misfit[0] + 1e-9).all()


@pytest.mark.parametrize(
    "guidance",
    [
        PiGDM(detach=True),
        DiffPIR(),
        GaussianGuidance(detach=True),
        GaussianGuidance(detach=True, slope="prior"),
    ],
)
def test_one_evaluation_without_a_backward_pass(guidance) -> None:
    calls = []

    class Forward(Nonlinear):
        def forward(self, x_t, t):
            calls.append(torch.is_grad_enabled())
            return super().forward(x_t, t)

    guidance(Forward(VP()), LIKELIHOOD)(X, T)
    assert calls == [False]


class CountedBackward(torch.autograd.Function):
    calls = 0

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        CountedBackward.calls += 1
        return gradient


@pytest.mark.parametrize(
    ("guidance", "backward"),
    [
        (GaussianGuidance(), 1),
        (PiGDM(), 1),
        (TMPD(), 2),
        (MMPS(), 3),
        (MMPS(solver="cg", iterations=2), 2),
        (MMPS(solver="gmres", iterations=1), 1),
    ],
)
def test_number_of_passes_through_the_network(guidance, backward) -> None:
    forward = []

    class Counted(LogConcave):
        def forward(self, x_t, t):
            forward.append(1)
            return CountedBackward.apply(super().forward(x_t, t))

    CountedBackward.calls = 0
    guidance(Counted(VP()), LIKELIHOOD)(X, T)
    assert (len(forward), CountedBackward.calls) == (1, backward)


def test_slope_of_the_prior() -> None:
    """The step without the network's derivative has the factor alpha / (alpha^2 + sigma^2)."""
    prior = Nonlinear(VP())
    x0 = prior(X, T)
    alpha, sigma = VP().alpha(T), VP().sigma(T)
    at_noise, at_prior = (
        GaussianGuidance(detach=True, slope=slope)(prior, LIKELIHOOD)(X, T) - x0
        for slope in ("noise", "prior")
    )
    torch.testing.assert_close(at_prior, alpha**2 / (alpha**2 + sigma**2) * at_noise)


class Adversary(Denoiser):
    """x0 plausible, its Jacobian a matrix of which nothing is known."""

    def __init__(self, seed: int, size: float) -> None:
        super().__init__(VP())
        self.J = size * _randn(6, 6, seed=seed)

    def forward(self, x_t, t):
        rotated = (x_t.flatten(1) @ self.J.T).reshape(x_t.shape)
        return LogConcave(self.schedule)(x_t, t).detach() + rotated - rotated.detach()


SAFE = [MMPS(), MMPS(solver="cg"), MMPS(solver="cg", iterations=1), MMPS(solver="gmres"), TMPD()]


@pytest.mark.parametrize("guidance", SAFE, ids=repr)
@pytest.mark.parametrize("size", [0.1, 1.0, 100.0])
def test_steps_are_bounded_whatever_the_jacobian(guidance, size) -> None:
    r"""|d| <= (sigma / alpha) |z| / 2 and |z - B d| <= |z| with z = (y - A(x0)) / std."""
    accurate = Likelihood.gaussian(
        operator=lambda x: x[..., :1] + x[..., 1:] / 2, y=LIKELIHOOD.y, std=STD / 100
    )
    for seed in range(20):
        prior = Adversary(seed, size)
        for t in (0.05, 0.35, 0.9):
            time = torch.tensor(t, dtype=torch.float64)
            x0 = prior(X, time)
            guided = guidance(prior, accurate)(X, time)
            std = accurate.noise.std
            z, rest = ((accurate.residual(x) / std).norm(dim=1) for x in (x0, guided))
            ratio = float(VP().sigma(time) / VP().alpha(time))
            step = (guided - x0).flatten(1).norm(dim=1)
            assert (step <= ratio / 2 * z * (1 + 1e-9)).all()
            assert (rest <= z * (1 + 1e-9)).all()


@pytest.mark.parametrize("guidance", SAFE, ids=repr)
@pytest.mark.parametrize("kind", ["negative", "nan"])
def test_a_member_without_a_step_takes_that_of_a_standard_normal_prior(guidance, kind) -> None:
    """Its mates are left as they are."""

    class Broken(LogConcave):
        broken = True

        def forward(self, x_t, t):
            x0 = super().forward(x_t, t)
            if not self.broken:
                return x0
            bad = -9 * x_t[1] if kind == "negative" else 0 * torch.sqrt(x_t[1] * 0)
            return torch.cat((x0[:1], (x0[1].detach() + bad - bad.detach())[None], x0[2:]))

    direct = attrs.evolve(LIKELIHOOD, operator=lambda x: x[..., :1])
    prior = Broken(VP())
    guided = guidance(prior, direct)(X, T)
    x0 = prior(X, T)
    variance = float(VP().sigma(T) ** 2 / (VP().alpha(T) ** 2 + VP().sigma(T) ** 2))
    expected = x0[1].clone()
    expected[:, :1] += variance / (variance + STD**2) * (direct.y - x0[1, :, :1])
    torch.testing.assert_close(guided[1], expected)
    prior.broken = False
    mates = [0, 2, 3]
    torch.testing.assert_close(guided[mates], guidance(prior, direct)(X, T)[mates])


class Rough(Denoiser):
    """The exact denoiser with a small error whose derivative is large, as a network has."""

    def __init__(self, exact: Denoiser) -> None:
        super().__init__(exact.schedule)
        self.exact = exact

    def forward(self, x_t, t):
        alpha, sigma = self.scales(x_t, t)
        scale = (alpha**2 + sigma**2).sqrt()
        flat = (x_t / scale).flatten(1)
        d = flat.shape[1]
        error = torch.sin(20 * flat @ _randn(d, d, seed=3) / d**0.5).reshape(x_t.shape)
        return self.exact(x_t, t) + 0.2 * sigma / scale * error


def _farthest(guidance) -> float:
    """The largest distance of any value from the posterior's mean, in its std."""
    problem = gaussian_problem(length=9, std=0.05)
    posterior = guidance(Rough(problem.model.denoiser), problem.likelihood)
    noise = MemberNoise(0, range(128), dtype=torch.float64)
    x = DDPM(steps=64, grid="log-snr").sample(posterior, (128, *problem.problem.shape), noise)
    x = problem.model.standardization.to_physical(x)
    return float(((x - problem.mean) / problem.std).abs().max())


@pytest.mark.parametrize("guidance", [*SAFE[:2], *SAFE[3:]], ids=repr)
def test_no_member_runs_away_under_an_imperfect_denoiser(guidance, monkeypatch) -> None:
    assert _farthest(guidance) < 25
    # Without the bound some do.
    module = inspect.getmodule(type(guidance))
    monkeypatch.setattr(module, "safe_step", lambda A, step, *_: step)
    assert _farthest(guidance) > 60


def test_mmps_refuses_many_observations() -> None:
    many = Likelihood.gaussian(LIKELIHOOD.operator, y=torch.zeros(600), std=torch.ones(600))
    with pytest.raises(AssimilationError, match=r"there are 600 \(max_observations = 512\)"):
        MMPS()(Nonlinear(VP()), many)
    MMPS(max_observations=600)(Nonlinear(VP()), many)
    MMPS(solver="cg")(Nonlinear(VP()), many)


@pytest.mark.parametrize(
    "guidance",
    [
        GaussianGuidance(gamma=0.0),
        GaussianGuidance(gamma=1.0),
        GaussianGuidance(detach=True, slope="prior"),
        DPS(zeta=0.2),
        MMPS(solver="cg", iterations=16),
        MMPS(solver="gmres", iterations=16),
        PiGDM(detach=True),
        DiffPIR(weight=5.0, newton_steps=1),
    ],
    ids=repr,
)
def test_other_settings_keep_the_promises(guidance) -> None:
    check_guidance(guidance)


def test_what_they_declare() -> None:
    assert MMPS.exact_for_gaussian
    assert not GaussianGuidance.exact_for_gaussian
    for guidance in (DPS, TMPD, PiGDM, DiffPIR):
        assert not guidance.exact_for_gaussian
    assert GaussianGuidance.uses_std
    assert not DPS.uses_std
