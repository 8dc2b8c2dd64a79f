"""Transformer over time as a score kernel."""

__version__ = "0.1.0"
