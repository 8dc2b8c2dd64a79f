"""Guidance: the contract, and what methods share."""

from sda_core.guidance.base import (
    Guidance,
    GuidedDenoiser,
    Likelihood,
    LikelihoodGuidance,
)
from sda_core.guidance.strength import Strength, allow_auto, require_number

__all__ = [
    "Guidance",
    "GuidedDenoiser",
    "Likelihood",
    "LikelihoodGuidance",
    "Strength",
    "allow_auto",
    "require_number",
]
