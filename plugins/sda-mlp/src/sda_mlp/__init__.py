"""Residual MLP score kernel."""

from typing import TYPE_CHECKING

from sda_core.plugins import exports

if TYPE_CHECKING:
    from sda_mlp.mlp import MLP as MLP

__version__ = "0.1.0"

__getattr__, __dir__ = exports(__name__)
