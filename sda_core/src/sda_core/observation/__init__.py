"""Observation operators with their noise: y = A(x) + noise, in physical units."""

from sda_core.observation.base import Observation, ObservationModel, Operator
from sda_core.observation.compose import Compose
from sda_core.observation.concatenate import Concatenate
from sda_core.observation.function import Function
from sda_core.observation.index import Index
from sda_core.observation.linear import Linear
from sda_core.observation.mask import Mask
from sda_core.observation.select import Select

__all__ = [
    "Compose",
    "Concatenate",
    "Function",
    "Index",
    "Linear",
    "Mask",
    "Observation",
    "ObservationModel",
    "Operator",
    "Select",
]
