"""Twisted SMC against exact posteriors, and against the same guidance without it."""

from __future__ import annotations

import math
import signal
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch

from sda_core.config import structure
from sda_core.denoiser import Denoiser, MarkovBlanketDenoiser
from sda_core.errors import AssimilationError, AssimilationWarning, ConfigError, StoppedError
from sda_core.guidance import Guidance
from sda_core.io.ensemble_file import EnsembleFile
from sda_core.io.xarray import load_array
from sda_core.method import SDA, Method, Problem
from sda_core.method.resampling import effective_sample_size, systematic_resampling
from sda_core.noise import GaussianNoise, PoissonNoise, StudentTNoise
from sda_core.observation import ObservationModel
from sda_core.sampler import DDIM, DDPM
from sda_core.schedule import VE
from sda_core.testing import ExactGuidance, draw, gaussian_problem
from sda_core.testing.gaussian import affine_map, gaussian_posterior
from sda_dps.dps import DPS
from sda_dps.gaussian import GaussianGuidance
from sda_dps.mmps import MMPS
from sda_dps.twisted_smc import TwistedSMC

PROBLEM = gaussian_problem(length=4)
N = 4096


def _tools(guidance=None, steps=64, problem=PROBLEM, **more) -> dict[str, Any]:
    sampler = more.pop("sampler", DDPM(steps=steps, grid="log-snr"))
    guidance = guidance or GaussianGuidance(gamma=1.0)
    return dict(model=problem.model, sampler=sampler, guidance=guidance, **more)


def _target(problem):
    """The exact posterior, in physical units."""
    shape, prior = problem.problem.shape, problem.model.denoiser
    G, g = affine_map(problem.model.standardization.to_physical, shape)
    mean, covariance = G @ prior.mean.flatten() + g, G @ prior.covariance @ G.T
    H, c = affine_map(problem.problem.observation.operator, shape)
    std = problem.problem.observation.std.flatten()
    return gaussian_posterior(mean, covariance, H, problem.problem.y.flatten() - c, std)


def _errors(x, mean, covariance):
    """Largest error of a mean and of a covariance, in units of the posterior's std."""
    x, std = x.double().flatten(1), covariance.diagonal().sqrt()
    error = ((x.mean(0) - mean) / std).abs().max()
    return float(error), float(((x.T.cov() - covariance) / (std[:, None] * std)).abs().max())


@pytest.mark.parametrize(
    ("guidance", "eta", "schedule", "wrong"),
    [
        (GaussianGuidance(gamma=1.0), 1.0, None, 0.3),
        (GaussianGuidance(gamma=1.0), 0.8, None, 0.3),
        (DPS(zeta=0.3), 1.0, VE(), 1.0),
    ],
    ids=repr,
)
def test_wrong_guidance_is_corrected(guidance, eta, schedule, wrong) -> None:
    problem = gaussian_problem(length=4, schedule=schedule)
    sampler = DDIM(steps=64, grid="log-snr", eta=eta)
    tools = _tools(guidance, problem=problem, sampler=sampler)
    target = _target(problem)
    without = draw(SDA(), problem.problem, 512, 0, **tools)
    corrected = draw(TwistedSMC(particles=N, eta=eta), problem.problem, N, 0, **tools)
    assert max(_errors(without, *target)) > wrong
    mean, covariance = _errors(corrected, *target)
    assert mean < 0.13
    assert covariance < 0.2


class ExactTwist(ExactGuidance):
    """Exact guidance that also knows p(y | x_t)."""

    def __call__(self, prior, likelihood):
        self.prior = prior
        return super().__call__(prior, likelihood)

    def log_likelihood(self, x0, likelihood, alpha, sigma):
        U, v = self.prior.directions, self.prior.variances
        V = U @ torch.diag(v * sigma**2 / (alpha**2 * v + sigma**2)) @ U.T
        H, _ = affine_map(likelihood.operator, x0.shape[1:])
        S = H @ V @ H.T + likelihood.noise.std.square().diag()
        residual = likelihood.residual(x0.double())
        return torch.distributions.MultivariateNormal(0 * residual[0], S).log_prob(residual)


def test_weights_stay_equal_where_nothing_is_to_be_corrected() -> None:
    """But for the error of single steps."""
    least = []
    for steps in (32, 512):
        recorded = {}
        tools = _tools(ExactTwist(), steps, record=recorded.update)
        draw(TwistedSMC(particles=64, threshold=0.0), PROBLEM.problem, 2, 0, **tools)
        assert len(recorded["ess"]) == steps
        least.append(recorded["ess_min"] / 64)
    assert least[0] < least[1]
    assert least[1] > 0.93


def _problem(operator, noise, y) -> Problem:
    """One state of the chain, two dimensions, observed in some other way."""
    observation = ObservationModel(
        operator=operator, noise=noise, shape=y.shape, times=None, length=1
    )
    return Problem(system=PROBLEM.problem.system, observation=observation, y=y)


