"""Observation operators on the velocity of a flow in two dimensions."""

from sda_kolmogorov.observation.base import FlowObservation
from sda_kolmogorov.observation.saturation import Saturation
from sda_kolmogorov.observation.speed import Speed
from sda_kolmogorov.observation.vorticity import Vorticity

__all__ = ["FlowObservation", "Saturation", "Speed", "Vorticity"]
