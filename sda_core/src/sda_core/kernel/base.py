r"""Score kernels: networks on windows.

A kernel maps a window of noised states and the diffusion time to an array of the window's shape.
What that output means (noise, clean state, ...) is the parameterization's business: see
:mod:`sda_core.denoiser`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import attrs
from torch import nn


@attrs.frozen(kw_only=True)
class WindowShape:
    r"""Shape (W, C, \*S) of the windows that a kernel is built for.

    Attributes:
        window: Number W of states.
        variables: Number C of variables.
        grid: Shape S of the grid.
        context: Number K of context channels: known static fields, such as a forcing.
    """

    window: int
    variables: int
    grid: tuple[int, ...] = ()
    context: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        r"""(W, C, \*S)."""
        return (self.window, self.variables, *self.grid)

    @property
    def numel(self) -> int:
        """Number of values in a window."""
        n = self.window * self.variables
        for s in self.grid:
            n *= s
        return n


class Kernel(ABC):
    """Configuration of a network on windows.

    Class attributes:
        takes_context: Whether the network can be given context channels.
    """

    sda_kind: ClassVar[str] = "kernel"
    takes_context: ClassVar[bool] = False

    @abstractmethod
    def build(self, window: WindowShape) -> nn.Module:
        r"""Make the network, with random weights from torch's current seed.

        Args:
            window: Shape of the windows.

        Returns:
            A module called as ``module(x, t)`` with x: (B, W, C, \*S) and t: (B,) in [0, 1], that
            returns (B, W, C, \*S). With ``window.context`` > 0 (only where ``takes_context``) it
            is called as ``module(x, t, context)``, context: (K, \*S).

        Raises:
            ShapeError: The kernel cannot work on windows of this shape; says which it can.
        """
