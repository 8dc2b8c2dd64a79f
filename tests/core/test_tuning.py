"""The strength of a guidance, found from withheld observations."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch

from sda_core.config import structure, unstructure
from sda_core.errors import AssimilationError, ConfigError
from sda_core.guidance import Guidance, require_number
from sda_core.io.ensemble_file import EnsembleFile
from sda_core.method import SDA, Execution, Problem, tune_strength, tuning
from sda_core.method.tuning import SHARES, Trial, search, split_folds
from sda_core.random import seeded_generator
from sda_core.sampler import DDPM
from sda_core.testing import draw, gaussian_problem
from sda_core.testing.gaussian import affine_map
from sda_core.testing.moments import affine_moments


@pytest.fixture
def no_plans(monkeypatch) -> None:
    """All members at once: to measure the memory takes longer than these small samplings."""

    def plan(prior, shape, step, **settings):
        return SimpleNamespace(batch_size=shape[0], chunk_size=1)

    monkeypatch.setattr("sda_core.method.sampling.plan_memory", plan)


def _guidance(**table) -> Guidance:
    return structure(Guidance, {"name": "gaussian", "gamma": "auto", **table})


def _tools(problem, guidance=None, steps=48, **more) -> dict[str, Any]:
    sampler = DDPM(steps=steps, grid="log-snr")
    return dict(model=problem.model, sampler=sampler, guidance=guidance or _guidance(), **more)


def _tuned(method, problem, seed, tools) -> Guidance:
    parts = {name: tools.pop(name) for name in ("model", "sampler", "guidance")}
    return tune_strength(attrs.evolve(method, **parts), problem, seed, Execution(**tools))


def _divergence(problem, sampler, gamma) -> float:
    """KL divergence of what is sampled from the exact posterior, up to a constant."""
    guided = _guidance(gamma=gamma)(problem.model.denoiser, problem.likelihood)
    mean, covariance = affine_moments(sampler, guided, problem.problem.shape)
    G, g = affine_map(problem.model.standardization.to_physical, problem.problem.shape)
    error, covariance = G @ mean + g - problem.mean.flatten(), G @ covariance @ G.T
    solved = torch.linalg.solve(problem.covariance, torch.column_stack((covariance, error)))
    trace = solved[:, :-1].diagonal().sum() + error @ solved[:, -1]
    return float(trace - torch.logdet(covariance))


@pytest.mark.usefixtures("no_plans")
def test_it_is_found_on_a_chain() -> None:
    problem = gaussian_problem(length=32, every=1, seed=0)
    recorded, said = {}, []
    tools = _tools(problem, record=recorded.update, announce=said.append)
    sampler = tools["sampler"]
    result = _tuned(SDA(), problem.problem, 0, tools)
    found = json.loads(json.dumps(recorded, allow_nan=False))["strength"]
    gamma = result.gamma
    assert found["field"] == "gamma"
    assert found["chosen"] == gamma
    assert {"value": gamma, "chi2": found["chi2"]}.items() <= max(
        found["trials"], key=lambda trial: trial["value"] == gamma
    ).items()
    assert 0.8 < found["chi2"] < 1.25
    assert said.pop() == (
        f"gamma = {gamma:.3g}, found with {len(found['trials'])} trials: chi^2 of withheld "
        f"observations {found['chi2']:.2f}"
    )
    values = [float(line.split()[3].rstrip(":")) for line in said]  # "trying gamma = 0.1: chi^2 2"
    assert values == pytest.approx([trial["value"] for trial in found["trials"]], rel=0.01)
    weaker, chosen, stronger = (
        _divergence(problem, sampler, factor * gamma) for factor in (10, 1, 0.1)
    )
    assert chosen < weaker
    assert chosen < stronger


@pytest.mark.usefixtures("no_plans")
def test_the_method_does_it_once(tmp_path, monkeypatch) -> None:
    """A run that is killed afterwards goes on with what was chosen."""
    monkeypatch.setattr(tuning, "SHARES", 2)
    problem = gaussian_problem(length=6, every=1)
    shape = (4, *problem.problem.shape)
    spec = problem.problem.system.spec

    def on_disk(said):
        ensemble = EnsembleFile(tmp_path / "posterior.nc", spec, shape, {})
        return _tools(problem, steps=8, ensemble=ensemble, announce=said.append)

    chosen = _tuned(SDA(), problem.problem, 3, on_disk([]))
    expected = draw(SDA(), problem.problem, 4, 3, **_tools(problem, chosen, steps=8))
    assert torch.equal(draw(SDA(), problem.problem, 4, 3, **_tools(problem, steps=8)), expected)
    said: list[str] = []
    assert torch.equal(draw(SDA(), problem.problem, 4, 3, **on_disk(said)), expected)
    assert said[0].startswith("gamma = ")  # and not "trying"
    said.clear()
    assert torch.equal(draw(SDA(), problem.problem, 4, 3, **on_disk(said)), expected)
    assert said[1] == "resuming after 4 of 4 members"


def test_too_little_memory_is_not_taken_for_lost_members() -> None:
    problem = gaussian_problem(length=6, every=1)
    with pytest.raises(AssimilationError, match="give more memory"):
        _tuned(SDA(memory=1e-9), problem.problem, 0, _tools(problem))


@pytest.mark.usefixtures("no_plans")
def test_it_is_in_the_units_of_what_is_observed(monkeypatch) -> None:
    """A(x), y and std times 1000: gamma times 1000^2, zeta by 1000, weight as it is."""
    monkeypatch.setattr(tuning, "SHARES", 2)
    problem = gaussian_problem(length=3, every=1)
    observation, c = problem.problem.observation, 1000.0
    larger = attrs.evolve(
        problem.problem,
        observation=attrs.evolve(
            observation,
            operator=lambda x: c * observation.operator(x),
            noise=attrs.evolve(observation.noise, scale=c * observation.noise.scale),
        ),
        y=c * problem.problem.y,
    )
    for name, field, unit in (
        ("gaussian", "gamma", c**2),
        ("dps", "zeta", 1 / c),
        ("diffpir", "weight", 1.0),
    ):
        guidance = structure(Guidance, {"name": name, field: "auto"})
        small, large = (
            getattr(_tuned(SDA(), p, 0, _tools(problem, guidance, 8)), field)
            for p in (problem.problem, larger)
        )
        assert math.isclose(large, unit * small, rel_tol=1e-6)


def test_a_number_is_left_alone() -> None:
    problem = gaussian_problem(length=3)
    for guidance in (_guidance(gamma=0.1), structure(Guidance, {"name": "mmps"})):
        tools = _tools(problem, guidance)
        assert _tuned(SDA(), problem.problem, 0, tools) is guidance


@pytest.mark.parametrize(("length", "every"), [(2, 1), (3, 1), (23, 1), (300, 1)])
def test_shares(length, every) -> None:
    observation = gaussian_problem(length=length, every=every, variables=("u", "v"))
    observation = observation.problem.observation
    shares = split_folds(observation, seeded_generator(0))
    n, times = observation.shape.numel(), observation.times.flatten()
    together = torch.stack(shares).sum(0)
    assert together.max() == 1  # none is withheld twice
    assert together.sum() == n or together.sum() >= 50
    assert all(share.any() and not share.all() for share in shares)
    if n < 250:
        assert together.sum() == n
    for share in shares:  # each share is spread over all times: one of every five neighbours
        if n >= 2 * SHARES:
            assert times[share].sort().values.diff().max() <= 2 * SHARES
            assert abs(int(share.sum()) - n / SHARES) < 1 or n % SHARES


def _attempt(chi2, crps=lambda v: 1.0):
    return lambda value: Trial(value, chi2(value), crps(value))


def test_search() -> None:
    """chi^2 = (0.02 / gamma)^0.3 is 1 at 0.02."""
    best, trials = search(_attempt(lambda v: (0.02 / v) ** 0.3), 1.0, 1e-4)
    assert abs(math.log10(best.value / 0.02)) < 1 / 16 + 1e-9  # decades, halved three times
    assert [t.value for t in trials[:3]] == pytest.approx([1, 0.1, 0.01])
    assert len(trials) == 6
    # The strongest may be the larger value.
    best, _ = search(_attempt(lambda v: (50 * v) ** 0.3), 1e-3, 10.0)
    assert abs(math.log10(best.value / 0.02)) < 1 / 16 + 1e-9
    # What blows up is too strong, and never chosen.
    best, _ = search(_attempt(lambda v: 0.5 if v > 0.02 else math.inf), 1.0, 1e-4)
    assert 0.02 < best.value < 0.03
    # Without a crossing the best predictions count.
    best, trials = search(_attempt(lambda v: 1.5, lambda v: abs(math.log(v / 0.011))), 1.0, 1e-4)
    assert best.value == pytest.approx(0.01)
    assert len(trials) == 5
    with pytest.raises(AssimilationError, match="diverge even under the weakest guidance that was"):
        search(_attempt(lambda v: math.inf, lambda v: math.inf), 1.0, 1e-4)


@pytest.mark.usefixtures("no_plans")
def test_guidance_that_is_too_strong() -> None:
    """With 6 steps small values of gamma make members run away."""
    problem, recorded = gaussian_problem(length=12, every=1, std=0.01), {}
    _tuned(SDA(), problem.problem, 0, _tools(problem, steps=6, record=recorded.update))
    found = recorded["strength"]
    lost = [trial["value"] for trial in found["trials"] if trial["chi2"] is None]
    assert lost
    assert max(lost) < found["chosen"]


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"gamma: got 'aut'|gamma: got 'aut' \(str\)"):
        _guidance(gamma="aut")
    with pytest.raises(ConfigError, match='allowed: 0 or greater, or "auto"'):
        _guidance(gamma=-1.0)
    assert unstructure(_guidance())["gamma"] == "auto"
    assert require_number(0.5) == 0.5
    problem = gaussian_problem(length=2)
    with pytest.raises(ConfigError, match="strength of this guidance is 'auto', which the method"):
        _guidance()(problem.model.denoiser, problem.likelihood)(
            problem.model.denoiser.mean[None], torch.tensor(0.5, dtype=torch.float64)
        )
    one = problem.problem.observation.select(torch.tensor([True]))
    few = Problem(system=problem.problem.system, observation=one, y=problem.problem.y.flatten())
    with pytest.raises(AssimilationError, match="by withholding observations, and there are 1"):
        _tuned(SDA(), few, 0, _tools(problem))
