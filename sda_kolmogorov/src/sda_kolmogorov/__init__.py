"""Two-dimensional Kolmogorov flow."""

__version__ = "0.1.0"
