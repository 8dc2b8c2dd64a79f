"""Guidance methods for score-based data assimilation."""

__version__ = "0.1.0"
