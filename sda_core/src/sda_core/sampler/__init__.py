"""Samplers: a denoiser and noise in, samples out."""

from sda_core.sampler.base import Sampler
from sda_core.sampler.ddim import DDIM
from sda_core.sampler.ddpm import DDPM
from sda_core.sampler.predictor_corrector import PredictorCorrector

__all__ = ["DDIM", "DDPM", "PredictorCorrector", "Sampler"]
