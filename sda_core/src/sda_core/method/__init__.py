"""Assimilation methods, and the problem that all of them solve."""

from sda_core.method.base import Method, PriorModel, Problem, Toolbox
from sda_core.method.particle_filter import ParticleFilter
from sda_core.method.sda import SDA

__all__ = ["SDA", "Method", "ParticleFilter", "PriorModel", "Problem", "Toolbox"]
