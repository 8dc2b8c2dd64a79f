"""Samplers: a denoiser and noise in, samples out."""

from sda_core.sampler.adams_bashforth import AdamsBashforth
from sda_core.sampler.base import Sampler, SamplerState
from sda_core.sampler.ddim import DDIM
from sda_core.sampler.ddpm import DDPM
from sda_core.sampler.dpm_solver import DPMSolver
from sda_core.sampler.edm import EDM
from sda_core.sampler.heun import Heun
from sda_core.sampler.multistep import Multistep
from sda_core.sampler.predictor_corrector import PredictorCorrector

__all__ = [
    "DDIM",
    "DDPM",
    "EDM",
    "AdamsBashforth",
    "DPMSolver",
    "Heun",
    "Multistep",
    "PredictorCorrector",
    "Sampler",
    "SamplerState",
]
