"""What every kernel promises."""

from __future__ import annotations

import tempfile
from pathlib import Path

import attrs
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from sda_core.kernel import Kernel, WindowShape
from sda_core.testing.promises import generator, keep, require, require_close


def _network(kernel: Kernel, window: WindowShape, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network with weights that are all in play, as after some training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = kernel.build(window)
    # Layers that start at zero would hide what is behind them.
    random = generator(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.05)
    return network.to(dtype).eval()


def _inputs(
    window: WindowShape, n: int = 3, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ...]:
    """What the network is called with: windows, times, and context where there is some."""
    random = generator(1)
    x = torch.randn(n, *window.shape, generator=random, dtype=torch.float64)
    inputs: tuple[Tensor, ...] = (x, torch.linspace(0.1, 0.9, n, dtype=torch.float64))
    if window.context:
        shape = (window.context, *window.grid)
        inputs = (*inputs, torch.randn(shape, generator=random, dtype=torch.float64))
    return tuple(v.to(dtype) for v in inputs)


def _shape(kernel: Kernel, window: WindowShape) -> None:
    r"""(B, W, C, \*S) with t of shape (B,) gives (B, W, C, \*S), finite, in float32 and float64."""
    for dtype in (torch.float32, torch.float64):
        x, *others = _inputs(window, dtype=dtype)
        out = _network(kernel, window, dtype)(x, *others)
        require(
            out.shape == x.shape and out.dtype == dtype,
            f"{tuple(x.shape)}, {dtype} became {tuple(out.shape)}, {out.dtype}",
        )
        require(bool(out.isfinite().all()), "the output is not finite")


def _seed(kernel: Kernel, window: WindowShape) -> None:
    """Weights come from torch's current seed."""
    twins = []
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            twins.append(list(kernel.build(window).parameters()))
    a, b, other = twins
    require(a, "the network has no parameters")
    same = all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
    require(same, "two networks of one seed differ")
    same = all(torch.equal(p, q) for p, q in zip(a, other, strict=True))
    require(not same, "networks of two seeds are the same")


def _time(kernel: Kernel, window: WindowShape) -> None:
    """The output depends on the diffusion time, and on all of the window."""
    network = _network(kernel, window)
    x, t, *context = _inputs(window)
    same = torch.equal(network(x, t, *context), network(x, 1 - t, *context))
    require(not same, "it is the same at another time")
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(network(x, t, *context).square().sum(), x)
    require(bool((gradient.flatten(2) != 0).any(-1).all()), "some states of a window have no part")


def _context(kernel: Kernel, window: WindowShape) -> None:
    """The output depends on each context channel; a kernel that takes no context is given none."""
    if not kernel.takes_context:
        require(
            not window.context,
            f"takes_context is False, so check it without the context of {window.context} channels",
        )
        return
    window = attrs.evolve(window, context=window.context or 2)
    x, t, context = _inputs(window)
    network = _network(kernel, window)
    context.requires_grad_()
    loss = network(x, t, context).square().sum()
    (gradient,) = torch.autograd.grad(loss, context, materialize_grads=True)
    idle = [k for k, part in enumerate(gradient) if not bool(part.any())]
    require(not idle, f"channels {idle} of the context have no part")


def _gradients(kernel: Kernel, window: WindowShape) -> None:
    """The gradient of a loss reaches every parameter."""
    network = _network(kernel, window)
    network(*_inputs(window)).square().sum().backward()
    lost = [
        name
        for name, p in network.named_parameters()
        if p.grad is None or not bool(p.grad.isfinite().all()) or not bool(p.grad.any())
    ]
    require(not lost, f"it is missing, zero or not finite for {lost}")


def _rows(kernel: Kernel, window: WindowShape) -> None:
    """A row's result does not depend on the other rows of the batch, in training mode either."""
    network, (x, t, *context) = _network(kernel, window), _inputs(window)
    for training in (False, True):
        network.train(training)
        for module in network.modules():
            if isinstance(module, _DropoutNd):  # random, which is another matter
                module.eval()
        with torch.no_grad():
            together, alone = network(x, t, *context), network(x[1:2], t[1:2], *context)
        require_close(alone, together[1:2], "row 1 alone", rtol=1e-6, atol=1e-8)


def _state_dict(kernel: Kernel, window: WindowShape) -> None:
    """The weights survive a safetensors file, and with them the outputs."""
    network, twin = _network(kernel, window), kernel.build(window).double().eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)
        twin.load_state_dict(load_file(path))
    with torch.no_grad():
        same = torch.equal(network(*_inputs(window)), twin(*_inputs(window)))
    require(same, "a network with loaded weights gives other values")


PROMISES = (_context, _shape, _seed, _time, _gradients, _rows, _state_dict)

#: Checked where no window is given.
DEFAULT_WINDOW = WindowShape(window=5, variables=3)


def check_kernel(kernel: Kernel, *windows: WindowShape) -> None:
    """Check what every kernel promises.

    Args:
        kernel: The kernel.
        windows: Window shapes that it is made for, with context where they have some; a window of
            5 states of 3 variables if none.

    Raises:
        AssertionError: A promise is broken; says which, and how.
    """
    for window in windows or (DEFAULT_WINDOW,):
        keep(PROMISES, kernel, window)
