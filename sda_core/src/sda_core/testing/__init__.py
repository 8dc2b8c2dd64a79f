"""Conformance checks for every kind of component, and exact answers to test against.

Each check states what all components of a kind promise, and fails with an AssertionError that says
which promise is broken and how. See :mod:`sda_core.testing.component` for their use with pytest.
"""

from __future__ import annotations

from sda_core.testing.chain import (
    GaussianChain,
    GaussianModel,
    GaussianProblem,
    gaussian_problem,
    linear_gaussian_moments,
)
from sda_core.testing.cluster import check_cluster
from sda_core.testing.component import check_component, checks
from sda_core.testing.gaussian import (
    ExactGuidance,
    GaussianDenoiser,
    affine_map,
    gaussian_posterior,
)
from sda_core.testing.guidance import check_guidance
from sda_core.testing.kalman import Smoothed, rts_smoother
from sda_core.testing.kernel import check_kernel
from sda_core.testing.method import check_method, draw
from sda_core.testing.moments import Grade, affine_moments, grade, sampled_moments
from sda_core.testing.noise import check_noise
from sda_core.testing.observation import check_observation
from sda_core.testing.promises import Check
from sda_core.testing.sampler import check_sampler
from sda_core.testing.schedule import check_schedule
from sda_core.testing.sweep import check_sweep
from sda_core.testing.system import check_system
from sda_core.testing.tracker import check_tracker

__all__ = [
    "Check",
    "ExactGuidance",
    "GaussianChain",
    "GaussianDenoiser",
    "GaussianModel",
    "GaussianProblem",
    "Grade",
    "Smoothed",
    "affine_map",
    "affine_moments",
    "check_cluster",
    "check_component",
    "check_guidance",
    "check_kernel",
    "check_method",
    "check_noise",
    "check_observation",
    "check_sampler",
    "check_schedule",
    "check_sweep",
    "check_system",
    "check_tracker",
    "checks",
    "draw",
    "gaussian_posterior",
    "gaussian_problem",
    "grade",
    "linear_gaussian_moments",
    "rts_smoother",
    "sampled_moments",
]
