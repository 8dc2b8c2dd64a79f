"""Members that diverge are reported, drawn again, and never returned."""

from __future__ import annotations

import re
import warnings

import attrs
import pytest
import torch

from sda_core.config import structure
from sda_core.data import Standardization
from sda_core.errors import AssimilationError, AssimilationWarning, DataError
from sda_core.guidance import Guidance
from sda_core.method import SDA, EnsembleSampler, Method
from sda_core.method.divergence import LIMIT, DivergenceMonitor, warn_out_of_range
from sda_core.random import MemberNoise, seeded_generator
from sda_core.sampler import DDPM, DPMSolver
from sda_core.schedule import VP
from sda_core.testing import gaussian_problem

SHAPE = (12, 4, 2)
SAMPLER = DPMSolver(steps=6)
PROBLEM = gaussian_problem(length=4)
MODEL = PROBLEM.model


def _first(seed, member, dtype=torch.float32):
    """The first number of a member's noise, which tells it from all others."""
    return float(MemberNoise(seed, [member], dtype=dtype).normal((1, *SHAPE[1:]))[0, 0, 0])


def _again(seed, attempt):
    return seeded_generator(seed, attempt).initial_seed()


def _diverging(lost, value=torch.nan, below=1.0):
    """Guidance that loses the members whose noise starts so, once sigma / alpha is below this."""

    def guide(prior):
        forward, doomed = prior.forward, None

        def losing(x, t):
            nonlocal doomed
            if t == 1:  # a new batch: x is its noise times sigma(1)
                first = (x[:, 0, 0] / prior.schedule.sigma(t))[:, None]
                doomed = (first - torch.tensor(lost)).abs().lt(1e-6).any(1)
            x0 = forward(x, t)
            if prior.schedule.sigma(t) / prior.schedule.alpha(t) < below and len(x) == len(doomed):
                x0 = torch.where(doomed[:, None, None], value, x0)
            return x0

        prior.forward = losing
        return prior

    return guide


def _sample(lost=(), batch_size=None, seed=3, shape=SHAPE, sampler=SAMPLER, **how):
    model = gaussian_problem(length=4).model
    guide = _diverging(list(lost), **how) if lost else None
    return EnsembleSampler(model, sampler, shape, seed, guide=guide, batch_size=batch_size).sample()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e6])
@pytest.mark.parametrize("sampler", [SAMPLER, DDPM(steps=6)], ids=["dpm-solver", "ddpm"])
def test_diverged_members_are_drawn_again(sampler, value) -> None:
    whole = _sample(sampler=sampler)
    lost = [_first(3, 5), _first(3, 10)]
    with pytest.warns(
        AssimilationWarning, match=r"2 of 12 members are not finite \(first: \[5, 10\]"
    ):
        x = _sample(lost, value=value, sampler=sampler)
    kept = [m for m in range(12) if m not in (5, 10)]
    assert torch.equal(x[kept], whole[kept])
    z = sampler.sample(MODEL.denoiser, (2, 4, 2), MemberNoise(_again(3, 1), [5, 10]))
    torch.testing.assert_close(x[[5, 10]], MODEL.standardization.to_physical(z))


def test_it_says_at_which_noise_level() -> None:
    times = SAMPLER.times(VP())
    r = VP().sigma(times) / VP().alpha(times)
    after = float(r[r < 1.0][1])  # the first estimate below 1 enters the state one step later
    with pytest.warns(
        AssimilationWarning, match=rf"at sigma / alpha = {after:.3g};.* attempt 2 of 4"
    ):
        _sample([_first(3, 5)])


def test_redrawing_does_not_depend_on_the_batches() -> None:
    lost = [_first(3, 2), _first(3, 5), _first(_again(3, 1), 5)]
    results = []
    for batch_size in (12, 5, 1):
        with pytest.warns(AssimilationWarning) as heard:
            results.append(_sample(lost, batch_size))
        assert [str(w.message)[:7] for w in heard] == ["2 of 12", "1 of 12"]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-5, atol=1e-5)
    assert not torch.isclose(results[0][2], results[0][5]).any()


