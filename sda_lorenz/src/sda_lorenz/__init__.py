"""Lorenz systems and other small dynamical systems."""

__version__ = "0.1.0"
