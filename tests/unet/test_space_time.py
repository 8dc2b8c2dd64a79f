"""Time as an axis of the convolutions: what a state is inferred from, and what a window costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sda_core.kernel import WindowShape
from sda_core.testing import check_kernel
from sda_unet.unet import UNet

ONE = {"channels": (4,), "blocks": (1,), "embedding": 8}
#: Places on each side of one that it sees: head, two convolutions in each of two blocks, tail.
REACH = 6
THREE = {"channels": (4, 8, 8), "blocks": (1, 1, 1), "embedding": 8}


def network(window: WindowShape, **options) -> nn.Module:
    torch.manual_seed(0)
    return UNet(time="axis", **options).build(window).double().requires_grad_(False)


def windows(n: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, *shape, generator=generator, dtype=torch.float64)


T = torch.full((1,), 0.4, dtype=torch.float64)


@pytest.mark.parametrize("activation", ["silu", "bilinear"])
@pytest.mark.parametrize("grid", [(20,), (10, 8)])
def test_promises_in_windows_wider_than_5(grid, activation) -> None:
    window = WindowShape(window=9, variables=2, grid=grid, context=1)
    check_kernel(UNet(time="axis", **{**ONE, "activation": activation}), window)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_receptive_field(checkpointing) -> None:
    """A state sees REACH states before and after it, and as many places around the circle."""
    window = WindowShape(window=21, variables=1, grid=(20,))
    made = network(window, **ONE, checkpointing=checkpointing)
    x = windows(1, *window.shape).requires_grad_()
    (gradient,) = torch.autograd.grad(made(x, T)[0, 10, 0, 1], x)
    seen = gradient[0, :, 0] != 0
    time = (torch.arange(21) - 10).abs() <= REACH
    distance = (torch.arange(20) - 1).abs()
    place = torch.minimum(distance, 20 - distance) <= REACH
    assert torch.equal(seen, time[:, None] & place)


def test_levels_widen_the_receptive_field() -> None:
    window = WindowShape(window=65, variables=1, grid=(4,))
    x = windows(1, *window.shape).requires_grad_()
    (gradient,) = torch.autograd.grad(network(window, **THREE)(x, T)[0, 32].sum(), x)
    seen = (gradient[0, :, 0] != 0).any(-1).nonzero().flatten()
    assert int(seen[0]) < 32 - 3 * REACH
    assert int(seen[-1]) > 32 + 3 * REACH


def test_the_window_costs_no_weights() -> None:
    """And those of one window serve any other: inside, a cut gives what the whole gives."""
    wide, narrow = (WindowShape(window=w, variables=2, grid=(8,)) for w in (65, 33))
    whole, cut = network(wide, **ONE), network(narrow, **ONE)
    assert [p.shape for p in whole.parameters()] == [p.shape for p in cut.parameters()]
    cut.load_state_dict(whole.state_dict())
    x = windows(2, *wide.shape)
    t = torch.tensor([0.2, 0.8]).double()
    inside = slice(REACH, 33 - REACH)
    torch.testing.assert_close(
        cut(x[:, 7:40], t)[:, inside], whole(x, t)[:, 7:40][:, inside], rtol=1e-10, atol=1e-10
    )
    assert float((cut(x[:, 7:40], t) - whole(x, t)[:, 7:40]).abs().max()) > 1e-3


def test_states_as_channels_cost_weights() -> None:
    def size(time: str, window: int) -> int:
        kernel = UNet(time=time, **ONE)
        built = kernel.build(WindowShape(window=window, variables=2, grid=(8,)))
        return sum(p.numel() for p in built.parameters())

    assert size("axis", 5) == size("axis", 65)
    # 60 more states of 2 variables, into and out of 4 channels by kernels of 3, and a bias each.
    assert size("channels", 65) - size("channels", 5) == 120 * (2 * 4 * 3 + 1)


@pytest.mark.parametrize("shift", [1, -3])
@pytest.mark.parametrize("activation", ["silu", "bilinear"])
def test_a_shift_in_space_shifts_the_output(activation, shift) -> None:
    """With one level any shift; a shift in time does not, because time has ends."""
    window = WindowShape(window=9, variables=2, grid=(7,))
    made = network(window, **ONE, activation=activation)
    x = windows(1, *window.shape)
    torch.testing.assert_close(
        made(x.roll(shift, -1), T), made(x, T).roll(shift, -1), rtol=1e-10, atol=1e-10
    )
    assert float((made(x.roll(shift, 1), T) - made(x, T).roll(shift, 1)).abs().max()) > 1e-3