def test_it_gives_up() -> None:
    lost = [_first(3, 5), *(_first(_again(3, attempt), 5) for attempt in (1, 2, 3))]
    with (
        pytest.warns(AssimilationWarning, match="drawing them again"),
        pytest.raises(AssimilationError, match=r"1 of 12 .*\[5\].* after 4 attempt.*more steps"),
    ):
        _sample(lost)
    with pytest.raises(AssimilationError, match=r"7 of 12 members .* after 1 attempt"):
        _sample([_first(3, m) for m in range(7)])
    with pytest.warns(AssimilationWarning, match="1 of 1 members"):
        assert _sample([_first(3, 0)], shape=(1, 4, 2)).isfinite().all()


def test_limit() -> None:
    monitor, t = DivergenceMonitor(VP()), torch.tensor(0.5)
    size = VP().alpha(t) * 1000  # sigma / alpha at t = 1
    x = torch.zeros(4, 3, 2)
    x[1, 2, 1], x[2, 0, 0], x[3] = -1.01 * LIMIT * size, 0.99 * LIMIT * size, torch.nan
    monitor(x, t)
    monitor(torch.full_like(x, torch.inf), torch.tensor(0.25))
    r = [float(VP().sigma(s) / VP().alpha(s)) for s in (t, torch.tensor(0.25))]
    torch.testing.assert_close(monitor.levels, torch.tensor([r[1], r[0], r[1], r[0]]))


def test_an_untrained_network_diverges_nowhere() -> None:
    """One that finds no noise, so that all of it stays."""

    def guide(prior):
        prior.forward = lambda x, t: x / prior.schedule.alpha(t)
        return prior

    model = gaussian_problem(length=4).model
    x = EnsembleSampler(model, SAMPLER, SHAPE, 0, guide=guide).sample()
    assert 100 < model.standardization.to_model(x).std() < 2000


def _posterior(std: float, gamma: float) -> list[str]:
    """What is warned of the posterior of a linear-Gaussian problem, the guidance too strong."""
    problem = gaussian_problem(length=9, std=std)
    guidance = structure(Guidance, {"name": "gaussian", "gamma": gamma})
    method = SDA(problem.model, sampler=DDPM(steps=64), guidance=guidance)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        method.assimilate(problem.problem, 64, 0, progress=False)
    return [str(w.message) for w in heard if w.category is AssimilationWarning]


def test_absurd_members_below_the_limit_of_divergence() -> None:
    beyond, missed = _posterior(0.01, 0.3)
    assert re.search(r"^\d\d of 64 members \(first: \[.*values of u that are absurd", beyond)
    assert re.search(r"misses its observations by [0-9.]+e\+03 errors.* 64 of 64", missed)
    (missed,) = _posterior(0.1, 0.032)
    assert "errors (root mean square" in missed
    assert _posterior(0.4, 0.03) == []


def test_the_range_of_the_data_is_by_variable_and_place() -> None:
    names, extremes = ("u", "v"), ((-40.0, -1.0), (40.0, 1.0))
    scaling = Standardization((0.0, 0.0), (1.0, 1.0), 2, extremes)
    x = torch.zeros(3, 2, 2, 4, 5)
    x[0, 1, 0, 2, 3] = 119.0  # 80 wide
    x[2, 0, 1, 1, 0] = -2.9  # 2 wide
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_out_of_range(x, scaling, names)
    for value in (-3.1, torch.nan):
        x[2, 0, 1, 1, 0] = value
        with pytest.warns(AssimilationWarning, match=r"1 of 3 .*\[2\].* values of v that"):
            warn_out_of_range(x, scaling, names)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("method", ["sda", "particle-filter", "interpolation"])
def test_values_that_are_not_finite_are_left_out(method: str, value: float) -> None:
    exact = gaussian_problem(length=9, std=0.1)
    y = exact.problem.y.clone()
    y[1] = value
    with pytest.warns(AssimilationWarning, match="1 of 5 observed values are not finite"):
        problem = attrs.evolve(exact.problem, y=y)
    entries = torch.arange(5) != 1
    seen = exact.problem.observation.select(entries)
    without = attrs.evolve(exact.problem, observation=seen, y=y.flatten()[entries])
    parts = {
        "model": exact.model,
        "sampler": SAMPLER,
        "guidance": structure(Guidance, {"name": "mmps"}),
    }
    chosen = structure(Method, {"name": method})
    chosen = attrs.evolve(chosen, **parts) if chosen.needs_model else chosen
    x = chosen.draw(problem, 8, 0)
    assert torch.equal(x, chosen.draw(without, 8, 0))
    assert x.isfinite().all()
    with pytest.raises(DataError, match="none of the 5"):
        attrs.evolve(exact.problem, y=torch.full_like(y, value))
