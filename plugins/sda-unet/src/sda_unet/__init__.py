"""U-Net over the grid as a score kernel."""

__version__ = "0.1.0"
