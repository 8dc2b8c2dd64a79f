"""Forecasts and online assimilation against the exact answers of a linear-Gaussian chain."""

from __future__ import annotations

import warnings

import pytest
import torch

from sda_core.errors import (
    AssimilationError,
    AssimilationWarning,
    CheckpointError,
    ConfigError,
    DataError,
)
from sda_core.method import OnlineAssimilator, forecast
from sda_core.observation import Function, Select
from sda_core.sampler import DPMSolver
from sda_core.system import simulate_block
from sda_core.testing import GaussianChain, gaussian_problem
from sda_dps.mmps import MMPS

LENGTH, STEP, STD = 9, 2, 0.4
MODEL = gaussian_problem(length=LENGTH).model
SYSTEM = GaussianChain()
SAMPLER, SHORT = DPMSolver(steps=24), DPMSolver(steps=8)
OBSERVATION = Select(variables=("u",), std=STD)
SEEN = OBSERVATION.bind(SYSTEM.spec, STEP)


def _batches(count):
    truth = simulate_block(SYSTEM, 3, 0, count * STEP, 100)[0]
    generator = torch.Generator().manual_seed(1)
    return [SEEN.sample(block, generator) for block in truth.split(STEP)]


def _kalman(ys):
    """Mean and covariance of the newest state after each batch."""
    m, P, F, b, Q = SYSTEM.linear_gaussian()
    H = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    result = []
    for y in ys:
        for i in range(STEP):
            m, P = F @ m + b, F @ P @ F.T + Q
            if y is not None:
                K = P @ H.T / (H @ P @ H.T + STD**2)
                m, P = m + K @ (y[i] - H @ m), P - K @ H @ P
        result.append((m, P))
    return result


def _assimilator(members=4, **fields):
    return OnlineAssimilator(
        model=MODEL,
        spec=SYSTEM.spec,
        sampler=fields.pop("sampler", SAMPLER),
        guidance=fields.pop("guidance", MMPS()),
        members=members,
        length=LENGTH,
        step=STEP,
        **fields,
    )


def _errors(x, mean, covariance):
    """Largest error of mean and covariance in units of the exact standard deviation."""
    std, x = covariance.diagonal().sqrt(), x.double()
    scale = std[:, None] * std
    return max(
        float(((x.mean(0) - mean) / std).abs().max()),
        float(((x.T.cov() - covariance) / scale).abs().max()),
    )


@pytest.mark.parametrize("condition", [1, 3])
def test_forecast_is_the_exact_conditional(condition) -> None:
    """In several pieces, for states that differ from member to member."""
    members, horizon = 2048, 10
    known = simulate_block(SYSTEM, 0, 0, 4, 100).repeat(16, 1, 1)
    assert len(known) == members
    x = forecast(
        MODEL,
        SAMPLER,
        MMPS(),
        known,
        horizon,
        seed=0,
        condition=condition,
        length=LENGTH,
        std=0.01,
    )
    assert x.shape == (members, horizon, 2)
    _, _, F, b, Q = SYSTEM.linear_gaussian()
    mean, P = known[:, -1], torch.zeros(2, 2, dtype=torch.float64)
    last = (known[:, -1] - known[:, -1].mean(0)) / known[:, -1].std(0)
    for lead in range(horizon):
        mean, P = mean @ F.T + b, F @ P @ F.T + Q
        error = x[:, lead].double() - mean
        assert _errors(error, torch.zeros(2, dtype=torch.float64), P) < 0.15, lead
        # What is left over does not depend on where the member came from.
        assert ((error.T @ last / members) / P.diagonal().sqrt()[:, None]).abs().max() < 0.15, lead


@pytest.mark.parametrize(
    "fields", [{"start_level": None}, {"start_level": 30.0}], ids=["cold", "warm"]
)
def test_online_is_the_kalman_filter(fields) -> None:
    """Within 0.15 std, where 1,024 independent members are within about 0.12."""
    ys = [*_batches(4)]
    ys[2] = None
    assimilator = _assimilator(members=1024, **fields)
    for i, (y, exact) in enumerate(zip(ys, _kalman(ys), strict=True)):
        posterior = assimilator.update(OBSERVATION if y is not None else None, y)
        assert posterior.ensemble.shape == (1024, LENGTH, 2)
        assert posterior.first == (i + 1) * STEP - LENGTH
        assert torch.equal(posterior.newest, posterior.ensemble[:, -1])
        assert _errors(posterior.newest, *exact) < 0.15, i


def test_what_left_the_window_counts() -> None:
    """After observations of states that are in no window any more."""
    ys = [*_batches(3), *[None] * 4]
    exact = _kalman(ys)[-1]
    results = []
    for background in (0.03, None):
        assimilator = _assimilator(members=1024, background_std=background, start_level=None)
        for y in ys[:-1]:
            assimilator.update(None if y is None else OBSERVATION, y)
        # Values of no weight, so that the window is sampled anew.
        vague = Select(variables=("u",), std=1e3)
        posterior = assimilator.update(vague, torch.zeros(STEP, 1))
        results.append(_errors(posterior.newest, *exact))
    assert results[0] < 0.15 < 0.3 < results[1]


def test_late_observations_are_as_good() -> None:
    ys = _batches(3)
    assimilator = _assimilator(members=1024, start_level=None)
    assimilator.update(OBSERVATION, ys[0])
    assimilator.update()
    posterior = assimilator.update(OBSERVATION, torch.cat(ys[1:]), at=STEP)
    assert _errors(posterior.newest, *_kalman(ys)[-1]) < 0.15


