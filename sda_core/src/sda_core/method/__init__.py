"""Assimilation methods, and the problem that all of them solve."""

from sda_core.method.assimilator import OnlineAssimilator, WindowPosterior
from sda_core.method.base import Method, PriorModel, Problem, Toolbox
from sda_core.method.ensemble import Ensemble, Progress
from sda_core.method.forecasting import forecast
from sda_core.method.interpolation import Interpolation
from sda_core.method.memory_plan import MemoryPlan, plan_memory
from sda_core.method.particle_filter import ParticleFilter
from sda_core.method.peak_memory import peak_bytes
from sda_core.method.sampling import sample_members
from sda_core.method.sda import SDA, Guided, GuidedMethod
from sda_core.method.tuning import tuned

__all__ = [
    "SDA",
    "Ensemble",
    "Guided",
    "GuidedMethod",
    "Interpolation",
    "MemoryPlan",
    "Method",
    "OnlineAssimilator",
    "ParticleFilter",
    "PriorModel",
    "Problem",
    "Progress",
    "Toolbox",
    "WindowPosterior",
    "forecast",
    "peak_bytes",
    "plan_memory",
    "sample_members",
    "tuned",
]
