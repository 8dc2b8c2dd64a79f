r"""Pseudoinverse-guided diffusion.

References:
    - Song, Vahdat, Mardani & Kautz, "Pseudoinverse-Guided Diffusion Models for Inverse Problems",
      2023, https://openreview.net/forum?id=9_gsMA8MRKQ, eq. 7 and 8
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from sda_core.config import at_least, component, option
from sda_core.guidance import Likelihood, LikelihoodGuidance
from sda_dps.linearized import Linearized
from sda_dps.solvers import conjugate_gradients


@component
class PiGDM(LikelihoodGuidance):
    r"""p(y | x_t) = N(y; A(x0), std^2 + r^2 A A^T), r^2 = sigma^2 / (alpha^2 + sigma^2).

    r^2 is the variance of x_0 given x_t for a prior of independent entries with unit variance, for
    which the result is exact. The system is solved by conjugate gradients with products of A
    alone, and one backward pass through the network carries the solution to x_t. With ``detach``
    there is none: dx0/dx_t is that of the same prior, alpha / (alpha^2 + sigma^2).
    """

    exact_for_gaussian: ClassVar[bool] = False

    iterations: int = option(
        default=32, check=at_least(1), help="conjugate-gradient iterations at most"
    )
    detach: bool = option(default=False, help="take no gradient through the network")

    def likelihood_score(
        self,
        x_t: Tensor,
        denoise: Callable[[Tensor], Tensor],
        likelihood: Likelihood,
        alpha: Tensor,
        sigma: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Estimate grad log p(y | x_t)."""
        with torch.set_grad_enabled(not self.detach):
            x_t.requires_grad_(not self.detach)
            x0 = denoise(x_t)
        slope = alpha / (alpha**2 + sigma**2)
        variance = sigma**2 / (alpha**2 + sigma**2)
        A = Linearized(likelihood, x0, variance)

        def product(w: Tensor) -> tuple[Tensor, Tensor]:
            u = A.pull(w)
            return A.push(variance * u), u

        cotangent, _, _ = A.solve(lambda z: conjugate_gradients(product, z, self.iterations))
        if self.detach:
            return x0, slope * cotangent
        (score,) = torch.autograd.grad(x0, x_t, cotangent)
        return x0, score
