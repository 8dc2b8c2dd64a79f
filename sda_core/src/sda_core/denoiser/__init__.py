"""Denoisers: of windows, of trajectories composed from windows, and conversions between forms."""

from sda_core.denoiser.base import (
    Denoiser,
    eps_to_score,
    eps_to_x0,
    expand_time,
    score_to_x0,
    x0_to_eps,
)
from sda_core.denoiser.forecast import Conditional, ForecastDenoiser, PatternName
from sda_core.denoiser.function import FunctionDenoiser
from sda_core.denoiser.markov_blanket import (
    FoldName,
    MarkovBlanketDenoiser,
    fold_weights,
    window_starts,
)
from sda_core.denoiser.window import PARAMETERIZATIONS, ParameterizationName, WindowDenoiser

__all__ = [
    "PARAMETERIZATIONS",
    "Conditional",
    "Denoiser",
    "FoldName",
    "ForecastDenoiser",
    "FunctionDenoiser",
    "MarkovBlanketDenoiser",
    "ParameterizationName",
    "PatternName",
    "WindowDenoiser",
    "eps_to_score",
    "eps_to_x0",
    "expand_time",
    "fold_weights",
    "score_to_x0",
    "window_starts",
    "x0_to_eps",
]
