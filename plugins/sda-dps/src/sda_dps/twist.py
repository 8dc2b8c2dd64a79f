r"""Twisting functions: what p(y | x_t) is taken for while noise is still there.

With x0 = E[x_0 | x_t] the Gaussian approximation is

    psi_t(x_t) = N(y; A(x0), R + C_t),    C_t = E[(A(x_0) - A(x0)) (A(x_0) - A(x0))^T],

R the variance of the observation's noise. C_t is the mean, over the prior, of the covariance of
A(x_0) given x_t. It is measured on K samples of the prior, from x_t and x_0 of the same ancestral
path: so it needs no gradient, follows any operator, and has the errors of a trained network in it.
For a Gaussian prior and a linear operator it is the covariance of A(x_0) given x_t, and psi_t
exact, but for its being an estimate. The estimate is E^T E / K with errors E (K, n), shrunk towards
its diagonal by n / (n + K).

References:
    - Wu et al., "Practical and Asymptotically Exact Conditional Sampling in Diffusion Models",
      2023, https://arxiv.org/abs/2306.17775, section 3.1 (a variance in place of C_t)
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal

from sda_core.guidance import Likelihood


@runtime_checkable
class GivesLogLikelihood(Protocol):
    """A guidance with its own estimate of log p(y | x_t)."""

    def log_likelihood(
        self, x0: Tensor, likelihood: Likelihood, alpha: Tensor, sigma: Tensor
    ) -> Tensor:
        r"""log psi_t(x_t), up to a constant that may depend on t.

        Args:
            x0: E[x_0 | x_t], (B, L, C, \*S).
            likelihood: p(y | x_0).
            alpha: Signal scale, ().
            sigma: Noise scale, ().

        Returns:
            (B,).
        """
        ...


def log_twist(likelihood: Likelihood, x0: Tensor, errors: Tensor) -> Tensor:
    r"""log psi_t(x_t).

    Args:
        likelihood: p(y | x_0).
        x0: E[x_0 | x_t], (B, L, C, \*S).
        errors: A(x_0) - A(x0) of samples of the prior at the same noise level, (K, n), float64.

    Returns:
        (B,), float64.
    """
    K, n = errors.shape
    shrinkage = n / (n + K)
    spread = errors.square().mean(0)
    rows = x0[:1] if likelihood.noise.gaussian else x0  # then one variance is that of all
    noise = likelihood.variance(rows, spread.to(x0).expand(len(rows), n)).double()
    variance = noise + shrinkage * spread
    # E^T E = V S^2 V^T, with no more columns than entries.
    _, S, V = torch.linalg.svd(errors, full_matrices=False)
    factor = ((1 - shrinkage) / K) ** 0.5 * V.T * S
    centre = torch.zeros_like(variance)
    normal = LowRankMultivariateNormal(centre, factor, variance, validate_args=False)
    log_p: Tensor = normal.log_prob(likelihood.residual(x0).double())
    return log_p
