"""Assimilation methods, and the problem that all of them solve."""

from sda_core.io.peak_memory import peak_bytes
from sda_core.method.base import Execution, Method, PriorModel, Problem
from sda_core.method.block_smc import BlockModel, BlockSMC
from sda_core.method.ensemble import Ensemble, Progress
from sda_core.method.forecasting import forecast
from sda_core.method.interpolation import Interpolation
from sda_core.method.memory_plan import MemoryPlan, plan_memory
from sda_core.method.online import OnlineAssimilator, WindowPosterior
from sda_core.method.particle_filter import ParticleFilter
from sda_core.method.sampling import EnsembleSampler
from sda_core.method.sda import SDA, GuidedMethod, Posterior
from sda_core.method.tuning import tune_strength
from sda_core.method.twin import twin_experiment

__all__ = [
    "SDA",
    "BlockModel",
    "BlockSMC",
    "Ensemble",
    "EnsembleSampler",
    "Execution",
    "GuidedMethod",
    "Interpolation",
    "MemoryPlan",
    "Method",
    "OnlineAssimilator",
    "ParticleFilter",
    "Posterior",
    "PriorModel",
    "Problem",
    "Progress",
    "WindowPosterior",
    "forecast",
    "peak_bytes",
    "plan_memory",
    "tune_strength",
    "twin_experiment",
]
