"""Lorenz-63: right-hand side, density and what its docstring says."""

from __future__ import annotations

import math

import attrs
import pytest
import torch

from sda_core.evaluation.metrics import log_prior
from sda_core.evaluation.scores import evaluate_ensemble
from sda_core.method import ParticleFilter, Problem
from sda_core.observation import Select
from sda_core.random import seeded_generator
from sda_core.system import simulate_block
from sda_lorenz.lorenz63 import Lorenz63, NoisyLorenz63

DT = 0.025
ENTROPY = 1.5 * math.log(2 * math.pi * math.e * DT)  # of one transition's noise
SCENARIOS = {"LO": (8, 0.05, 14.19), "HI": (1, 0.25, -2.12)}


def test_right_hand_side() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    expected = torch.tensor([[10.0, 23.0, 2 - 8.0]], dtype=torch.float64)
    torch.testing.assert_close(Lorenz63().rhs(x), expected)
    torch.testing.assert_close(
        Lorenz63(sigma=1.0, rho=2.0, beta=3.0).rhs(x), torch.tensor([[1.0, -3.0, -7.0]]).double()
    )


def test_fixed_points_and_symmetry() -> None:
    system = Lorenz63()
    c = math.sqrt(8 / 3 * 27)
    points = torch.tensor([[0, 0, 0], [c, c, 27], [-c, -c, 27]], dtype=torch.float64)
    assert system.rhs(points).abs().max() < 1e-12
    x = system.prior((5,), torch.Generator().manual_seed(0))
    mirror = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(system.rhs(x * mirror), system.rhs(x) * mirror)


def test_below_the_threshold_trajectories_settle() -> None:
    x = simulate_block(Lorenz63(rho=20.0), 0, 0, 1, burn_in=8000)[:, 0]
    settled = Lorenz63(rho=20.0).rhs(x).norm(dim=1) < 1e-6
    assert settled.all()
    assert Lorenz63().rhs(simulate_block(Lorenz63(), 0, 0, 1, burn_in=800)[:, 0]).norm() > 1


def test_error_per_step() -> None:
    system = Lorenz63()
    x = simulate_block(system, 0, 0, 60, burn_in=200).flatten(0, 1)
    exact = attrs.evolve(system, substeps=50)
    none = torch.Generator()
    error = (system.transition(x, none) - exact.transition(x, none)).norm(dim=1)
    assert float(error.median()) == pytest.approx(5e-5, rel=0.2)
    assert float(error.square().mean().sqrt()) == pytest.approx(6e-4, rel=0.2)


def test_turns_last_three_quarters_of_a_time_unit() -> None:
    z = simulate_block(Lorenz63(dt=0.01), 1, 0, 3000, burn_in=500)[:32, :, 2]
    peaks = (z[:, 1:-1] > z[:, :-2]) & (z[:, 1:-1] > z[:, 2:])
    assert 30 / float(peaks.sum(1).double().mean()) == pytest.approx(0.75, abs=0.01)


def test_prior_has_about_the_moments_of_the_attractor() -> None:
    system = Lorenz63()
    x = simulate_block(system, 0, 0, 200, burn_in=200).flatten(0, 1)
    prior = system.prior((100_000,), torch.Generator().manual_seed(0))
    std = x.std(0)
    assert ((prior.mean(0) - x.mean(0)) / std).abs().max() < 0.2
    assert ((prior.T.cov() - x.T.cov()) / (std[:, None] * std)).abs().max() < 0.25
    mean, scale = (
        torch.tensor(m, dtype=torch.float64) for m in (system.spec.mean, system.spec.std)
    )
    assert ((x.mean(0) - mean) / scale).abs().max() < 0.2
    assert (std / scale - 1).abs().max() < 0.05