def _scale(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


STATE = gaussian_problem(length=1)
NON_GAUSSIAN = [
    # An outlier that a Gaussian of the same scale would follow. (The last: error without SMC.)
    (
        lambda x: x[..., 0, :],
        StudentTNoise(scale=_scale(0.3, 0.3), dof=3.0),
        _scale(7.0, -1.0),
        0.0,
    ),
    (
        lambda x: (x[..., 0, :1] / 2).exp(),
        PoissonNoise(scale=_scale(1.0), floor=1e-6),
        _scale(2.0),
        0.0,
    ),
    # Two modes.
    (lambda x: (x[..., 0, :1] - 3) ** 2, GaussianNoise(scale=_scale(1.0)), _scale(2.0), 0.09),
]


@pytest.mark.parametrize("case", NON_GAUSSIAN, ids=["student-t", "poisson", "square"])
def test_what_is_not_gaussian_against_quadrature(case) -> None:
    *case, wrong = case
    problem, sampler = _problem(*case), DDPM(steps=64, grid="log-snr")
    prior = STATE.model.denoiser
    u = torch.linspace(-6, 6, 401, dtype=torch.float64)
    z = torch.cartesian_prod(u, u)
    x = prior.mean.flatten() + z @ torch.linalg.cholesky(prior.covariance).T
    x = STATE.model.standardization.to_physical(x.reshape(-1, 1, 2))
    log_p = problem.observation.log_prob(problem.y, x) - z.square().sum(1) / 2
    tools = _tools(MMPS(), problem=STATE, sampler=sampler)

    def distance(method, members) -> float:
        """The larger of the two variables' Kolmogorov-Smirnov distances."""
        sample = draw(method, problem, members, 0, **tools).double()
        distances = []
        for i in range(2):
            values, order = x[:, 0, i].sort()
            exact = log_p.softmax(0)[order].cumsum(0)
            at = torch.searchsorted(sample[:, 0, i].sort().values, values) / members
            distances.append(float((at - exact).abs().max()))
        return max(distances)

    # Independent members have 1.6 / sqrt(n); with the Student-t the particles are worth n = 400.
    assert distance(TwistedSMC(particles=N), N) < 0.09
    assert distance(SDA(), N) > wrong


def test_batches_do_not_matter() -> None:
    whole = draw(TwistedSMC(particles=40), PROBLEM.problem, 20, 0, **_tools())
    parts = draw(TwistedSMC(particles=40, batch_size=7), PROBLEM.problem, 20, 0, **_tools())
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-4)


