"""Weights & Biases."""

from typing import TYPE_CHECKING

from sda_core.plugins import exports

if TYPE_CHECKING:
    from sda_wandb.weights_and_biases import WeightsAndBiases as WeightsAndBiases

__version__ = "0.1.0"

__getattr__, __dir__ = exports(__name__)