def test_noisy_log_prob_of_simulated_transitions() -> None:
    """On average it is minus the entropy, exactly known: 1.2765 per step, 81.7 for 64."""
    system = NoisyLorenz63()
    assert pytest.approx(1.28, abs=0.005) == -ENTROPY
    assert pytest.approx(81.7, abs=0.05) == -64 * ENTROPY
    x = simulate_block(system, 0, 0, 65, burn_in=100)
    per_step = system.log_prob(x[:, :-1], x[:, 1:])
    error = math.sqrt(1.5 / per_step.numel())  # chi-square with 3 degrees of freedom, halved
    assert float(per_step.mean()) == pytest.approx(-ENTROPY, abs=4 * error)
    assert float(per_step.var()) == pytest.approx(1.5, rel=0.1)
    assert float(log_prior(system, x).mean()) == pytest.approx(-64 * ENTROPY, abs=4 * 64 * error)


def test_noise_amplitude() -> None:
    system = NoisyLorenz63(noise=0.5, dt=0.01)
    x = torch.ones(50_000, 3, dtype=torch.float64)
    noise = system.transition(x, torch.Generator().manual_seed(0)) - Lorenz63(dt=0.01).transition(
        x, torch.Generator()
    )
    assert float(noise.std()) == pytest.approx(0.05, rel=0.02)
    assert (noise.T.cov() / 0.05**2 - torch.eye(3)).abs().max() < 0.03


def _observation(name, system):
    every, std, _ = SCENARIOS[name]
    select = Select(variables=("x",), every=every, std=std, standardized=True)
    return select.bind(system.spec, 65)


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_expected_log_likelihood_of_the_truth(name) -> None:
    system = NoisyLorenz63()
    observation, (_, std, expected) = _observation(name, system), SCENARIOS[name]
    n = observation.std.numel()
    assert -0.5 * n * math.log(2 * math.pi * math.e * std**2) == pytest.approx(expected, abs=0.01)
    truths = simulate_block(system, 0, 0, 65, burn_in=50)
    generator = seeded_generator(0)
    log_p = [
        float(observation.log_prob(observation.sample(x, generator), x.double())) for x in truths
    ]
    mean = sum(log_p) / len(log_p)
    assert mean == pytest.approx(expected, abs=4 * math.sqrt(n / 2 / len(log_p)))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SCENARIOS))
def test_particle_filter_on_the_scenarios_of_the_paper(name) -> None:
    """Exact posterior samples average as truths do, over observations drawn from the model.

    An average over N observation sets scatters as that of N truths at most; averaging over members
    makes it less.
    """
    system, sets = NoisyLorenz63(), 24
    observation, expected = _observation(name, system), SCENARIOS[name][2]
    truths = simulate_block(system, 1, 0, 65, burn_in=1024)[:sets]
    scores = []
    for i, truth in enumerate(truths):
        y = observation.sample(truth, seeded_generator(1, i))
        problem = Problem(system=system, observation=observation, y=y, truth=truth)
        ensemble = ParticleFilter().draw(problem, 512, i)
        scores.append(evaluate_ensemble(problem, ensemble))
    n = observation.std.numel()
    prior = sum(s["log_prior"] for s in scores) / sets
    likelihood = sum(s["log_likelihood"] for s in scores) / sets
    print(f"{name}: E log p(x) = {prior:.2f}, E log p(y|x) = {likelihood:.2f}")
    assert prior == pytest.approx(-64 * ENTROPY, abs=3 * math.sqrt(96 / sets))
    assert likelihood == pytest.approx(expected, abs=3 * math.sqrt(n / 2 / sets))


@pytest.mark.slow
def test_largest_lyapunov_exponent() -> None:
    system, generator = Lorenz63(dt=0.01), torch.Generator().manual_seed(0)
    x = simulate_block(system, 1, 0, 1, burn_in=1000)[:, 0]
    v = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    growth, steps, small = 0.0, 6000, 1e-7
    for i in range(steps + 300):
        y = system.transition(x + small * v / v.norm(dim=1, keepdim=True), generator)
        x = system.transition(x, generator)
        v = (y - x) / small
        growth += float(v.norm(dim=1).log().mean()) if i >= 300 else 0.0
    assert growth / (steps * 0.01) == pytest.approx(0.906, abs=0.01)
