"""Block SMC with an exact model of blocks: unbiased evidence, and the exact smoother."""

from __future__ import annotations

import math

import attrs
import pytest
import torch
from torch import Tensor

from sda_core.denoiser import FunctionDenoiser
from sda_core.errors import AssimilationError
from sda_core.method import BlockSMC, Execution
from sda_core.observation import Function
from sda_core.sampler import DPMSolver
from sda_core.schedule import VE
from sda_core.testing import GaussianProblem, gaussian_problem
from sda_core.testing.chain import GaussianModel, linear_gaussian_moments

PROBLEM = gaussian_problem(length=9, std=0.4)
UNABLE = FunctionDenoiser(lambda x, t: x, VE())
SCHEDULE = VE(sigma_min=0.01, sigma_max=20.0)


def exact_model(block: int) -> GaussianModel:
    """The exact model, of blocks of so many states."""
    model = gaussian_problem(length=10, std=0.4, schedule=SCHEDULE).model
    model.denoiser.block = block
    return model


def log_evidence(problem: GaussianProblem) -> float:
    """log p(y) in closed form: u is seen at every second time."""
    length = problem.problem.length
    m, C = linear_gaussian_moments(problem.problem.system, length, 64)
    H = torch.zeros(len(problem.problem.y), 2 * length, dtype=torch.float64)
    H[torch.arange(len(H)), torch.arange(0, 2 * length, 4)] = 1
    std = problem.problem.observation.std_at(problem.problem.y).flatten().double()
    cov = H @ C @ H.T + torch.diag(std**2)
    y = problem.problem.y.flatten().double()
    return float(torch.distributions.MultivariateNormal(H @ m, cov).log_prob(y))


def solve(block: int, seed: int = 0, **settings) -> tuple[Tensor, float]:
    model = exact_model(block)
    method = BlockSMC(model, sampler=DPMSolver(steps=16), **{"particles": 4096} | settings)
    noted: dict[str, float] = {}
    members = min(2048, method.particles)
    x = method.draw(PROBLEM.problem, members, seed, Execution(record=noted.update))
    return x, noted["log_evidence"]


@pytest.mark.parametrize(("block", "tolerance"), [(1, 0.12), (2, 0.12), (4, 0.12)])
def test_the_exact_smoother_whatever_the_block(block: int, tolerance: float) -> None:
    x, _ = solve(block, particles=12_000)
    error = (x.mean(0) - PROBLEM.mean).abs() / PROBLEM.std
    assert float(error.max()) < tolerance  # 2,048 members of resampled paths
    ratio = x.flatten(1).var(0).reshape(9, 2) / PROBLEM.std**2
    assert 0.85 < float(ratio.min()) <= float(ratio.max()) < 1.15


def test_observations_between_states_and_of_several() -> None:
    """An observation is used with the block that completes what it depends on."""
    pairs = Function(
        target=lambda x: (x[..., 1:, :] + x[..., :-1, :]) / 2, statewise=False, std=0.5
    )
    observation = pairs.bind(PROBLEM.problem.system.spec, 9)
    last = observation.last_times((2,))
    assert last.tolist() == [i for i in range(1, 9) for _ in range(2)]
    truth = PROBLEM.problem.truth
    y = observation.sample(truth, torch.Generator().manual_seed(0))
    problem = attrs.evolve(PROBLEM.problem, observation=observation, y=y)
    m, C = linear_gaussian_moments(problem.system, 9, 64)
    H = (torch.eye(16, 18) + torch.eye(18)[2:]).double() / 2
    K = torch.linalg.solve(H @ C @ H.T + 0.25 * torch.eye(16), H @ C).T
    mean, C = m + K @ (y.flatten() - H @ m), C - K @ H @ C
    for block in (1, 3):
        model = exact_model(block)
        method = BlockSMC(model, sampler=DPMSolver(steps=16), particles=12_000)
        x = method.draw(problem, 2048, 0)
        assert float(((x.flatten(1).mean(0) - mean) / C.diagonal().sqrt()).abs().max()) < 0.15


def test_evidence_is_unbiased() -> None:
    exact = log_evidence(PROBLEM)
    ratios = torch.tensor(
        [math.exp(solve(2, seed, particles=64)[1] - exact) for seed in range(100)]
    )
    error = float(ratios.std() / len(ratios) ** 0.5)
    assert error < 0.1
    assert abs(float(ratios.mean()) - 1) < 4 * error


def test_the_gaussian_forecast_alone_is_exact_where_a_block_is_one_state() -> None:
    """... up to the correlation of the two variables given the state before."""
    x, _ = solve(1, forecast=True)
    error = (x.mean(0) - PROBLEM.mean).abs() / PROBLEM.std
    assert float(error.max()) < 0.3


def test_refusals() -> None:
    model = exact_model(2)
    with pytest.raises(AssimilationError, match="train one first"):
        BlockSMC().draw(PROBLEM.problem, 8, 0)
    with pytest.raises(AssimilationError, match=r"model\.levels"):
        BlockSMC(attrs.evolve(PROBLEM.model, denoiser=UNABLE), sampler=DPMSolver()).draw(
            PROBLEM.problem, 8, 0
        )
    few = BlockSMC(model, sampler=DPMSolver(steps=4), particles=4)
    with pytest.raises(AssimilationError, match="8 members cannot be drawn from 4"):
        few.draw(PROBLEM.problem, 8, 0)
    far = attrs.evolve(PROBLEM.problem, y=PROBLEM.problem.y + 1e200)
    with pytest.raises(AssimilationError, match=r"the states 0 to 1\. .*now 4"):
        few.draw(far, 2, 0)
