"""The U-Net: configuration, size, shapes, what each option does. The kit does the rest."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from sda_core.config import structure
from sda_core.errors import ConfigError, ShapeError
from sda_core.kernel import Kernel, WindowShape
from sda_core.testing import check_kernel
from sda_unet.blocks import Convolution
from sda_unet.unet import UNet

SMALL = {"channels": (4, 8, 8), "blocks": (1, 1, 1), "embedding": 8}
FLOW = WindowShape(window=3, variables=2, grid=(8, 12), context=1)


def unet(**options) -> UNet:
    return UNet(**{**SMALL, **options})


def network(kernel: UNet, window: WindowShape, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return kernel.build(window).double()


def inputs(window: WindowShape, n: int = 2) -> tuple[Tensor, ...]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        x, t = torch.randn(n, *window.shape), torch.rand(n)
        context = [torch.randn(window.context, *window.grid)] if window.context else []
    return tuple(v.double() for v in (x, t, *context))


def number_of_parameters(kernel: UNet, window: WindowShape) -> int:
    return sum(p.numel() for p in kernel.build(window).parameters())


def by_hand(axes, inputs, outputs, channels, blocks, embedding) -> int:
    def convolution(before, after):
        return after * (before * 3**axes + 1)

    def block(c):
        return c * (embedding + 1) + 2 * convolution(c, c)

    total = 33 * 256 + 257 * embedding  # the time embedding
    total += convolution(inputs, channels[0]) + convolution(channels[0], outputs)
    total += sum(2 * n * block(c) for n, c in zip(blocks, channels, strict=True))
    for c, d in itertools.pairwise(channels):
        total += convolution(c, d) + convolution(d, c)
    return total


# --- size ---


def test_the_papers_network_for_kolmogorov_flow() -> None:
    window = WindowShape(window=5, variables=2, grid=(64, 64), context=1)
    expected = by_hand(2, 11, 10, (96, 192, 384), (3, 3, 3), 64)
    assert number_of_parameters(UNet(), window) == expected == 22_874_922


def test_the_papers_global_network_for_lorenz() -> None:
    table = {"name": "unet", "channels": [64], "blocks": [3], "embedding": 32}
    kernel = structure(Kernel, table)
    window = WindowShape(window=32, variables=3)
    assert number_of_parameters(kernel, window) == by_hand(1, 3, 3, (64,), (3,), 32)
    check_kernel(kernel, window)


def test_over_time_and_grid() -> None:
    window = WindowShape(window=5, variables=2, grid=(8, 8), context=1)
    expected = by_hand(3, 3, 2, SMALL["channels"], SMALL["blocks"], SMALL["embedding"])
    assert number_of_parameters(unet(time="axis"), window) == expected


# --- shapes, devices, promises ---

GRIDS = [(), (8,), (8, 12), (4, 8, 4)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_promises(grid) -> None:
    """Time as channels, or over time where there is no grid."""
    check_kernel(unet(), WindowShape(window=3, variables=2, grid=grid, context=1))


@pytest.mark.parametrize("grid", GRIDS[1:3], ids=str)
def test_promises_over_time(grid) -> None:
    check_kernel(unet(time="axis"), WindowShape(window=3, variables=2, grid=grid, context=2))


@pytest.mark.parametrize(
    "options",
    [{"attention": 2}, {"activation": "bilinear"}, {"dropout": 0.3}, {"checkpointing": True}],
)
def test_promises_with_options(options) -> None:
    check_kernel(unet(**options), FLOW)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 33])
def test_any_length_over_time(length) -> None:
    x = torch.randn(2, length, 3)
    assert unet().build(WindowShape(window=length, variables=3))(x, torch.rand(2)).shape == x.shape


def test_any_grid_that_is_not_periodic() -> None:
    window = WindowShape(window=2, variables=1, grid=(5, 7))
    x = torch.randn(2, *window.shape)
    assert unet(padding="zeros").build(window)(x, torch.rand(2)).shape == x.shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    made = network(unet(attention=1, time="axis"), FLOW)
    expected = made(*inputs(FLOW))
    out = made.cuda()(*(v.cuda() for v in inputs(FLOW)))
    assert out.device.type == "cuda"
    torch.testing.assert_close(out.cpu(), expected)


# --- options ---


def test_dropout_is_off_in_evaluation() -> None:
    plain, dropping = network(unet(), FLOW).eval(), network(unet(dropout=0.5), FLOW)
    assert not torch.equal(dropping(*inputs(FLOW)), plain(*inputs(FLOW)))
    assert torch.equal(dropping.eval()(*inputs(FLOW)), plain(*inputs(FLOW)))


def test_padding_matters_at_the_border_only() -> None:
    """With one level, values further inside than all kernels together do not see it."""
    window = WindowShape(window=1, variables=1, grid=(24,))
    one = {"channels": (4,), "blocks": (1,)}
    circular, zeros = (network(unet(padding=p, **one), window) for p in ("circular", "zeros"))
    x, t = inputs(window)
    difference = (circular(x, t) - zeros(x, t)).abs().amax((0, 1, 2))
    reach = 6  # kernels of 3: head, 2 x 2 in blocks, tail
    assert difference[reach:-reach].max() < 1e-12
    assert difference[0] > 1e-3
    assert difference[-1] > 1e-3


def test_attention_sees_the_whole_grid() -> None:
    """Without it, one level of small kernels does not."""
    window = WindowShape(window=1, variables=1, grid=(24,))
    for attention in (0, 1):
        made = network(unet(channels=(4,), blocks=(1,), attention=attention), window)
        x, t = inputs(window, n=1)
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(made(x, t)[..., 0].sum(), x)
        assert bool((gradient != 0).all()) == bool(attention)


def test_attention_is_at_the_coarsest_levels() -> None:
    level, found = unet(attention=2).build(FLOW).level, []
    while level is not None:
        found += [type(b.attention).__name__ for b in (*level.descent, *level.ascent)]
        level = level.below
    assert found == ["Identity"] * 2 + ["Attention"] * 4


@pytest.mark.parametrize(
    ("options", "window", "memory_format"),
    [
        ({}, FLOW, torch.channels_last),
        ({"time": "axis", "attention": 1}, FLOW, torch.channels_last_3d),
    ],
)
def test_channels_last(options, window, memory_format) -> None:
    """The same values, in another order in memory from the first layer to the last."""
    first = network(unet(channels_last=False, **options), window)
    last = network(unet(channels_last=True, **options), window)
    torch.testing.assert_close(last(*inputs(window)), first(*inputs(window)))
    orders = []
    for module in last.modules():
        if isinstance(module, Convolution):
            module.register_forward_hook(
                lambda _, __, out: orders.append(out.is_contiguous(memory_format=memory_format))
            )
    last.float()(*(v.float() for v in inputs(window)))  # torch has no such order for 3-D in float64
    assert len(orders) == 18
    assert all(orders)
    assert all(p.is_contiguous() for p in last.parameters())


def test_checkpointing() -> None:
    """The same gradients, dropout included, from activations that are computed twice."""
    gradients, calls = [], []
    for checkpointing in (False, True):
        made = network(unet(checkpointing=checkpointing, dropout=0.2, attention=1), FLOW)
        count = []
        made.level.ascent[0].first.register_forward_hook(lambda *_, count=count: count.append(1))
        torch.manual_seed(0)
        loss = made(*inputs(FLOW)).square().sum()
        gradients.append(torch.autograd.grad(loss, list(made.parameters())))
        with torch.no_grad():
            made(*inputs(FLOW))
        calls.append(len(count))
    torch.testing.assert_close(gradients[1], gradients[0])
    assert calls == [2, 3]


# --- errors ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"channels": (4, 8)},
            r"channels = \[4, 8\] has 2 entries and blocks = \[1, 1, 1\] has 3: give one of each",
        ),
        ({"channels": (), "blocks": ()}, "for one level or more"),
        ({"channels": (4, 8, 1)}, "channels: got .* allowed: 2 or greater"),
        ({"kernel_size": 4}, "kernel_size: got 4, allowed: an odd number, 1 or greater"),
        (
            {"activation": "bilinear", "channels": (4, 7, 8)},
            r"one half of the channels .* channels = \[4, 7, 8\] are not all even",
        ),
        ({"attention": 4}, "attention = 4, but there are 3 levels .*: give 0 to 3"),
        (
            {"attention": 1, "heads": 3},
            r"heads = 3 must divide the channels .* does not divide \[8\]",
        ),
    ],
)
def test_configuration_errors(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        unet(**options)


@pytest.mark.parametrize(
    ("options", "grid", "message"),
    [
        ({"time": "channels"}, (), "these states have none: leave time out, or set it to 'axis'"),
        ({}, (4, 4, 4, 4), r"at most 3 axes, and the grid \(4, 4, 4, 4\) has 4"),
        (
            {"time": "axis"},
            (4, 4, 4),
            r"at most 3 axes, and time with the grid \(4, 4, 4\) has 4: set time = 'channels'",
        ),
        ({}, (32, 30), r"an axis of 30 points .* a multiple of 4, 4 or more, such as 28 or 32\."),
        ({}, (2,), r"an axis of 2 points .* such as 4\."),
        ({"kernel_size": 9}, (12,), r"a multiple of 4, 16 or more, such as 16\."),
    ],
)
def test_shape_errors(options, grid, message) -> None:
    with pytest.raises(ShapeError, match=message):
        unet(**options).build(WindowShape(window=3, variables=1, grid=grid))


@pytest.mark.parametrize(("kernel_size", "n"), [(3, 28), (3, 32), (9, 16), (1, 4)])
def test_sizes_that_errors_name_work(kernel_size, n) -> None:
    window = WindowShape(window=1, variables=1, grid=(n,))
    out = unet(kernel_size=kernel_size).build(window)(torch.randn(1, 1, 1, n), torch.rand(1))
    assert math.prod(out.shape) == n
