"""Observe the speed of the flow."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from sda_core.config import component
from sda_core.system import Variable
from sda_kolmogorov.observation.base import FlowObservation


@component
class Speed(FlowObservation):
    """Speed sqrt(u^2 + v^2), of zero derivative where the flow is at rest: -> (..., T, 1, n, m)."""

    observed: ClassVar[Variable] = Variable("speed")

    def field(self, x: Tensor) -> Tensor:
        """The speed."""
        # The derivative of the root at 0 is infinite, and times that of the square not a number.
        return (x.square().sum(-3) + torch.finfo(x.dtype).tiny).sqrt()