def test_a_member_depends_on_seed_and_number_alone() -> None:
    ys = _batches(3)

    def run(**fields):
        assimilator = _assimilator(sampler=SHORT, **fields)
        return [assimilator.update(OBSERVATION, y).ensemble for y in ys][-1]

    four, many, other = run(), run(members=7, batch_size=3), run(seed=1)
    torch.testing.assert_close(many[:4], four, rtol=1e-3, atol=1e-3)
    assert not torch.isclose(four, other).any()
    assert not torch.isclose(four[0], four[1]).any()
    known = simulate_block(SYSTEM, 0, 0, 2, 100)
    pair, one = (
        forecast(MODEL, SHORT, MMPS(), known[:n], 9, seed=2, length=LENGTH) for n in (2, 1)
    )
    torch.testing.assert_close(pair[:1], one, rtol=1e-3, atol=1e-3)


def test_a_saved_state_goes_on_bit_for_bit(tmp_path) -> None:
    ys = _batches(5)
    ys[1][0] = torch.nan
    whole, first, second, third = (_assimilator(sampler=SHORT) for _ in range(4))
    first.save(tmp_path / "empty")
    with pytest.warns(AssimilationWarning, match="1 of 2 observed values are not finite"):
        results = [whole.update(OBSERVATION, y).ensemble for y in ys]
    second.load(tmp_path / "empty")
    with warnings.catch_warnings(action="ignore", category=AssimilationWarning):
        for y in ys[:2]:
            second.update(OBSERVATION, y)
    second.save(tmp_path / "state")
    third.load(tmp_path / "state")
    again = [third.update(OBSERVATION, y).ensemble for y in ys[2:]]
    assert all(torch.equal(a, b) for a, b in zip(again, results[2:], strict=True))


def test_nothing_observed_costs_a_forecast() -> None:
    assimilator = _assimilator(start_level=None)
    begun = assimilator.update(OBSERVATION, _batches(1)[0])
    posterior = assimilator.update(None)
    assert torch.equal(posterior.ensemble[:, :-STEP], begun.ensemble[:, STEP:])
    assert posterior.log[-1].startswith("no observations")
    nans = torch.full((STEP, 1), torch.nan)
    with pytest.warns(AssimilationWarning, match="2 of 2 observed values"):
        assert assimilator.update(OBSERVATION, nans).log[-1].startswith("no observations")
    assert begun.evaluations == posterior.evaluations == SAMPLER.steps
    assert posterior.latency > 0


def test_a_warm_start_is_shorter() -> None:
    assimilator = _assimilator(start_level=1.0, forecast_sampler=DPMSolver(steps=6))
    ys = _batches(2)
    assert assimilator.update(OBSERVATION, ys[0]).evaluations == SAMPLER.steps
    posterior = assimilator.update(OBSERVATION, ys[1])
    assert 6 + 1 < posterior.evaluations < 6 + SAMPLER.steps
    assert "4 observed values in 2 batches; started from the last" in posterior.log[-1]


def test_a_failed_update_changes_nothing(tmp_path) -> None:
    class Losing(MMPS):
        lose = False

        def __call__(self, prior, likelihood):
            denoiser = super().__call__(prior, likelihood)
            forward = denoiser.forward
            denoiser.forward = lambda x, t: forward(x, t) * (torch.nan if Losing.lose else 1)
            return denoiser

    ys = _batches(2)
    assimilator, other = _assimilator(guidance=Losing()), _assimilator()
    for each in (assimilator, other):
        each.update(OBSERVATION, ys[0])
    Losing.lose = True
    with pytest.raises(AssimilationError, match="4 of 4 members are not finite"):
        assimilator.update(OBSERVATION, ys[1])
    Losing.lose = False
    for at in (-5, 4):
        with pytest.raises(DataError, match=rf"states {at} and later .* takes those from -4 to 3"):
            assimilator.update(OBSERVATION, ys[1], at=at)
    with pytest.raises(DataError, match=r"y has the shape None, .* gives \(2, 1\)"):
        assimilator.update(OBSERVATION)
    with pytest.raises(DataError, match=r"y has the shape \(3, 1\)"):
        assimilator.update(OBSERVATION, torch.zeros(3, 1))
    expected = other.update(OBSERVATION, ys[1]).ensemble
    assert torch.equal(assimilator.update(OBSERVATION, ys[1]).ensemble, expected)


def test_errors(tmp_path) -> None:
    known = torch.zeros(2, 2, 2)

    def run(states=known, horizon=3, **fields):
        return forecast(MODEL, SAMPLER, MMPS(), states, horizon, seed=0, length=LENGTH, **fields)

    with pytest.raises(AssimilationError, match="condition = 9 must lie between 1 and 8"):
        run(condition=9)
    with pytest.raises(AssimilationError, match="condition = 3, but only 2 states are known"):
        run(condition=3)
    with pytest.raises(AssimilationError, match="horizon = 0"):
        run(horizon=0)
    with pytest.raises(AssimilationError, match="known states are not finite"):
        run(states=known * torch.nan)
    with pytest.raises(AssimilationError, match=r"length = 9 must be at least .* = 8 \+ 2"):
        _assimilator(condition=8)
    path = tmp_path / "state"
    with pytest.raises(CheckpointError, match=r"state cannot be read .* new assimilator"):
        _assimilator().load(path)
    _assimilator().save(path)
    with pytest.raises(CheckpointError, match=r"written with members = 4, and .* has 5"):
        _assimilator(members=5).load(path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CheckpointError, match="cannot be read"):
        _assimilator().load(path)
    function = Function(target=torch.sin, std=1.0)
    assimilator = _assimilator()
    assimilator.update(function, torch.zeros(STEP, 2))
    with pytest.raises(ConfigError, match="target"):
        assimilator.save(path)
