"""Dynamical systems: the contract, and base classes for ODEs and SDEs of one's own."""

from sda_core.system.base import (
    Axis,
    HasContext,
    HasLogProb,
    HasRightHandSide,
    HasTrajectory,
    LinearGaussian,
    ODESystem,
    SDESystem,
    System,
    SystemSpec,
    Variable,
    rk4_step,
    simulate_block,
    trajectory,
)

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
