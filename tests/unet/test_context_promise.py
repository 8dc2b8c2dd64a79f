"""The conformance kit finds kernels that do not keep what is promised of context."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import nn

from sda_core.kernel import Kernel, WindowShape
from sda_core.testing import check_kernel

WINDOW = WindowShape(window=2, variables=1, grid=(4,), context=3)


class Network(nn.Module):
    def __init__(self, window: WindowShape, reads: int | None, leak: float) -> None:
        super().__init__()
        self.reads, self.leak = reads, leak
        self.linear = nn.Linear(window.numel + 1, window.numel)
        if window.context:
            self.fields = nn.Linear(window.grid[0] if window.grid else 1, window.numel)

    def forward(self, x, t, context=None):
        out = self.linear(torch.cat((x.flatten(1), t[:, None]), 1))
        if context is not None:
            out = out + self.fields(context.reshape(len(context), -1)[: self.reads]).sum(0)
            out = out + self.leak * context.mean() * x.mean(0).flatten()
        return out.tanh().reshape(x.shape)


@attrs.frozen
class Net(Kernel):
    takes_context = True
    reads: int | None = None
    leak: float = 0.0

    def build(self, window: WindowShape) -> nn.Module:
        return Network(window, self.reads, self.leak)


class NoContext(Net):
    takes_context = False


def test_good_kernels_pass() -> None:
    check_kernel(Net())
    check_kernel(Net(), WINDOW)
    check_kernel(NoContext(), attrs.evolve(WINDOW, context=0))


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (Net(reads=2), r"channels \[2\] of the context have no part"),
        (Net(reads=0), r"channels \[0, 1, 2\] of the context have no part"),
        (Net(leak=0.1), "row 1 alone"),
        (NoContext(), "takes_context is False, so check it without the context of 3 channels"),
    ],
)
def test_a_broken_promise(kernel, message) -> None:
    with pytest.raises(AssertionError, match=message):
        check_kernel(kernel, WINDOW)


def test_context_is_checked_with_windows_that_have_none() -> None:
    with pytest.raises(AssertionError, match=r"channels \[1\] of the context have no part"):
        check_kernel(Net(reads=1))
