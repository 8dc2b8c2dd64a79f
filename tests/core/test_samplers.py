"""Samplers against the formulas of the original code, and their time grids."""

from __future__ import annotations

import math

import attrs
import numpy as np
import pytest
import torch
from scipy.integrate import quad

from sda_core.config import structure
from sda_core.denoiser import Denoiser
from sda_core.errors import ConfigError
from sda_core.random import MemberNoise, seeded_generator
from sda_core.sampler import (
    DDIM,
    DDPM,
    EDM,
    AdamsBashforth,
    DPMSolver,
    Heun,
    PredictorCorrector,
    Sampler,
)
from sda_core.schedule import VE, VP, RectifiedFlow, SubSubVP, SubVP
from sda_core.testing import gaussian_problem

SCHEDULES = [
    *(VP(alpha_shape=shape) for shape in ("lin", "cos", "exp")),
    SubVP(),
    SubSubVP(),
    VE(),
    RectifiedFlow(),
]

ALL = [
    DDIM(steps=9, eta=0.5),
    DDPM(steps=9),
    PredictorCorrector(steps=9, corrections=1, tau=0.2, correct_from=0.1, correct_to=9.0),
    Heun(steps=9),
    EDM(steps=9, s_min=0.1, s_max=20.0),
    DPMSolver(steps=9),
    AdamsBashforth(steps=9, order=2),
    AdamsBashforth(steps=9),
]


def _noise(members=3, seed=0, dtype=torch.float64):
    return MemberNoise(seed, range(members), dtype=dtype)


def _denoiser(schedule=None):
    return gaussian_problem(length=4, schedule=schedule).model.denoiser


