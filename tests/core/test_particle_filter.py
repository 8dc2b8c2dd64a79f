"""Methods: the particle filter against the smoother, and SDA's errors."""

from __future__ import annotations

import pytest
import torch

from sda_core.errors import AssimilationError
from sda_core.method import SDA, ParticleFilter, Problem
from sda_core.observation import Function
from sda_core.sampler import DDPM
from sda_core.system import HasLogProb
from sda_core.testing import ExactGuidance, GaussianChain, draw, gaussian_problem
from sda_lorenz.damped_spring import DampedSpring


@pytest.mark.parametrize("system", [GaussianChain(), DampedSpring()], ids=["chain", "spring"])
@pytest.mark.parametrize("every", [1, 4])
def test_particle_filter_is_the_smoother(system, every) -> None:
    problem = gaussian_problem(system, length=9, every=every, std=0.5, transitions=20)
    members = 4096
    method = ParticleFilter(particles=16384, burn_in=20)
    ensemble = method.draw(problem.problem, members, 0)
    error = (ensemble.mean(0) - problem.mean) / problem.std
    assert error.abs().max() < 0.12
    assert (ensemble.std(0) / problem.std - 1).abs().max() < 0.1
    # Paths are whole: neighbouring states go together as in the joint posterior.
    n = problem.std.numel()
    C = ensemble.flatten(1).T.cov() - problem.covariance
    std = problem.std.flatten()
    assert (C / (std[:, None] * std)).abs().max() < 0.2
    assert C.shape == (n, n)


def test_more_particles_are_closer() -> None:
    problem = gaussian_problem(length=5, std=0.3, transitions=8)
    errors = []
    for particles in (64, 8192):
        runs = [
            ParticleFilter(particles=particles, burn_in=8).draw(problem.problem, 64, seed)
            for seed in range(8)
        ]
        means = torch.stack([run.mean(0) for run in runs])
        errors.append(float(((means - problem.mean) / problem.std).square().mean().sqrt()))
    assert errors[1] < 0.7 * errors[0]


def test_without_observations_in_between_paths_follow_the_system() -> None:
    problem = gaussian_problem(length=9, every=8, transitions=8)
    ensemble = ParticleFilter(particles=4096, burn_in=8).draw(problem.problem, 1024, 0)
    system = problem.problem.system
    assert isinstance(system, HasLogProb)
    _, _, F, b, Q = system.linear_gaussian()
    steps = ensemble[:, 1:] - ensemble[:, :-1] @ F.T - b
    # In the middle, away from both observations, the system's noise is hardly conditioned.
    noise = steps[:, 2].T.cov()
    assert (noise - Q).abs().max() < 0.1 * Q.max()


def test_resampling_is_proportional_to_weights() -> None:
    method = ParticleFilter(particles=1000)
    weights = torch.arange(1000, dtype=torch.float64) + 1
    counts = torch.zeros(1000, dtype=torch.float64)
    for seed in range(200):
        drawn = method._resample(weights.log(), 0, torch.Generator().manual_seed(seed))
        once = torch.bincount(drawn, minlength=1000).double()
        # Systematic: every particle is drawn floor or ceil of its expected number of times.
        assert ((once - 1000 * weights / weights.sum()).abs() < 1 + 1e-9).all()
        counts += once
    expected = 200 * 1000 * weights / weights.sum()
    assert ((counts - expected).abs() < 5 * (expected.sqrt() + 1)).all()


def test_particles_that_are_not_finite_are_dropped() -> None:
    method = ParticleFilter(particles=4)
    nan, inf = float("nan"), float("inf")
    log_w = torch.tensor([nan, 0.0, -inf, nan])
    assert method._resample(log_w, 0, torch.Generator()).tolist() == [1] * 4


def test_errors() -> None:
    problem = gaussian_problem(length=3).problem
    filter_ = ParticleFilter(particles=8)
    with pytest.raises(AssimilationError, match="9 members cannot be drawn from 8 particles"):
        filter_.draw(problem, 9, 0)
    hopeless = Problem(system=problem.system, observation=problem.observation, y=problem.y + 1e200)
    with pytest.raises(
        AssimilationError, match=r"no particle is compatible .* time index 0.*now 8"
    ):
        filter_.draw(hopeless, 2, 0)
    mixed = Function(target=torch.sin, statewise=False, std=1.0).bind(problem.system.spec, 3)
    y = torch.zeros(3, 2, dtype=torch.float64)
    with pytest.raises(AssimilationError, match="mixes times"):
        filter_.draw(Problem(system=problem.system, observation=mixed, y=y), 2, 0)


def test_sda_does_not_depend_on_the_batch_size() -> None:
    problem = gaussian_problem(length=4)
    tools = dict(model=problem.model, sampler=DDPM(steps=8), guidance=ExactGuidance())
    all_at_once = draw(SDA(batch_size=7), problem.problem, 7, 3, **tools)
    in_parts = draw(SDA(batch_size=3), problem.problem, 7, 3, **tools)
    torch.testing.assert_close(all_at_once, in_parts, rtol=1e-4, atol=1e-4)


def test_sda_errors() -> None:
    problem = gaussian_problem(length=4)
    with pytest.raises(AssimilationError, match="SDA needs a trained model, a sampler and a guid"):
        draw(SDA(), problem.problem, 2, 0, model=problem.model)

    class Lost(ExactGuidance):
        def __call__(self, prior, likelihood):
            denoiser = super().__call__(prior, likelihood)
            forward = denoiser.forward
            denoiser.forward = lambda x, t: torch.where(x[:, :1, :1] > 0, forward(x, t), torch.nan)
            return denoiser

    tools = dict(model=problem.model, sampler=DDPM(steps=4), guidance=Lost())
    with pytest.raises(AssimilationError, match=r"of 16 members are not finite \(first: \[.*tau"):
        draw(SDA(), problem.problem, 16, 0, **tools)


@pytest.mark.parametrize(
    "target",
    [
        lambda x: x.sin(),
        lambda x: x[..., :1] * torch.arange(1.0, x.shape[-2] + 1)[:, None],  # by the time
        lambda x: x + 0 * x[..., 4:5, :],  # for long trajectories alone
        lambda x: torch.where(torch.arange(x.shape[-2])[:, None] % 2 == 0, x, 2 * x),
    ],
)
def test_an_operator_sees_one_state_at_a_time_or_all(target) -> None:
    """... with the same result, also where it goes by the number of the time."""
    spec = gaussian_problem().problem.system.spec
    model = Function(target=target, std=0.5).bind(spec, 9)
    x = torch.randn(16, 9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = model.sample(x[0], torch.Generator().manual_seed(0))
    for states in (x, torch.zeros_like(x)):
        parts = [model.log_prob_at(i, y, states[:, i]) for i in range(9)]
        torch.testing.assert_close(torch.stack(parts).sum(0), model.log_prob(y, states))
