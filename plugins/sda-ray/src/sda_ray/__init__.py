"""Ray clusters: sweeps, data generation and ensembles spread over many machines."""

__version__ = "0.1.0"