def test_what_is_evaluated_and_told() -> None:
    rows, heard, recorded, said = [], [], {}, []
    hook = PROBLEM.model.denoiser.register_forward_hook(lambda m, args, out: rows.append(len(out)))
    method = TwistedSMC(particles=32, calibration=8)
    tools = _tools(
        steps=10,
        announce=said.append,
        record=recorded.update,
        on_step=lambda i, n: heard.append((i, n)),
    )
    plan = len(tools["sampler"].times(VE())[:: 10 // 8])  # one particle, for the memory
    draw(method, PROBLEM.problem, 4, 0, **tools)
    hook.remove()
    assert sum(rows) == plan + 10 * (32 + 8)  # a guided evaluation is one of the prior
    assert heard == [(i, 10) for i in range(1, 11)]
    assert recorded["ess_min"] == min(recorded["ess"])
    assert recorded["ess_final"] == recorded["ess"][-1]
    assert recorded["particles"] == 32
    assert 1 <= recorded["ancestors"] <= 32
    assert any("effective sample size" in line for line in said)


def test_state_at_the_smallest_noise() -> None:
    sampler = DDPM(steps=64, grid="log-snr", denoise_final=False)
    tools = _tools(sampler=sampler)
    x = draw(TwistedSMC(particles=N), PROBLEM.problem, N, 0, **tools)
    assert max(_errors(x, *_target(PROBLEM))) < 0.2


@attrs.frozen
class Broken(Guidance):
    """Guidance that fails for the first members."""

    members: int
    value: float

    def __call__(self, prior, likelihood):
        right, members, value = ExactGuidance()(prior, likelihood), self.members, self.value

        class Some(Denoiser):
            def forward(self, x_t, t):
                x0 = right(x_t, t)
                x0[:members] = value
                return x0

        return Some(prior.schedule)


def test_particles_that_are_not_finite_are_replaced() -> None:
    said: list[str] = []
    tools = _tools(Broken(3, torch.inf), steps=8, announce=said.append)
    x = draw(TwistedSMC(particles=64), PROBLEM.problem, 64, 0, **tools)
    assert x.isfinite().all()
    assert "(0 lost on the way)" not in said[-1]
    with pytest.raises(AssimilationError, match="none of 64 particles is finite and compatible"):
        draw(
            TwistedSMC(particles=64),
            PROBLEM.problem,
            64,
            0,
            **_tools(Broken(64, torch.inf), steps=8),
        )


def test_without_a_guided_estimate_the_step_is_the_priors() -> None:
    """Then twisting alone is left, and the posterior still exact."""
    tools = _tools(Broken(N, torch.nan))
    x = draw(TwistedSMC(particles=N), PROBLEM.problem, N, 0, **tools)
    mean, covariance = _errors(x, *_target(PROBLEM))
    assert mean < 0.2
    assert covariance < 0.3


def test_a_bad_ensemble_is_told_of() -> None:
    accurate = gaussian_problem(length=4, std=0.001)
    tools = _tools(DPS(zeta=1e-3), steps=8, problem=accurate)
    with pytest.warns(AssimilationWarning, match="says little about the spread"):
        draw(TwistedSMC(particles=32), accurate.problem, 4, 0, **tools)


def test_what_is_refused() -> None:
    with pytest.raises(AssimilationError, match="TwistedSMC needs a trained model"):
        draw(TwistedSMC(), PROBLEM.problem, 2, 0, model=PROBLEM.model)
    tools = _tools(GaussianGuidance(gamma="auto"))  # before it is tuned
    with pytest.raises(AssimilationError, match="9 members cannot be drawn from 8 particles"):
        draw(TwistedSMC(particles=8), PROBLEM.problem, 9, 0, **tools)
    with pytest.raises(ConfigError, match=r"eta: got 0.0, allowed: above 0, up to 1"):
        structure(Method, {"name": "twisted-smc", "eta": 0.0})


def test_effective_sample_size_and_resampling() -> None:
    w = _scale(0.1, 0.4, 0.2, 0.3, 0.0)
    assert math.isclose(effective_sample_size(w.log() + 1000), 1 / 0.30, rel_tol=1e-9)
    # A systematic draw takes each index floor(N w) or ceil(N w) times, N w on average.
    counts = torch.zeros(5, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2000):
        count = systematic_resampling(w.log(), generator).bincount(minlength=5)
        assert ((count - 5 * w).abs() < 1).all()
        counts += count
    torch.testing.assert_close(counts / 2000, 5 * w, rtol=0, atol=0.05)
    assert torch.equal(systematic_resampling(torch.zeros(7).double(), generator), torch.arange(7))


def _ensemble(tmp_path) -> EnsembleFile:
    problem = PROBLEM.problem
    path, shape = tmp_path / "posterior.nc", (8, *problem.shape)
    return EnsembleFile(path, problem.system.spec, shape, {}, minutes=1e9)


def _stop_at_7(step: int, steps: int) -> None:
    if step == 7:
        signal.raise_signal(signal.SIGTERM)


def test_a_stopped_run_goes_on_where_it_was(tmp_path) -> None:
    problem, method = PROBLEM.problem, TwistedSMC(particles=32, calibration=8)
    whole = draw(method, problem, 8, 0, **_tools(steps=12)).clone()
    evaluated, said = [], []

    with pytest.raises(StoppedError, match="the same command resumes there"):
        draw(
            method,
            problem,
            8,
            0,
            **_tools(steps=12, ensemble=_ensemble(tmp_path), on_step=_stop_at_7),
        )
    hook = PROBLEM.model.denoiser.register_forward_hook(lambda m, x, y: evaluated.append(len(y)))
    tools = _tools(steps=12, ensemble=(file := _ensemble(tmp_path)), announce=said.append)
    x = draw(method, problem, 8, 0, **tools)
    hook.remove()
    assert sum(evaluated) == (12 - 7) * 32  # nothing is planned, calibrated or done again
    assert said[0] == "resuming after 7 of 11 steps"
    assert torch.equal(x, whole)
    file.finish(x)
    assert torch.equal(load_array(tmp_path / "posterior.nc", "posterior"), whole)


def test_a_stopped_run_goes_on_in_smaller_chunks(tmp_path) -> None:
    """Where these are asked for, as after it took too much memory."""
    method, sizes = TwistedSMC(particles=32, calibration=8), []

    def tools(chunk_size: int | None, **more) -> dict[str, Any]:
        made = _tools(steps=12, ensemble=_ensemble(tmp_path), **more)
        whole = PROBLEM.model
        composed = MarkovBlanketDenoiser(whole.denoiser, 4, chunk_size=chunk_size)
        model = SimpleNamespace(
            standardization=whole.standardization,
            device=whole.device,
            trajectory_denoiser=lambda: composed,
        )
        return {**made, "model": model}

    with pytest.raises(StoppedError):
        draw(method, PROBLEM.problem, 8, 0, **tools(None, on_step=_stop_at_7))
    hook = PROBLEM.model.denoiser.register_forward_hook(lambda m, x, y: sizes.append(len(y)))
    draw(method, PROBLEM.problem, 8, 0, **tools(5))
    hook.remove()
    assert max(sizes) == 5
