"""Derived quantities of velocity fields: exact values, measured orders, identities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from sda_core.errors import ConfigError, ShapeError
from sda_kolmogorov.physics import (
    coarsen,
    divergence,
    energy_spectrum,
    enstrophy,
    kinetic_energy,
    upsample,
    velocity_from_vorticity,
    vorticity,
)

METHODS = ("spectral", "finite-difference")


def centres(n: int, m: int) -> tuple[Tensor, Tensor]:
    """x and y at the cell centres, (n, m) each."""
    x, y = ((torch.arange(i, dtype=torch.float64) + 0.5) * 2 * math.pi / i for i in (n, m))
    return torch.meshgrid(x, y, indexing="ij")


def taylor_green(n: int, m: int) -> Tensor:
    x, y = centres(n, m)
    return torch.stack((x.sin() * y.cos(), -x.cos() * y.sin()))


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def assert_equal(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def order(errors: list[float]) -> float:
    """Order of convergence from errors on grids, each twice as fine as the one before."""
    return -float(np.polyfit(np.arange(len(errors)), np.log2(errors), 1)[0])


# --- derivatives ---


def test_spectral_derivatives_are_exact() -> None:
    """On a grid that is neither square nor even, so that axes and components are told apart."""
    x, y = centres(12, 9)
    u, v = (2 * x).sin() * (3 * y).cos(), x.cos() * (2 * y).sin()
    flow = torch.stack((u, v))
    w = -x.sin() * (2 * y).sin() + 3 * (2 * x).sin() * (3 * y).sin()
    div = 2 * (2 * x).cos() * (3 * y).cos() + 2 * x.cos() * (2 * y).cos()
    assert_equal(vorticity(flow), w)
    assert_equal(divergence(flow), div)


def test_taylor_green() -> None:
    flow = taylor_green(8, 10)
    x, y = centres(8, 10)
    assert_equal(vorticity(flow), 2 * x.sin() * y.sin())
    assert divergence(flow).abs().max() < 1e-12
    assert float(kinetic_energy(flow)) == pytest.approx(1 / 4, abs=1e-12)
    assert float(enstrophy(flow)) == pytest.approx(1 / 2, abs=1e-12)
    k, E = energy_spectrum(flow)
    assert k.tolist() == list(range(7))
    assert_equal(E, torch.tensor([0, 1 / 4, 0, 0, 0, 0, 0], dtype=torch.float64))
    assert_equal(velocity_from_vorticity(vorticity(flow)), flow)


def test_finite_differences_are_of_order_two() -> None:
    w, div = [], []
    for n in (16, 32, 64, 128):
        flow = taylor_green(n, n) + torch.stack(centres(n, n)[::-1]).cos()
        w.append(float((vorticity(flow, "finite-difference") - vorticity(flow)).abs().max()))
        flow = torch.stack(centres(n, n)).sin()
        div.append(float((divergence(flow, "finite-difference") - divergence(flow)).abs().max()))
    assert order(w) == pytest.approx(2, abs=0.05)
    assert order(div) == pytest.approx(2, abs=0.05)
    x, y = centres(16, 16)
    factor = math.sin(math.pi / 8) / (math.pi / 8)  # of the derivative of a sine of wavenumber 1
    flow = taylor_green(16, 16)
    assert_equal(vorticity(flow, "finite-difference"), 2 * factor * x.sin() * y.sin())
    assert float(enstrophy(flow, "finite-difference")) == pytest.approx(factor**2 / 2, abs=1e-12)


def test_the_nyquist_mode_has_no_derivative() -> None:
    ripple = torch.ones(6, 8, dtype=torch.float64)
    ripple[1::2] = -1
    assert vorticity(torch.stack((ripple, ripple))).abs().max() < 1e-12
    assert divergence(torch.stack((ripple, ripple)).mT).abs().max() < 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_the_divergence_of_a_curl_is_zero(method) -> None:
    psi = random(3, 6, 7)
    zero = torch.zeros_like(psi)
    dy = -vorticity(torch.stack((psi, zero), 1), method)
    dx = vorticity(torch.stack((zero, psi), 1), method)
    curl = torch.stack((dy, -dx), 1)
    assert curl.abs().max() > 1
    assert divergence(curl, method).abs().max() < 1e-12


def test_length_of_the_domain() -> None:
    flow, length = random(2, 6, 7), 5.0
    scale = 2 * math.pi / length
    for method in METHODS:
        for function in (vorticity, divergence):
            assert_equal(function(flow, method, length=length), scale * function(flow, method))
        squared = scale**2 * enstrophy(flow, method)
        assert_equal(enstrophy(flow, method, length=length), squared)
    w = vorticity(flow)
    assert_equal(scale * velocity_from_vorticity(w, length=length), velocity_from_vorticity(w))
    (k, E), (k_1, E_1) = energy_spectrum(flow, length=length), energy_spectrum(flow)
    assert_equal(k, scale * k_1)
    assert_equal(E, E_1)


@pytest.mark.parametrize("shape", [(8, 8), (7, 6), (5, 9)])
def test_velocity_from_vorticity_is_the_divergence_free_part(shape) -> None:
    """Of any field, also with Nyquist modes and a mean; of a divergence-free one, all."""
    flow = random(3, 2, *shape)
    part = velocity_from_vorticity(vorticity(flow))
    assert part.mean((-2, -1)).abs().max() < 1e-12
    assert divergence(part).abs().max() < 1e-12
    assert vorticity(flow - part).abs().max() < 1e-12
    assert_equal(velocity_from_vorticity(vorticity(part)), part)


@pytest.mark.parametrize("method", METHODS)
def test_gradients(method) -> None:
    flow = random(2, 2, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: vorticity(x, method), flow)
    assert torch.autograd.gradcheck(lambda x: divergence(x, method), flow)
    assert torch.autograd.gradcheck(lambda x: enstrophy(x, method), flow)


def test_more_gradients() -> None:
    flow = random(2, 2, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: energy_spectrum(x)[1], flow)
    assert torch.autograd.gradcheck(velocity_from_vorticity, flow)
    assert torch.autograd.gradcheck(lambda x: upsample(x, 2), flow)
    assert torch.autograd.gradcheck(lambda x: upsample(x, 3, "linear"), flow)


FUNCTIONS = {
    "vorticity": vorticity,
    "divergence": divergence,
    "kinetic energy": kinetic_energy,
    "enstrophy": enstrophy,
    "spectrum": lambda x: energy_spectrum(x)[1],
    "wavenumbers": lambda x: energy_spectrum(x)[0].expand(*x.shape[:-3], -1),
    "finite-difference": lambda x: vorticity(x, "finite-difference"),
    "velocity": velocity_from_vorticity,
    "coarsen": lambda x: coarsen(x, 2),
    "fourier": lambda x: upsample(x, 2),
    "linear": lambda x: upsample(x, 2, "linear"),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_batches_and_types(function) -> None:
    x = random(3, 5, 2, 6, 4)
    each = torch.stack([torch.stack([function(x[i, j]) for j in range(5)]) for i in range(3)])
    assert_equal(function(x), each)
    single = function(x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), each, rtol=1e-4, atol=1e-4)


# --- spectrum ---

sizes = st.integers(1, 12)


@given(sizes, sizes, st.integers(0, 100))
def test_all_shells_together_hold_the_kinetic_energy(n, m, seed) -> None:
    flow = torch.randn(
        2, 2, n, m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    k, E = energy_spectrum(flow)
    assert k.tolist() == list(range(E.shape[-1]))
    assert (E >= 0).all()
    torch.testing.assert_close(E.sum(-1), kinetic_energy(flow), rtol=1e-13, atol=0)
    assert_equal(E[:, 0], kinetic_energy(flow.mean((-2, -1), keepdim=True)))


@given(sizes, sizes, st.data())
def test_a_wave_is_in_the_shell_of_its_wavenumber(n, m, data) -> None:
    a, b = data.draw(st.integers(-((n - 1) // 2), n // 2)), data.draw(st.integers(0, m // 2))
    x, y = centres(n, m)
    wave = (a * x + b * y + 0.3).cos()
    _, E = energy_spectrum(torch.stack((wave, torch.zeros_like(wave))))
    shell = math.floor(math.hypot(a, b) + 0.5)
    assert float(E[shell]) == pytest.approx(float((wave**2).mean()) / 2, abs=1e-12)
    assert float(E.sum() - E[shell]) < 1e-12


# --- other grids ---


def test_block_means() -> None:
    flow = torch.arange(32, dtype=torch.float64).reshape(2, 4, 4)
    assert coarsen(flow, 2).tolist() == [
        [[2.5, 4.5], [10.5, 12.5]],
        [[18.5, 20.5], [26.5, 28.5]],
    ]
    assert_equal(coarsen(flow, 4), flow.mean((-2, -1), keepdim=True))
    assert torch.equal(coarsen(flow, 1), flow)


@pytest.mark.parametrize(("factor", "n", "m"), [(2, 8, 10), (3, 7, 6), (4, 9, 5)])
def test_fourier_interpolation_is_exact(factor, n, m) -> None:
    def field(n, m):
        x, y = centres(n, m)
        return (2 * x - y + 0.4).cos() + (2 * y).sin() * x.cos() + 0.7

    assert_equal(upsample(field(n, m), factor), field(n * factor, m * factor))


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_block_means_damp_waves_by_a_known_factor(factor) -> None:
    """The mean of r samples of sin(k x) over H is sin(k H / 2) / (r sin(k H / 2r)) sin(k x)."""
    n, k = 8, 3
    coarse, fine = ((k * centres(i, i)[0]).sin() for i in (n, n * factor))
    H = 2 * math.pi / n
    damping = math.sin(k * H / 2) / (factor * math.sin(k * H / 2 / factor))
    assert_equal(coarsen(fine, factor), damping * coarse)
    assert_equal(coarsen(upsample(coarse, factor), factor), damping * coarse)


def test_the_interpolated_nyquist_mode_is_a_cosine() -> None:
    """Of all waves through +1, -1, ... the one without a part that the coarse grid cannot see."""
    x = centres(8, 1)[0]
    coarse = (4 * (x - x[0])).cos()
    fine = centres(16, 2)[0]
    assert_equal(upsample(coarse, 2), (4 * (fine - x[0])).cos())


@pytest.mark.parametrize("method", ["fourier", "linear"])
def test_interpolation_keeps_the_values_at_common_centres(method) -> None:
    """With an odd factor each coarse centre is a fine one."""
    x = random(3, 6, 7)
    assert_equal(upsample(x, 3, method)[..., 1::3, 1::3], x)
    assert torch.equal(upsample(x, 1, method), x)


def test_linear_interpolation() -> None:
    x = torch.tensor([[0.0], [4.0], [8.0]], dtype=torch.float64)
    out = upsample(x, 2, "linear")
    assert out[:, 0].tolist() == out[:, 1].tolist() == [2.0, 1.0, 3.0, 5.0, 7.0, 6.0]
    errors = []
    for n in (16, 32, 64, 128):
        coarse, fine = (taylor_green(i, i) for i in (n, 2 * n))
        errors.append(float((upsample(coarse, 2, "linear") - fine).abs().max()))
    assert order(errors) == pytest.approx(2, abs=0.05)


# --- errors ---


def test_errors() -> None:
    for function in (vorticity, divergence, kinetic_energy, enstrophy, energy_spectrum):
        for shape in ((4, 4), (3, 4, 4)):
            with pytest.raises(ShapeError, match=rf"\(\.\.\., 2, n, m\), .* got \({shape[0]}, 4"):
                function(torch.zeros(shape))
    with pytest.raises(ShapeError, match=r"blocks of 3 points do not fill the grid \(6, 4\)"):
        coarsen(torch.zeros(2, 6, 4), 3)
    with pytest.raises(ShapeError, match="blocks of 0 points"):
        coarsen(torch.zeros(2, 6, 4), 0)
    with pytest.raises(ConfigError, match=r"factor: got 0, allowed: 1 or greater"):
        upsample(torch.zeros(4, 4), 0)
    with pytest.raises(ConfigError, match=r"got 'cubic', allowed: 'fourier' or 'linear'"):
        upsample(torch.zeros(4, 4), 2, "cubic")
    for function in (vorticity, divergence, enstrophy):
        with pytest.raises(ConfigError, match="got 'exact', allowed: 'spectral' or 'finite-diff"):
            function(torch.zeros(2, 4, 4), "exact")
