"""Guidance: the contract, and what methods share."""

from sda_core.guidance.base import (
    GaussianLikelihood,
    Guidance,
    GuidedDenoiser,
    LikelihoodGuidance,
)

__all__ = ["GaussianLikelihood", "Guidance", "GuidedDenoiser", "LikelihoodGuidance"]
