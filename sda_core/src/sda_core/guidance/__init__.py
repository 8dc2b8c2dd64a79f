"""Guidance: the contract, and what methods share."""

from sda_core.guidance.base import GaussianLikelihood, Guidance, GuidedDenoiser

__all__ = ["GaussianLikelihood", "Guidance", "GuidedDenoiser"]
