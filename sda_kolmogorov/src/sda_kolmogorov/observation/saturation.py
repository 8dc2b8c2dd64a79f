"""Observe the vorticity through an instrument that saturates.

References:
    - Rozet & Louppe, "Score-based Data Assimilation", 2023, https://arxiv.org/abs/2306.10574
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from sda_core.config import component
from sda_core.system import Variable
from sda_kolmogorov import physics
from sda_kolmogorov.observation.base import FlowObservation


@component
class Saturation(FlowObservation):
    """Saturating vorticity w / (1 + abs(w)), within (-1, 1): -> (..., T, 1, n, m)."""

    observed: ClassVar[Variable] = Variable("saturation")

    def field(self, x: Tensor) -> Tensor:
        """The saturating vorticity."""
        w = physics.vorticity(x)
        return w / (1 + w.abs())
