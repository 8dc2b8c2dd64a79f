"""The U-Net's parts against torch's own, its symmetries, and other ways to run it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from sda_core.kernel import WindowShape
from sda_unet.blocks import CONVOLUTIONS, Attention, Convolution, ResidualBlock, layer_norm
from sda_unet.unet import UNet

SMALL = {"channels": (4, 8, 8), "blocks": (1, 1, 1), "embedding": 8}


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def network(window: WindowShape, **options) -> nn.Module:
    torch.manual_seed(0)
    return UNet(**{**SMALL, **options}).build(window).double()


# --- parts ---


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_convolution(axes, kernel_size, stride) -> None:
    """Against torch's circular padding."""
    mine = Convolution(2, 3, kernel_size, (True,) * axes, stride).double()
    torchs = CONVOLUTIONS[axes](
        2, 3, kernel_size, stride, padding=kernel_size // 2, padding_mode="circular"
    ).double()
    torchs.load_state_dict(mine.convolution.state_dict())
    x = normal(2, 2, *(4, 6, 8)[:axes])
    torch.testing.assert_close(mine(x), torchs(x))


def test_convolution_with_time_and_periodic_grid() -> None:
    """Zeros before the first time and after the last, the other end of the grid around it."""
    mine = Convolution(2, 3, 3, (False, True, True)).double()
    plain = nn.Conv3d(2, 3, 3).double()
    plain.load_state_dict(mine.convolution.state_dict())
    x = normal(2, 2, 5, 4, 6)
    padded = torch.zeros(2, 2, 7, 6, 8).double()
    padded[:, :, 1:-1] = x[..., [3, 0, 1, 2, 3, 0], :][..., [5, 0, 1, 2, 3, 4, 5, 0]]
    torch.testing.assert_close(mine(x), plain(padded))


