"""Ray clusters: sweeps, data generation and ensembles spread over many machines."""

from sda_core.plugins import exports

__version__ = "0.1.0"

__getattr__, __dir__ = exports(__name__)
