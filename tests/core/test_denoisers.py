"""Denoisers of windows: parameterizations, conversions and the loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sda_core.denoiser import (
    PARAMETERIZATIONS,
    WindowDenoiser,
    eps_to_score,
    eps_to_x0,
    score_to_x0,
    x0_to_eps,
)
from sda_core.denoiser.base import expand_time
from sda_core.schedule import VE, VP, RectifiedFlow

NAMES = list(PARAMETERIZATIONS)
SCHEDULES = [VP(), VE(), RectifiedFlow()]
PARTS = [(slice(3), 3), (slice(3, 8), 5)]


def _randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Kernel(nn.Module):
    """Remembers what it was given."""

    def __init__(self, out=None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.out, self.calls = out, []

    def forward(self, x, t):
        self.calls.append((x, t))
        return self.scale * x + t.reshape(-1, 1, 1) if self.out is None else self.out


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_conversions_round_trip(schedule) -> None:
    x_t, x0 = _randn(4, 5, 3), _randn(4, 5, 3, seed=1)
    t = expand_time(torch.tensor([0.01, 0.3, 0.7, 0.99], dtype=torch.float64), x_t)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    eps = x0_to_eps(x_t, x0, alpha, sigma)
    torch.testing.assert_close(alpha * x0 + sigma * eps, x_t)
    torch.testing.assert_close(eps_to_x0(x_t, eps, alpha, sigma), x0)
    torch.testing.assert_close(score_to_x0(x_t, eps_to_score(eps, sigma), alpha, sigma), x0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", NAMES)
def test_what_the_network_means(name, schedule) -> None:
    kernel = Kernel()
    denoiser = WindowDenoiser(kernel, schedule, 5, name)
    x_t, t = _randn(4, 5, 3), torch.tensor([0.01, 0.3, 0.7, 0.99], dtype=torch.float64)
    x0, eps, score = denoiser(x_t, t), denoiser.eps(x_t, t), denoiser.score(x_t, t)
    alpha, sigma = (s.reshape(-1, 1, 1) for s in (schedule.alpha(t), schedule.sigma(t)))
    total = (alpha**2 + sigma**2).sqrt()
    seen, F = kernel.calls[0][0], kernel(*kernel.calls[0])
    torch.testing.assert_close(seen, x_t / total if name == "edm" else x_t)
    if name == "eps":
        torch.testing.assert_close(eps, F, rtol=1e-6, atol=1e-6)
    elif name == "x0":
        torch.testing.assert_close(x0, F)
    else:
        # A rotation: x_t = total (cos e + sin v) with x0 / eps at right angles (v-prediction).
        torch.testing.assert_close(x0, (alpha * x_t / total + sigma * F) / total)
    torch.testing.assert_close(alpha * x0 + sigma * eps, x_t)
    torch.testing.assert_close(score, -eps / sigma)
    one = denoiser(x_t, t[1])
    torch.testing.assert_close(one[1], x0[1])
    assert kernel.calls[-1][1].shape == (4,)


@pytest.mark.parametrize("name", NAMES)
def test_edm_has_unit_variance_inputs_and_targets(name) -> None:
    """For data of unit variance; the other parameterizations do not."""
    schedule = VE()
    n = 20_000
    x, eps = _randn(n, 1, 1), _randn(n, 1, 1, seed=1)
    for level in (0.1, 0.5, 0.9):
        t = torch.tensor(level, dtype=torch.float64)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        c_in, c_skip, c_out = PARAMETERIZATIONS[name](alpha, sigma)
        x_t = alpha * x + sigma * eps
        target = (x - c_skip * x_t) / c_out
        assert float(target.var()) == pytest.approx(1, rel=0.05)
        if name == "edm":
            assert float((c_in * x_t).var()) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weights", [None, [1.0, 3.0, 0.5]])
def test_loss(name, schedule, weights) -> None:
    """|x0 - x_0|^2 / c_out^2, with the times and noise that the network was shown."""
    kernel = Kernel()
    denoiser = WindowDenoiser(kernel, schedule, 5, name)
    x = _randn(8, 5, 3)
    w = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    loss = denoiser.loss(x, torch.Generator().manual_seed(3), w)
    (seen, t), kernel.calls = kernel.calls[0], []
    alpha, sigma = (s.reshape(-1, 1, 1) for s in (schedule.alpha(t), schedule.sigma(t)))
    x_t = seen * (alpha**2 + sigma**2).sqrt() if name == "edm" else seen
    error = (denoiser(x_t, t) - x) ** 2
    scale = {
        "eps": (sigma / alpha) ** 2,
        "x0": torch.ones_like(sigma),
        "edm": sigma**2 / (alpha**2 + sigma**2),
    }[name]
    error = error / scale
    if w is not None:
        error = error * w / w.mean()
    torch.testing.assert_close(loss, error.mean(), rtol=1e-6, atol=1e-8)
    # The noise is standard normal, and times are one in each of 8 equal parts.
    eps = ((x_t - alpha * x) / sigma).flatten()
    assert abs(float(eps.mean())) < 5 / len(eps) ** 0.5
    assert float(eps.var()) == pytest.approx(1, abs=7 / len(eps) ** 0.5)
    assert sorted((t * 8).long().tolist()) == list(range(8))
    loss.backward()
    assert kernel.scale.grad is not None


def test_the_loss_of_parts_is_that_of_the_whole() -> None:
    denoiser = WindowDenoiser(Kernel(), VP(), 5, "edm")
    x = _randn(8, 5, 3)
    t, eps = denoiser.draw(x, torch.Generator().manual_seed(3))
    parts = [denoiser.loss_at(x[i], t[i], eps[i]) * n / 8 for i, n in PARTS]
    whole = denoiser.loss(x, torch.Generator().manual_seed(3))
    torch.testing.assert_close(sum(parts), whole)
    assert parts[0] != parts[1]


@pytest.mark.parametrize("weights", [None, [1.0, 3.0, 0.5]])
def test_the_losses_of_windows_are_those_of_each_alone(weights) -> None:
    denoiser = WindowDenoiser(Kernel(), VP(), 5, "edm")
    w = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    x = _randn(8, 5, 3)
    t, eps = denoiser.draw(x, torch.Generator().manual_seed(3))
    loss, losses = denoiser.losses_at(x, t, eps, w)
    assert torch.equal(loss, denoiser.loss_at(x, t, eps, w))
    alone = [denoiser.loss_at(x[i : i + 1], t[i : i + 1], eps[i : i + 1], w) for i in range(8)]
    torch.testing.assert_close(losses, torch.stack(alone))
    assert loss.requires_grad
    assert not losses.requires_grad


def test_the_loss_of_another_network() -> None:
    kernel = Kernel()
    denoiser = WindowDenoiser(kernel, VP(), 5, "x0")
    x = _randn(8, 5, 3)
    drawn = denoiser.draw(x, torch.Generator().manual_seed(3))
    assert denoiser.loss_at(x, *drawn) > 0
    kernel.calls.clear()
    assert denoiser.loss_at(x, *drawn, network=lambda x_t, t: x + t[:, None, None] * 0) == 0
    assert not kernel.calls


def test_loss_on_a_grid_weighs_variables() -> None:
    kernel = Kernel(out=torch.zeros(2, 3, 2, 4, dtype=torch.float64))
    denoiser = WindowDenoiser(kernel, VP(), 3, "x0")
    x = torch.zeros(2, 3, 2, 4, dtype=torch.float64)
    x[:, :, 0], x[:, :, 1] = 1.0, 2.0
    weights = torch.tensor([3.0, 1.0], dtype=torch.float64)
    loss = denoiser.loss(x, torch.Generator().manual_seed(0), weights)
    assert float(loss) == pytest.approx((1.5 * 1 + 0.5 * 4) / 2)


def test_a_perfect_network_has_no_loss() -> None:
    x = _randn(6, 5, 3)
    denoiser = WindowDenoiser(Kernel(out=x), VP(), 5, "x0")
    assert float(denoiser.loss(x, torch.Generator().manual_seed(0))) == 0