def test_layer_norm() -> None:
    x = 3 * normal(2, 8, 3, 4) + 1
    h = layer_norm(x)
    torch.testing.assert_close(h.mean(1), torch.zeros(2, 3, 4).double())
    torch.testing.assert_close(
        h.var(1, correction=0), torch.ones(2, 3, 4).double(), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(
        h, (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    )


def test_layer_norm_keeps_bfloat16_and_has_statistics_in_float32() -> None:
    """Around a mean of 32, sums in bfloat16 would leave hardly a digit."""
    x = (32 + normal(2, 64, 5)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        h = layer_norm(x)
    assert h.dtype == torch.bfloat16
    torch.testing.assert_close(h, layer_norm(x.double()).bfloat16(), rtol=2**-7, atol=1e-3)


@pytest.mark.parametrize("bilinear", [False, True])
def test_residual_block(bilinear) -> None:
    torch.manual_seed(0)
    block = ResidualBlock(
        4, 6, 3, (True,), heads=0, bilinear=bilinear, dropout=0, checkpointing=False
    ).double()
    x, c = normal(2, 4, 8), normal(2, 6, seed=2)
    h = block.first(layer_norm(x + block.project(c)[:, :, None]))
    h = h[:, :2] * h[:, 2:] if bilinear else torch.nn.functional.silu(h)
    torch.testing.assert_close(block(x, c), x + block.second(h))


def test_attention() -> None:
    """Against torch's own multi-head attention."""
    torch.manual_seed(0)
    mine = Attention(8, 2).double()
    torchs = nn.MultiheadAttention(8, 2, batch_first=True).double()
    torchs.in_proj_weight.data, torchs.in_proj_bias.data = mine.qkv.weight, mine.qkv.bias
    torchs.out_proj.weight.data, torchs.out_proj.bias.data = mine.out.weight, mine.out.bias
    x = normal(2, 8, 3, 4)
    h = layer_norm(x).flatten(2).mT
    expected = x + torchs(h, h, h, need_weights=False)[0].mT.reshape(x.shape)
    torch.testing.assert_close(mine(x), expected)


@pytest.mark.parametrize("n", range(1, 70))
def test_coming_back_from_half_the_size(n) -> None:
    """Halving takes places 0, 2, ... of any length; each goes to itself and the next one."""
    half = torch.arange((n + 1) // 2, dtype=torch.float32)
    back = interpolate(half[None, None], size=(n,), mode="nearest")[0, 0]
    assert torch.equal(back, torch.arange(n) // 2)


# --- symmetries ---

WINDOWS = [
    ({}, WindowShape(window=3, variables=2, grid=(16,), context=1)),
    ({}, WindowShape(window=3, variables=2, grid=(8, 12), context=1)),
    ({}, WindowShape(window=2, variables=1, grid=(8, 8, 8))),
    ({"time": "axis"}, WindowShape(window=5, variables=2, grid=(8, 12), context=1)),
    ({"attention": 2}, WindowShape(window=3, variables=2, grid=(8, 12), context=1)),
    ({"kernel_size": 5}, WindowShape(window=2, variables=1, grid=(16,))),
]


def shifted(window: WindowShape, options, shift: int, axis: int) -> float:
    """By how much a shift of the input and that of the output differ."""
    made = network(window, **options)
    context = (normal(window.context, *window.grid, seed=2),) if window.context else ()
    x, t = normal(2, *window.shape), torch.tensor([0.2, 0.8]).double()
    with torch.no_grad():
        there = made(x, t, *context).roll(shift, axis)
        here = made(x.roll(shift, axis), t, *(c.roll(shift, axis) for c in context))
    return float((there - here).abs().max())


@pytest.mark.parametrize(("options", "window"), WINDOWS)
def test_a_shift_of_the_periodic_grid_shifts_the_output(options, window) -> None:
    """By multiples of what the coarsest grid is coarser, 4; others fall between its points."""
    for axis in range(-len(window.grid), 0):
        assert shifted(window, options, 4, axis) < 1e-10
        assert shifted(window, options, -8, axis) < 1e-10
        assert shifted(window, options, 1, axis) > 1e-3


def test_one_level_takes_any_shift() -> None:
    window = WindowShape(window=3, variables=2, grid=(7, 9), context=1)
    assert shifted(window, {"channels": (4,), "blocks": (2,)}, 1, -1) < 1e-10


def test_zeros_at_the_border_break_the_symmetry() -> None:
    window = WindowShape(window=3, variables=2, grid=(8, 12), context=1)
    assert shifted(window, {"padding": "zeros"}, 4, -1) > 1e-3


# --- other ways to run it ---

FLOW = WindowShape(window=3, variables=2, grid=(8, 8), context=1)


def test_autocast_is_close_to_float32() -> None:
    """Outputs within 2 %, the gradient in the same direction."""
    made = network(FLOW, channels=(16, 32), blocks=(2, 2), attention=1).float()
    x, context = normal(4, *FLOW.shape).float(), normal(1, 8, 8).float()
    t = torch.linspace(0, 1, 4)
    outputs, gradients = [], []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs.append(made(x, t, context))
        gradient = torch.autograd.grad(outputs[-1].square().sum(), list(made.parameters()))
        gradients.append(torch.cat([g.flatten() for g in gradient]))
    exact, rough = (out.detach() for out in outputs)
    assert rough.dtype == torch.float32
    assert 0 < float((rough - exact).norm() / exact.norm()) < 0.02
    assert torch.cosine_similarity(*gradients, dim=0) > 0.995


def _compiled(backend: str, **options) -> None:
    made = network(FLOW, channels=(4, 4), blocks=(1, 1), attention=1, **options)
    arguments = (normal(2, *FLOW.shape), torch.tensor([0.2, 0.8]).double(), normal(1, 8, 8))
    expected = made(*arguments)
    torch.compiler.reset()
    # fullgraph: an error where the graph breaks.
    out = torch.compile(made, backend=backend, fullgraph=True)(*arguments)
    torch.testing.assert_close(out, expected)
    parameters = list(made.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(out.square().sum(), parameters),
        torch.autograd.grad(expected.square().sum(), parameters),
    )


def test_it_is_one_graph() -> None:
    _compiled("eager")


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled(checkpointing) -> None:
    _compiled("inductor", checkpointing=checkpointing)
