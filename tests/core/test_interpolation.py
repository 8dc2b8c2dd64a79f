"""Interpolation against direct solutions, exact recovery, and the discrepancy principle."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sda_core.config import component, option
from sda_core.errors import AssimilationError
from sda_core.method import Interpolation, Problem
from sda_core.method.interpolation import _minimize, _modes
from sda_core.observation import Function, Observation, Select
from sda_core.system import Axis, System, SystemSpec
from sda_core.testing import draw


@component
class Field(System):
    """States of a given shape, (C, *S)."""

    shape: tuple[int, ...] = option(default=(1,))
    mean: tuple[float, ...] | None = option(default=None)
    std: tuple[float, ...] | None = option(default=None)

    @property
    def spec(self) -> SystemSpec:
        C, *grid = self.shape
        return SystemSpec(
            variables=[f"v{i}" for i in range(C)],
            axes=[Axis(f"x{i}", np.arange(n)) for i, n in enumerate(grid)],
            time_step=0.1,
            mean=self.mean,
            std=self.std,
        )

    def prior(self, shape, generator):
        raise NotImplementedError

    def transition(self, x, generator):
        raise NotImplementedError


def _randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _problem(truth, observation: Observation, *, noise=True, **standardization) -> Problem:
    system = Field(shape=tuple(truth.shape[1:]), **standardization)
    model = observation.bind(system.spec, len(truth))
    y = model.sample(truth, torch.Generator().manual_seed(1)) if noise else model.operator(truth)
    return Problem(system=system, observation=model, y=y, truth=truth)


def _interpolate(problem: Problem, **options) -> torch.Tensor:
    return Interpolation(**options).draw(problem, 2, 0)[0].double()


def _rms(x) -> float:
    return float(x.square().mean().sqrt())


def _misfit(problem: Problem, x) -> float:
    return _rms((problem.observation.operator(x) - problem.y) / problem.observation.std)


def _relative_error(problem: Problem, x) -> float:
    return _rms(x - problem.truth) / _rms(problem.truth)


def _waves(length=12, n=16):
    """Two periodic fields that drift: waves of lengths n and n / 2."""
    a = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    x, y = a[:, None], a
    times = torch.arange(length, dtype=torch.float64)[:, None, None]
    u = torch.sin(x + 0.1 * times) + 0.5 * torch.cos(x - y - 0.1 * times)
    v = torch.cos(y + 0.1 * times) - 0.3 * torch.sin(2 * x + 0.1 * times)
    return torch.stack((u, v), 1)


@pytest.mark.parametrize("shape", [(7, 2), (5, 2, 6), (4, 1, 4, 5), (1, 1, 6), (2, 3)])
def test_it_is_the_solution_of_the_normal_equations(shape) -> None:
    """With the roughness written out as second differences, periodic in space."""
    d, weight, penalty = math.prod(shape), 0.7, 0.3
    each = torch.eye(d, dtype=torch.float64).reshape(d, *shape)
    laplacian = sum(
        (each.roll(1, axis) + each.roll(-1, axis) - 2 * each for axis in range(3, each.ndim)),
        torch.zeros_like(each),
    )
    R = laplacian.flatten(1) @ laplacian.flatten(1).T
    if shape[0] > 2:
        second = (each[:, 2:] - 2 * each[:, 1:-1] + each[:, :-2]).flatten(1)
        R = R + weight * second @ second.T
    bases, roughness = _modes(shape, weight)
    A, y = _randn(3 * d // 2, d, seed=2) / d**0.5, _randn(3 * d // 2, seed=3)
    z = _minimize(
        lambda z: A @ z.flatten() - y, 2.0, penalty * roughness, bases, torch.zeros(shape).double()
    )
    expected = torch.linalg.solve(A.T @ A / 2 + penalty * R, A.T @ y / 2)
    torch.testing.assert_close(z.flatten(), expected, rtol=1e-5, atol=1e-6)


def test_what_is_observed_everywhere_and_accurately_is_recovered() -> None:
    truth = _waves() + 0.1 * _randn(12, 2, 16, 16)
    problem = _problem(truth, Select(std=1e-4))
    assert _rms(_interpolate(problem) - truth) < 2e-4


@pytest.mark.parametrize("grid", [(), (8,)])
def test_what_is_linear_in_time_is_reproduced_between_and_beyond(grid) -> None:
    slope, start = _randn(2, *(1 for _ in grid)), 3 * _randn(2, *(1 for _ in grid), seed=1)
    times = torch.arange(23.0).double().reshape(-1, *(1,) * slope.ndim)
    truth = (start + slope * times).expand(-1, -1, *grid)
    problem = _problem(truth, Select(every=5, offset=1, std=1e-2), noise=False)
    torch.testing.assert_close(_interpolate(problem), truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("std", [0.02, 0.3])
@pytest.mark.parametrize("every", [1, 3])
def test_the_residual_is_the_noise(std, every) -> None:
    problem = _problem(_waves(), Select(every=every, std=std))
    x = _interpolate(problem)
    assert 0.95 < _misfit(problem, x) <= 1 + 1e-4
    if every == 1:  # and what is left of the noise is less than there was
        assert _rms(x - problem.truth) < 0.7 * std


def test_a_smooth_periodic_field_from_every_4th_point() -> None:
    observation = Function(target=lambda x: x[..., ::4, ::4], std=0.01)
    problem = _problem(_waves(6, 32), observation)
    assert _relative_error(problem, _interpolate(problem)) < 0.04
    # Shifted around the torus it is as good: there are no edges.
    shifted = _problem(_waves(6, 32).roll((6, 13), (2, 3)), observation)
    assert _relative_error(shifted, _interpolate(shifted)) < 0.04


def test_block_means_and_operators_that_mix_times() -> None:
    blocks = Function(target=lambda x: x.unflatten(-1, (8, 2)).mean(-1), std=0.01)
    problem = _problem(_waves(), blocks)
    assert _relative_error(problem, _interpolate(problem)) < 0.03
    pairs = Function(target=lambda x: x.unflatten(-4, (6, 2)).mean(-4), statewise=False, std=0.01)
    problem = _problem(_waves(), pairs)
    assert _relative_error(problem, _interpolate(problem)) < 0.03


def test_an_operator_that_is_not_linear() -> None:
    observation = Function(target=lambda x: (x / (1 + x.abs()))[..., ::2, ::2], std=0.01)
    problem = _problem(_waves(), observation)
    x = _interpolate(problem)
    assert _relative_error(problem, x) < 0.06
    assert 0.95 < _misfit(problem, x) <= 1 + 1e-4


def test_units_do_not_matter() -> None:
    truth = _waves()
    select = {"every": 3, "offset": 1}
    plain = _interpolate(_problem(truth, Select(std=0.1, **select)))
    mean, std = torch.tensor([300.0, -2.0]), torch.tensor([20.0, 1e-3])
    mean, std = mean.double()[:, None, None], std.double()[:, None, None]
    scale = std.flatten().tolist()
    observation = Function(
        target=lambda x: (x[..., 1::3, :, :, :] - mean) / std, statewise=False, std=0.1
    )
    scaled = _problem(mean + std * truth, observation, mean=mean.flatten().tolist(), std=scale)
    torch.testing.assert_close((_interpolate(scaled) - mean) / std, plain, rtol=1e-3, atol=1e-3)


def test_what_is_not_observed_stays_at_the_mean() -> None:
    truth = _waves()[:, :, 0] + 5
    problem = _problem(truth, Select(variables=["v0"], std=0.1), mean=(5.0, 4.0), std=(1.0, 2.0))
    x = _interpolate(problem)
    assert torch.equal(x[:, 1], torch.full_like(x[:, 1], 4.0))


def test_noise_that_hides_everything_leaves_a_constant_field_and_a_trend() -> None:
    problem = _problem(_waves(), Select(std=50.0))
    x = _interpolate(problem)
    assert _rms(x - x.mean((2, 3), keepdim=True)) < 1e-3
    assert _rms(x.diff(n=2, dim=0)) < 1e-3


def test_the_weight_of_time() -> None:
    problem = _problem(_waves() + _randn(12, 1, 1, 1), Select(std=0.5))
    rough = [_rms(_interpolate(problem, time_weight=w).diff(n=2, dim=0)) for w in (0.01, 1, 100)]
    assert rough[0] > 1.2 * rough[1] > 1.4 * rough[2]


def test_members_are_all_the_same() -> None:
    problem, heard = _problem(_waves(4, 8), Select(std=0.1)), []
    tools = dict(on_step=lambda *step: heard.append(step))
    x = draw(Interpolation(), problem, 5, 0, **tools)
    assert (x.shape, x.dtype) == ((5, 4, 2, 8, 8), torch.float32)
    assert (x == x[0]).all()
    assert torch.equal(x, Interpolation().draw(problem, 5, 1))
    assert heard == [(i + 1, 12) for i in range(12)]
    assert Interpolation.point_estimate
    assert not Interpolation.needs_model


def test_errors() -> None:
    truth = _waves(4, 8)
    problem = _problem(truth, Function(target=lambda x: x.square(), std=0.1))
    with pytest.raises(AssimilationError, match=r"starts from the system's mean.* there is zero"):
        _interpolate(problem)
    problem = _problem(truth, Function(target=lambda x: x.square().sum(-3).sqrt(), std=0.1))
    with pytest.raises(AssimilationError, match="there is not finite: use an operator that has"):
        _interpolate(problem)
    problem = _problem(truth + 3, Function(target=lambda x: (x - 1).log(), std=1e-3), mean=(1.1, 9))
    with pytest.raises(AssimilationError, match=r"came to states where the .* is not finite"):
        _interpolate(problem)
