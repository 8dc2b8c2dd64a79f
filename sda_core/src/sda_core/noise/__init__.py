"""Noise: error models p(y | A(x)) of observations."""

from sda_core.noise.base import IndependentNoise, MixtureNoise, Noise, NoiseModel, per_entry
from sda_core.noise.correlated import Correlated, CorrelatedNoise
from sda_core.noise.gaussian import Gaussian, GaussianNoise
from sda_core.noise.joint import JointNoise
from sda_core.noise.laplace import Laplace, LaplaceNoise
from sda_core.noise.poisson import Poisson, PoissonNoise
from sda_core.noise.student_t import StudentT, StudentTNoise

__all__ = [
    "Correlated",
    "CorrelatedNoise",
    "Gaussian",
    "GaussianNoise",
    "IndependentNoise",
    "JointNoise",
    "Laplace",
    "LaplaceNoise",
    "MixtureNoise",
    "Noise",
    "NoiseModel",
    "Poisson",
    "PoissonNoise",
    "StudentT",
    "StudentTNoise",
    "per_entry",
]
