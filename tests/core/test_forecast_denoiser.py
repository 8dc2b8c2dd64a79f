"""Denoisers of windows of which some states are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sda_core.config import structure
from sda_core.denoiser import ForecastDenoiser
from sda_core.errors import ConfigError
from sda_core.kernel import Kernel, WindowShape
from sda_core.model import ModelConfig
from sda_core.sampler import DDPM
from sda_core.schedule import VE

W, C = 6, 2
KERNELS = [
    ({"name": "mlp", "width": 32, "depth": 1}, ()),
    ({"name": "transformer", "width": 16, "blocks": 1, "heads": 2}, ()),
    ({"name": "unet", "channels": [8, 16], "blocks": [1, 1]}, (8, 8)),
]


def make(
    kernel: dict = KERNELS[0][0],
    grid: tuple[int, ...] = (),
    patterns: tuple[str, ...] = ("joint", "forecast", "infill"),
    past: int = 2,
) -> ForecastDenoiser:
    torch.manual_seed(0)
    config = structure(Kernel, kernel)
    networks = [config.build(WindowShape(window=W, variables=n * C, grid=grid)) for n in (4, 2)]
    return ForecastDenoiser(*networks, VE(), W, C, patterns, past)


@pytest.mark.parametrize(("kernel", "grid"), KERNELS)
def test_known_states_are_held_and_others_depend_on_them(kernel: dict, grid: tuple) -> None:
    denoiser, x = make(kernel, grid), torch.randn(3, W, C, *grid)
    for parameter in denoiser.parameters():  # some layers begin with zeros
        nn.init.normal_(parameter, std=0.1)
    t = torch.full((3, W), 0.5)
    t[:, :2] = 0
    x0 = denoiser(x, t)
    assert torch.equal(x0[:, :2], x[:, :2])
    x[:, 0] += 1
    assert (denoiser(x, t)[:, 2:] != x0[:, 2:]).any()
    for times in (torch.tensor(0.5), torch.full((3,), 0.5), torch.full((3, W), 0.5)):
        torch.testing.assert_close(denoiser(x, times), denoiser(x, torch.tensor(0.5)))


@pytest.mark.parametrize(("kernel", "grid"), KERNELS)
def test_the_conditional_is_sampled_by_any_sampler(kernel: dict, grid: tuple) -> None:
    denoiser, past = make(kernel, grid), torch.randn(3, 2, C, *grid)
    for before, count in ((past, W - 2), (None, W)):
        found = denoiser.conditional(before, (3, C, *grid))
        assert found.mean.shape == found.std.shape == (3, count, C, *grid)
        z = DDPM(steps=4).sample(found.denoiser, found.mean.shape, seed=0)
        assert found.to_states(z).isfinite().all()
    with torch.no_grad():  # nothing is known of one that another is given
        whole = denoiser.conditional(past, (3, C, *grid)).mean
        torch.testing.assert_close(denoiser.conditional(past[1:2], (1, C, *grid)).mean[0], whole[1])


def test_patterns_are_drawn_in_equal_shares() -> None:
    denoiser, x = make(), torch.zeros(3000, W, C)
    t, eps = denoiser.draw(x, torch.Generator().manual_seed(0))
    assert t.shape == (3000, W)
    assert eps.shape == x.shape
    known = t == 0
    counts = known.unique(dim=0, return_counts=True)
    assert {tuple(row.int().tolist()) for row in counts[0]} == {
        (0, 0, 0, 0, 0, 0),
        (1, 1, 0, 0, 0, 0),
        (1, 1, 0, 0, 0, 1),
    }
    assert (counts[1] - 1000).abs().max() < 120
    assert all(len(row[row > 0].unique()) == 1 for row in t)


def test_the_forecast_starts_from_the_nearest_known_states() -> None:
    denoiser = make(patterns=("infill",))
    with torch.no_grad():
        denoiser.gain.zero_()
    x = torch.arange(W, dtype=torch.float32)[None, :, None] ** 2 * torch.ones(1, W, C)
    for pattern, expected in (
        ("joint", [0] * W),
        ("forecast", [0, 1, 1, 1, 1, 1]),
        ("infill", [0, 1, 7, 13, 19, 25]),
    ):
        known = denoiser.known(pattern)[None]
        mean, std = denoiser.forecast(torch.where(known[..., None], x, 0), known)
        assert mean[0, :, 0].tolist() == pytest.approx(expected)
        assert (std[known] == 1).all()


class _Exact(nn.Module):
    """Of states that follow each other as x' = 2 x + 0.1 eps: what the head should give."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(x)


def test_the_loss_is_least_for_the_true_forecast() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(4096, 1, 1, generator=generator)
    x = torch.cat((first, first + 0.1 * torch.randn(first.shape, generator=generator)), dim=1)
    denoiser = ForecastDenoiser(_Exact(), _Exact(), VE(), 2, 1, ("forecast",), 1)
    t, eps = denoiser.draw(x, generator)

    def losses(log_std: float, bias: float) -> tuple[float, float]:
        """Mean errors of both networks."""
        with torch.no_grad():
            denoiser.offset[1, 1], denoiser.offset[0, 1] = log_std + 1, bias
            return tuple(denoiser.network(torch.stack((x, eps)), t)[:, :, 1].flatten(1).mean(1))

    found = {at: losses(*at)[1] for at in ((-2.7, 0), (-1.9, 0), (-2.3, 0), (-2.3, 0.05))}
    assert min(found, key=found.get) == (-2.3, 0)
    noise, likelihood = losses(math.log(0.1), 0.0)
    # Above its lowest value, and F = 0 leaves an error of 1, since it is right for Gaussians.
    torch.testing.assert_close(float(likelihood), 0.5 + math.log(0.1) + 7, rtol=0.02, atol=0.0)
    torch.testing.assert_close(float(noise), 1.0, rtol=0.1, atol=0.0)
    total = float(denoiser.losses_at(x, t, eps)[0])
    torch.testing.assert_close(total, float(noise + likelihood), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"levels": ["forecast"], "parameterization": "edm", "past": 5}, "past = 5"),
        ({"levels": ["infill"], "parameterization": "edm", "past": 4}, "past = 4"),
        ({"levels": ["forecast"]}, "parameterization = 'eps'"),
        ({"levels": ["backcast"]}, "backcast"),
    ],
)
def test_refusals(table: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        structure(ModelConfig, {"window": 5, **table})