@pytest.mark.parametrize("schedule", [VP(), VE()])
@pytest.mark.parametrize(("corrections", "tau"), [(0, 1.0), (1, 0.25), (2, 0.5)])
def test_predictor_corrector_is_that_of_the_original_code(schedule, corrections, tau) -> None:
    """x <- r x + (sigma_s - r sigma_t) eps, and x <- x - sigma_s (delta eps + sqrt(2 delta) z)."""
    denoiser, noise, steps = _denoiser(schedule), _noise(), 7
    sampler = PredictorCorrector(steps=steps, corrections=corrections, tau=tau)
    result = sampler.sample(denoiser, (3, 4, 2), _noise())
    mu, sigma = schedule.alpha, schedule.sigma
    time = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    x = sigma(time[0]) * noise.normal((3, 4, 2))
    dt = 1 / steps
    for t in time[:-1]:
        r = mu(t - dt) / mu(t)
        x = r * x + (sigma(t - dt) - r * sigma(t)) * denoiser.eps(x, t)
        for _ in range(corrections):
            z = noise.normal(x.shape)
            eps = denoiser.eps(x, t - dt)
            delta = tau / eps.square().mean(dim=(1, 2), keepdim=True)
            x = x - (delta * eps + torch.sqrt(2 * delta) * z) * sigma(t - dt)
    torch.testing.assert_close(result, x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_is_the_predictor(schedule, eta: float) -> None:
    a = DDIM(steps=9, eta=eta, denoise_final=False)
    b = PredictorCorrector(steps=9, eta=eta)
    shape = (3, 4, 2)
    assert torch.equal(*(s.sample(_denoiser(schedule), shape, _noise()) for s in (a, b)))


def test_ddpm_draws_from_the_gaussian_between() -> None:
    """Equations 6 and 7 of Ho et al. (2020), which are for alpha^2 + sigma^2 = 1."""

    class Exact(VP):
        def sigma(self, t):
            return (1 - self.alpha(t) ** 2).sqrt()

    denoiser = _denoiser(Exact())
    t, s = torch.tensor([0.6, 0.5], dtype=torch.float64)
    x = _noise(seed=1).normal((3, 4, 2))
    result = DDPM().step(denoiser, x, t, s, _noise())
    bar_t, bar_s = Exact().alpha(t) ** 2, Exact().alpha(s) ** 2
    a = bar_t / bar_s
    beta = 1 - a
    mean = (
        bar_s.sqrt() * beta / (1 - bar_t) * denoiser(x, t)
        + a.sqrt() * (1 - bar_s) / (1 - bar_t) * x
    )
    variance = (1 - bar_s) / (1 - bar_t) * beta
    torch.testing.assert_close(result, mean + variance.sqrt() * _noise().normal(x.shape))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim_keeps_the_noise_level_for_any_share_of_noise(schedule) -> None:
    """With the true x_0, x_s given x_t is alpha_s x_0 + sigma_s eps whatever eta is."""
    denoiser = _denoiser(schedule)
    denoiser.forward = lambda x_t, t: torch.zeros_like(x_t)  # all data are 0
    t, s = torch.tensor([0.6, 0.55], dtype=torch.float64)
    members = 20_000
    x = schedule.sigma(t) * torch.randn(
        members, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )

    class Noise:
        def normal(self, shape):
            return torch.randn(
                shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
            )

    for eta in (0.0, 0.5, 1.0):
        out = DDIM(eta=eta).step(denoiser, x, t, s, Noise())
        ratio = float(out.std() / schedule.sigma(s))
        assert ratio == pytest.approx(1, abs=5 / (2 * members) ** 0.5)
        if eta == 1:  # x_s = (alpha_t sigma_s^2 / alpha_s sigma_t^2) x_t + noise
            gain = (schedule.alpha(t) * schedule.sigma(s) ** 2) / (
                schedule.alpha(s) * schedule.sigma(t) ** 2
            )
            slope = float((out * x).sum() / x.square().sum())
            assert slope == pytest.approx(float(gain), abs=5 / members**0.5)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("final", [True, False])
def test_time_grids(schedule, final) -> None:
    steps = 12
    n = steps + (not final)
    even = torch.linspace(0, 1, n, dtype=torch.float64)
    for grid, measure in (
        ("time", lambda t: 1 - t),
        ("log-snr", schedule.log_snr),
        ("rho", lambda t: (schedule.sigma(t) / schedule.alpha(t)) ** (1 / 7)),
    ):
        times = DDIM(steps=steps, grid=grid, denoise_final=final).times(schedule)
        assert times.dtype == torch.float64
        assert len(times) == n
        assert (times[0], times[-1]) == (1, 0)
        assert (times.diff() < 0).all()
        values = measure(times)
        share = (values - values[0]) / (values[-1] - values[0])
        torch.testing.assert_close(share, even, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("grid", ["log-snr", "rho"])
def test_fine_grids_in_float32_stay_finite(schedule, grid) -> None:
    """Neighbouring times may then be equal after rounding."""
    sampler = DDPM(steps=400, grid=grid)
    x = sampler.sample(_denoiser(schedule), (2, 4, 2), _noise(2, dtype=torch.float32))
    assert x.isfinite().all()


@pytest.mark.parametrize("schedule", [VP(), RectifiedFlow()])
@pytest.mark.parametrize("cls", [Heun, EDM, DPMSolver, AdamsBashforth])
def test_fine_grids_in_float32_are_as_good_as_in_float64(schedule, cls) -> None:
    sampler = cls(steps=200)
    single, double = (
        sampler.sample(_denoiser(schedule), (2, 4, 2), Same(dtype))
        for dtype in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)


class Same:
    """The same noise in any precision."""

    def __init__(self, dtype) -> None:
        self._noise, self._dtype = _noise(2), dtype

    def normal(self, shape):
        return self._noise.normal(shape).to(self._dtype)


@pytest.mark.parametrize(
    ("sampler", "evaluations"),
    [
        (DDIM(steps=6), 6),
        (DDPM(steps=6, denoise_final=False), 6),
        (PredictorCorrector(steps=6), 6),
        (PredictorCorrector(steps=6, corrections=2), 18),
        (Heun(steps=6), 11),
        (Heun(steps=6, denoise_final=False), 12),
        (EDM(steps=6), 11),
        (DPMSolver(steps=6), 6),
        (DPMSolver(steps=6, denoise_final=False), 6),
        (AdamsBashforth(steps=6), 6),
        (AdamsBashforth(steps=6, order=2, denoise_final=False), 6),
    ],
)
def test_cost_and_progress(sampler, evaluations) -> None:
    denoiser, calls, heard = _denoiser(), [], []
    denoiser.register_forward_hook(lambda *_: calls.append(1))
    sampler.sample(denoiser, (3, 4, 2), _noise(), on_step=lambda *a: heard.append(a))
    assert len(calls) == evaluations
    assert heard == [(i, 6) for i in range(1, 7)]


@pytest.mark.parametrize("sampler", ALL, ids=lambda s: type(s).__name__)
def test_states_are_shown_and_keep_no_graph(sampler) -> None:
    denoiser, states = _denoiser(), []
    forward, scale = denoiser.forward, torch.ones((), requires_grad=True)

    def careless(x_t, t):
        with torch.enable_grad():
            return scale * forward(x_t, t)

    denoiser.forward = careless
    x = sampler.sample(denoiser, (3, 4, 2), _noise(), on_state=lambda *a: states.append(a))
    times = sampler.times(VP())
    expected = [*times[1:], times[-1]] if sampler.denoise_final else times[1:]
    assert [s for _, s in states] == list(expected)
    assert not any(state.x.requires_grad for state, _ in states)
    assert states[-1][0].x is x


@pytest.mark.parametrize("cls", [DPMSolver, AdamsBashforth])
def test_what_is_looked_back_at_keeps_no_graph(cls) -> None:
    seen = []

    class Spy(cls):
        def advance(self, schedule, x, times, s, estimates):
            seen.extend(estimates)
            return super().advance(schedule, x, times, s, estimates)

    denoiser = _denoiser()
    forward, scale = denoiser.forward, torch.ones((), requires_grad=True)

    def careless(x_t, t):
        with torch.enable_grad():
            return scale * forward(x_t, t)

    denoiser.forward = careless
    Spy(steps=5).sample(denoiser, (3, 4, 2), _noise())
    assert seen
    assert not any(estimate.requires_grad for estimate in seen)


@pytest.mark.parametrize("sampler", ALL, ids=lambda s: type(s).__name__)
def test_samples_depend_on_the_noise_levels_alone(sampler) -> None:
    """x / alpha at given levels sigma / alpha is the same whatever the schedule."""
    sampler = attrs.evolve(sampler, grid="log-snr")
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    results = []
    for schedule in (VP(), RectifiedFlow(eta=1e-2), SubVP()):
        low, high = (schedule.sigma(ends) / schedule.alpha(ends)).tolist()
        ve = VE(sigma_min=low, sigma_max=high)
        for one in (schedule, ve):
            x = sampler.sample(_denoiser(one), (3, 4, 2), _noise())
            results.append(x if sampler.denoise_final else x / one.alpha(ends[0]))
    for a, b in zip(results[::2], results[1::2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "sampler", [EDM(s_churn=3.0, s_min=0.01, s_max=10.0, s_noise=1.01, steps=9), Heun(steps=9)]
)
def test_edm_is_algorithm_two(sampler) -> None:
    """And Heun algorithm one. For VE, where sigma / alpha is sigma; D is the denoiser."""
    schedule, noise = VE(sigma_min=0.002, sigma_max=80.0), _noise()
    denoiser = _denoiser(schedule)

    def D(x, level):
        return denoiser(x, schedule.time(-2 * level.log()))

    i = torch.arange(9, dtype=torch.float64)
    levels = (80 ** (1 / 7) + i / 8 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    x = levels[0] * noise.normal((3, 4, 2))
    churned = 0
    for level, after in zip(levels, [*levels[1:], 0.0], strict=True):
        hat = level
        if isinstance(sampler, EDM) and 0.01 <= level <= 10 and after > 0:
            churned += 1
            hat = (1 + min(3 / 9, 2**0.5 - 1)) * level
            x = x + (hat**2 - level**2).sqrt() * 1.01 * noise.normal(x.shape)
        d = (x - D(x, hat)) / hat
        ahead = x + (after - hat) * d
        if after > 0:
            d_ahead = (ahead - D(ahead, after)) / after
            ahead = x + (after - hat) * (d + d_ahead) / 2
        x = ahead
    assert churned == (5 if isinstance(sampler, EDM) else 0)
    result = sampler.sample(denoiser, (3, 4, 2), _noise())
    torch.testing.assert_close(result, x, rtol=1e-6, atol=1e-6)


def test_churn_is_bounded() -> None:
    """By gamma <= sqrt(2) - 1, and by the schedule's largest noise level."""
    denoiser, schedule, shape = _denoiser(VE()), VE(), (3, 4, 2)
    most = (2**0.5 - 1) * 9
    a, b = (EDM(steps=9, s_churn=c).sample(denoiser, shape, _noise()) for c in (most, 1e6))
    assert torch.equal(a, b)
    s = torch.tensor(0.9, dtype=torch.float64)
    x = schedule.sigma_max * _noise().normal(shape)
    at_the_top = EDM(s_churn=1e6).step(denoiser, x, torch.ones_like(s), s, _noise())
    assert torch.equal(at_the_top, Heun().step(denoiser, x, torch.ones_like(s), s, _noise()))


def test_dpm_solver_is_that_of_the_paper() -> None:
    denoiser, schedule, steps = _denoiser(), VP(), 9
    t = DPMSolver(steps=steps, grid="time", denoise_final=False).times(schedule)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    level = (alpha / sigma).log()
    h = level.diff()
    x = sigma[0] * _noise().normal((3, 4, 2))
    x0 = [denoiser(x, t[0])]
    x = sigma[1] / sigma[0] * x - alpha[1] * torch.expm1(-h[0]) * x0[0]
    for i in range(2, steps + 1):
        x0.append(denoiser(x, t[i - 1]))
        r = h[i - 2] / h[i - 1]
        D = (1 + 1 / (2 * r)) * x0[i - 1] - 1 / (2 * r) * x0[i - 2]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * (torch.exp(-h[i - 1]) - 1) * D
    sampler = DPMSolver(steps=steps, grid="time", denoise_final=False)
    torch.testing.assert_close(sampler.sample(denoiser, (3, 4, 2), _noise()), x)


@pytest.mark.parametrize("order", [2, 3])
def test_adams_bashforth_integrates_polynomials(order) -> None:
    """Of degree order - 1 in log(sigma / alpha), exactly, whatever the steps."""
    schedule = VP()
    times = torch.tensor([0.4, 0.55, 0.6], dtype=torch.float64)[:order]
    s = torch.tensor(0.3, dtype=torch.float64)
    coefficients = [0.3, -1.2, 0.7][:order]

    def eps(level):
        return sum(c * level**k for k, c in enumerate(coefficients))

    levels = -schedule.log_snr(times) / 2
    x = torch.full((1, 1, 1), 0.8, dtype=torch.float64)
    past = [eps(level).reshape(1, 1, 1) for level in levels]
    result = AdamsBashforth(order=order).advance(schedule, x, times, s, past)
    start, end = float(levels[0]), -float(schedule.log_snr(s)) / 2
    change, _ = quad(lambda level: np.exp(level) * eps(level), start, end)
    exact = schedule.alpha(s) * (x / schedule.alpha(times[0]) + change)
    torch.testing.assert_close(result, exact)


@pytest.mark.parametrize("sampler", [DPMSolver(), AdamsBashforth()])
def test_without_a_past_it_is_ddim(sampler) -> None:
    t, s = torch.tensor([0.6, 0.4], dtype=torch.float64)
    x = _noise().normal((3, 4, 2))
    result, ddim = (m.step(_denoiser(), x, t, s, _noise()) for m in (sampler, DDIM()))
    torch.testing.assert_close(result, ddim)


class NoNoise(Denoiser):
    """Finds no noise in anything, eps = 0."""

    def forward(self, x_t, t):
        return x_t / self.scales(x_t, t)[0]


def test_langevin_steps_can_be_bounded() -> None:
    t, s = torch.tensor([0.6, 0.5], dtype=torch.float64)
    x, z = _noise(seed=1).normal((3, 4, 2)), _noise().normal((3, 4, 2))
    plain = PredictorCorrector(corrections=1, tau=0.3)
    bounded = attrs.evolve(plain, largest_step=0.2)
    denoiser = NoNoise(VP())
    assert not plain.step(denoiser, x, t, s, _noise()).isfinite().any()
    start = PredictorCorrector().step(denoiser, x, t, s, _noise())
    expected = start - VP().sigma(s) * 0.4**0.5 * z
    torch.testing.assert_close(bounded.step(denoiser, x, t, s, _noise()), expected)
    # A bound that is not met changes nothing.
    loose = attrs.evolve(plain, largest_step=1e6)
    a, b = (m.sample(_denoiser(), (3, 4, 2), _noise()) for m in (plain, loose))
    assert torch.equal(a, b)


@pytest.mark.parametrize(("low", "high"), [(0.0, None), (0.1, 5.0), (3.0, None), (0.0, 0.01)])
def test_corrections_at_some_noise_levels(low, high) -> None:
    schedule, calls = VP(), []
    sampler = PredictorCorrector(steps=16, corrections=2, correct_from=low, correct_to=high)
    t = sampler.times(schedule)[1:]
    r = schedule.sigma(t) / schedule.alpha(t)
    corrected = int(((r >= low) & (r <= (high or torch.inf))).sum())
    assert corrected > 0
    denoiser = _denoiser(schedule)
    denoiser.register_forward_hook(lambda *_: calls.append(1))
    sampler.sample(denoiser, (3, 4, 2), _noise())
    assert len(calls) == 16 + 2 * corrected


def test_member_noise() -> None:
    a = MemberNoise(5, [0, 1, 2])
    b = MemberNoise(5, [2, 7])
    first = a.normal((3, 4, 2))
    assert first.dtype == torch.float32
    assert torch.equal(first[2], b.normal((2, 4, 2))[0])
    second = a.normal((3, 4, 2))
    assert not torch.equal(first, second)
    assert torch.equal(second[2], b.normal((2, 4, 2))[0])
    assert not torch.equal(MemberNoise(6, [2]).normal((1, 4, 2)), first[2:])
    with pytest.raises(ValueError, match="2 rows is asked of 3 members"):
        a.normal((2, 4))


@pytest.mark.parametrize("shape", [(4, 2), (), (100,), (2**14,), (3, 2**14)])
def test_noise_of_a_member_depends_on_no_other(shape) -> None:
    """Whether a block is drawn whole, in part or in another order."""
    numbers = [0, 1, 2, 163, 164, 700, 2047, 2048, 16383, 16384]
    whole = 2049 if math.prod(shape) < 1000 else 4
    wanted = [n for n in numbers if n < whole]
    everyone, some = MemberNoise(5, range(whole)), MemberNoise(5, wanted[::-1])
    for _ in range(2):
        z, part = everyone.normal((whole, *shape)), some.normal((len(wanted), *shape))
        assert torch.equal(part, z[wanted[::-1]])
        assert len(z.flatten().unique()) > 0.99 * z.numel()


def test_noise_is_normal_and_uncorrelated() -> None:
    noise = MemberNoise(3, range(4096), torch.float64)
    z = torch.stack([noise.normal((4096, 3)), noise.normal((4096, 3))]).flatten(1)
    assert z.mean().abs() < 4 / z.numel() ** 0.5
    assert (z.var() - 1).abs() < 4 * (2 / z.numel()) ** 0.5
    for a, b in ((z[0], z[1]), (z[:, :-1], z[:, 1:]), (z[:, :-2048], z[:, 2048:])):
        assert (a * b).mean().abs() < 4 / a.numel() ** 0.5


def test_seeds_all_count() -> None:
    draws = {
        key: float(torch.randn((), generator=seeded_generator(*key)))
        for key in [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 1), (2**40, 3)]
    }
    assert len(set(draws.values())) == len(draws)
    assert draws[0, 1] == float(torch.randn((), generator=seeded_generator(0, 1)))


def test_errors() -> None:
    with pytest.raises(ConfigError, match=r"steps: got 1, allowed: from 2"):
        structure(Sampler, {"name": "ddim", "steps": 1})
    with pytest.raises(ConfigError, match=r"eta: got 1.5, allowed: from 0 to 1"):
        structure(Sampler, {"name": "ddim", "eta": 1.5})
    with pytest.raises(ConfigError, match=r"grid: got 'logsnr' .*did you mean 'log-snr'"):
        structure(Sampler, {"name": "ddpm", "grid": "logsnr"})
    with pytest.raises(ConfigError, match=r"tau: got 0.0, allowed: greater than 0"):
        structure(Sampler, {"name": "predictor-corrector", "tau": 0.0})
    with pytest.raises(ConfigError, match=r"steps: got 0"):
        structure(Sampler, {"name": "predictor-corrector", "steps": 0})
    # One step that also denoises would have a grid of one time, which cannot be both 1 and 0.
    with pytest.raises(ConfigError, match=r"steps: got 1, allowed: from 2"):
        structure(Sampler, {"name": "predictor-corrector", "steps": 1, "denoise_final": True})
    with pytest.raises(ConfigError, match=r"order: got 4, allowed: one of 2, 3"):
        structure(Sampler, {"name": "adams-bashforth", "order": 4})
    with pytest.raises(ConfigError, match=r"s_min = 3.0 must not be larger than s_max = 2.0"):
        structure(Sampler, {"name": "edm", "s_min": 3.0, "s_max": 2.0})
    with pytest.raises(ConfigError, match=r"correct_from = 3.0 must not be .* correct_to = 2.0"):
        structure(Sampler, {"name": "predictor-corrector", "correct_from": 3.0, "correct_to": 2.0})
