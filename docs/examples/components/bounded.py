"""A guidance that knows how uncertain a standardized state can be at most.

References:
    - Song et al., "Pseudoinverse-Guided Diffusion Models for Inverse Problems", 2023,
      https://openreview.net/forum?id=9_gsMA8MRKQ (its choice of the variance).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sda_core import component, option
from sda_core.config import positive
from sda_core.guidance import Likelihood, LikelihoodGuidance


@component
class Bounded(LikelihoodGuidance):
    r"""p(y | x_t) = N(y; A(x0), std^2 + scale^2 sigma^2 / (alpha^2 + sigma^2)).

    The second term is the variance of x_0 given x_t if x_0 ~ N(0, I), times ``scale^2``.
    """

    scale: float = option(default=1.0, check=positive, help="units of y per model-space unit")

    def likelihood_score(
        self,
        x_t: Tensor,
        denoise: Callable[[Tensor], Tensor],
        likelihood: Likelihood,
        alpha: Tensor,
        sigma: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Estimate grad log p(y | x_t)."""
        x_t.requires_grad_()
        x0 = denoise(x_t)
        spread = self.scale**2 * sigma**2 / (alpha**2 + sigma**2)
        variance = likelihood.variance(x0) + spread.reshape(-1, 1)
        log_p = -0.5 * (likelihood.residual(x0) ** 2 / variance).sum()
        (score,) = torch.autograd.grad(log_p, x_t)
        return x0, score
