"""Observe the vorticity."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from sda_core.config import component
from sda_core.system import Variable
from sda_kolmogorov import physics
from sda_kolmogorov.observation.base import FlowObservation


@component
class Vorticity(FlowObservation):
    """Vorticity w = dv/dx - du/dy with spectral derivatives: -> (..., T, 1, n, m)."""

    observed: ClassVar[Variable] = Variable("vorticity")

    def field(self, x: Tensor) -> Tensor:
        """The vorticity."""
        return physics.vorticity(x)
