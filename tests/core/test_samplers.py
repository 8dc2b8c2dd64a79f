"""Samplers against the formulas of the original code, and their time grids."""

from __future__ import annotations

import pytest
import torch

from sda_core.config import structure
from sda_core.errors import ConfigError
from sda_core.random import MemberNoise, seeded_generator
from sda_core.sampler import DDIM, DDPM, PredictorCorrector, Sampler
from sda_core.schedule import VE, VP, RectifiedFlow, SubSubVP, SubVP
from sda_core.testing import gaussian_problem

SCHEDULES = [
    *(VP(alpha_shape=shape) for shape in ("lin", "cos", "exp")),
    SubVP(),
    SubSubVP(),
    VE(),
    RectifiedFlow(),
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


@pytest.mark.parametrize(
    ("sampler", "evaluations"),
    [
        (DDIM(steps=6), 6),
        (DDPM(steps=6, denoise_final=False), 6),
        (PredictorCorrector(steps=6), 6),
        (PredictorCorrector(steps=6, corrections=2), 18),
    ],
)
def test_cost_and_progress(sampler, evaluations) -> None:
    denoiser, calls, heard = _denoiser(), [], []
    denoiser.register_forward_hook(lambda *_: calls.append(1))
    sampler.sample(denoiser, (3, 4, 2), _noise(), on_step=lambda *a: heard.append(a))
    assert len(calls) == evaluations
    assert heard == [(i, 6) for i in range(1, 7)]


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
    with pytest.raises(ValueError, match=r"shorter|longer"):
        a.normal((2, 4))


def test_seeds_all_count() -> None:
    draws = {
        key: float(torch.randn((), generator=seeded_generator(*key)))
        for key in [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 1), (2**40, 3)]
    }
    assert len(set(draws.values())) == len(draws)
    assert draws[0, 1] == float(torch.randn((), generator=seeded_generator(0, 1)))


def test_errors() -> None:
    with pytest.raises(ConfigError, match=r"steps: got 1, allowed: 2 or greater"):
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
    with pytest.raises(ConfigError, match=r"steps: got 1, allowed: 2 or greater"):
        structure(Sampler, {"name": "predictor-corrector", "steps": 1, "denoise_final": True})
