"""Assimilation methods, and the problem that all of them solve."""

from sda_core.method.base import Method, PriorModel, Problem, Toolbox
from sda_core.method.interpolation import Interpolation
from sda_core.method.memory_plan import MemoryPlan, plan_memory
from sda_core.method.particle_filter import ParticleFilter
from sda_core.method.peak_memory import peak_bytes
from sda_core.method.sda import SDA, sample_members

__all__ = [
    "SDA",
    "Interpolation",
    "MemoryPlan",
    "Method",
    "ParticleFilter",
    "PriorModel",
    "Problem",
    "Toolbox",
    "peak_bytes",
    "plan_memory",
    "sample_members",
]
