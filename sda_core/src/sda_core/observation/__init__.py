"""Observation operators with their noise: y = A(x) + noise, in physical units."""

from sda_core.observation.base import Observation, ObservationModel, Operator
from sda_core.observation.coarsen import Coarsen, block_means
from sda_core.observation.compose import Compose
from sda_core.observation.concatenate import Concatenate
from sda_core.observation.function import Function
from sda_core.observation.index import Index
from sda_core.observation.linear import Linear
from sda_core.observation.mask import Mask
from sda_core.observation.matched import MatchedObservations
from sda_core.observation.points import Points
from sda_core.observation.region import Region
from sda_core.observation.select import Select
from sda_core.observation.selection import Places, Selection
from sda_core.observation.sensors import Sensors
from sda_core.observation.stations import Stations
from sda_core.observation.table import ObservationTable

__all__ = [
    "Coarsen",
    "Compose",
    "Concatenate",
    "Function",
    "Index",
    "Linear",
    "Mask",
    "MatchedObservations",
    "Observation",
    "ObservationModel",
    "ObservationTable",
    "Operator",
    "Places",
    "Points",
    "Region",
    "Select",
    "Selection",
    "Sensors",
    "Stations",
    "block_means",
]
