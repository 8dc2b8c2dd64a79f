"""Residual MLP score kernel."""

__version__ = "0.1.0"
