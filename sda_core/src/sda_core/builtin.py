"""The core's own components, which enter by the same door as everyone's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sda_core.plugins import Component, components, hookimpl

if TYPE_CHECKING:
    from sda_core.tracker import Value

sda_interface = 1

# Kind, which is also the folder; name; module and class in that folder; summary.
_COMPONENTS = {
    "schedule": {
        "vp": ("vp:VP", "Variance preserving: the original's lin, cos and exp"),
        "sub-vp": ("vp:SubVP", "Variance below that of VP"),
        "sub-sub-vp": ("vp:SubSubVP", "Variance below that of sub-VP"),
        "ve": ("ve:VE", "Variance exploding: noise is added, nothing shrinks"),
        "log-normal": ("log_normal:LogNormal", "As ve, with most training around one noise level"),
        "rectified-flow": ("rectified_flow:RectifiedFlow", "Straight line from data to noise"),
    },
    "sampler": {
        "predictor-corrector": (
            "predictor_corrector:PredictorCorrector",
            "The original's: exponential integrator with Langevin corrections",
        ),
        "ddim": ("ddim:DDIM", "Deterministic steps, or with a share of fresh noise"),
        "ddpm": ("ddpm:DDPM", "Ancestral steps"),
        "heun": ("heun:Heun", "Deterministic, of order two: two evaluations per step"),
        "edm": ("edm:EDM", "Heun's steps, with fresh noise before each"),
        "dpm-solver++": ("dpm_solver:DPMSolver", "Deterministic, of order two: DPM-Solver++ (2M)"),
        "adams-bashforth": (
            "adams_bashforth:AdamsBashforth",
            "Deterministic, of order two or three: exponential integrator of the noise",
        ),
    },
    "observation": {
        "select": ("select:Select", "Some variables at every n-th step and grid point"),
        "coarsen": ("coarsen:Coarsen", "Means over blocks of the grid"),
        "sensors": ("sensors:Sensors", "A fixed network of random grid points"),
        "stations": ("stations:Stations", "A fixed network of points between those of the grid"),
        "points": ("points:Points", "Interpolation to points in time and space, one by one"),
        "region": ("region:Region", "The grid points in a box, or outside of it"),
        "mask": ("mask:Mask", "The entries that a mask marks"),
        "index": ("index:Index", "An arbitrary set of entries"),
        "linear": ("linear:Linear", "A matrix times the state"),
        "function": ("function:Function", "A function of the user's own"),
        "compose": ("compose:Compose", "One operator after another"),
        "concatenate": ("concatenate:Concatenate", "Several observations side by side"),
    },
    "noise": {
        "gaussian": ("gaussian:Gaussian", "Independent Gaussian errors"),
        "correlated": (
            "correlated:Correlated",
            "Gaussian errors correlated in space, between times or by a matrix",
        ),
        "student-t": ("student_t:StudentT", "Independent errors with outliers"),
        "laplace": ("laplace:Laplace", "Independent errors with heavier tails than Gaussian ones"),
        "poisson": ("poisson:Poisson", "Counts, or multiples of them"),
    },
    "cluster": {"local": ("local:Local", "Processes of this machine")},
    "method": {
        "sda": ("sda:SDA", "Score-based data assimilation (Rozet & Louppe 2023)"),
        "block-smc": ("block_smc:BlockSMC", "Particles over blocks that a trained model forecasts"),
        "particle-filter": ("particle_filter:ParticleFilter", "Bootstrap particle filter"),
        "interpolation": (
            "interpolation:Interpolation",
            "Smoothing splines through the observations: a point estimate, without dynamics",
        ),
    },
}


@hookimpl
def sda_register_components() -> Iterable[Component]:
    """Give the core's components."""
    for kind, table in _COMPONENTS.items():
        yield from components(kind, f"sda_core.{kind}", table)


@hookimpl
def sda_diagnostics(run: Any, stage: str, context: Mapping[str, Any]) -> Mapping[str, Value]:
    """Give what every training reports."""
    if stage not in ("batch", "training-samples"):
        return {}
    from sda_core.evaluation import diagnostics  # with torch, which listing components needs not

    if stage == "batch":
        return diagnostics.batch_diagnostics(context["trainer"])
    return diagnostics.sample_diagnostics(run, context["model"], context["samples"])
