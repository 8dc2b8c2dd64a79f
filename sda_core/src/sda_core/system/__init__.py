"""Dynamical systems: the contract, and base classes for ODEs and SDEs of one's own."""

from sda_core.system.base import (
    HasContext,
    HasLogProb,
    HasRightHandSide,
    HasTrajectory,
    LinearGaussian,
    System,
)
from sda_core.system.integrators import ODESystem, SDESystem, rk4_step
from sda_core.system.simulate import simulate_block, trajectory
from sda_core.system.spec import Axis, SystemSpec, Variable

__all__ = [
    "Axis",
    "HasContext",
    "HasLogProb",
    "HasRightHandSide",
    "HasTrajectory",
    "LinearGaussian",
    "ODESystem",
    "SDESystem",
    "System",
    "SystemSpec",
    "Variable",
    "rk4_step",
    "simulate_block",
    "trajectory",
]
