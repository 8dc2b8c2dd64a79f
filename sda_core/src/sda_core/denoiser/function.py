"""A denoiser of one's own."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sda_core.denoiser.base import Denoiser
from sda_core.schedule.base import Schedule


class FunctionDenoiser(Denoiser):
    r"""E[x_0 | x_t] as a function computes it, so that samplers and guidance take it.

    Args:
        function: (x_t, t) -> E[x_0 | x_t], with x_t of shape (B, \*state) and t of shape () or
            (B,); a module's weights are those of the denoiser. It must be differentiable where
            guidance is to go through it.
        schedule: The noise schedule that x_t follows, x_t = alpha(t) x_0 + sigma(t) eps.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], schedule: Schedule) -> None:
        super().__init__(schedule)
        self.function = function

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t]."""
        return self.function(x_t, t)
