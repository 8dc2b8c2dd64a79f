"""Sweeps: many trials of one experiment, each with other settings."""

from sda_core.sweep.base import Sweep

__all__ = ["Sweep"]
