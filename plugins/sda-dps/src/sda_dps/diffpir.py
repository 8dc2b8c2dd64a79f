r"""Denoising diffusion for plug-and-play image restoration, as guidance.

References:
    - Zhu et al., "Denoising Diffusion Models for Plug-and-Play Image Restoration", 2023,
      https://arxiv.org/abs/2305.08995, eq. 12b and 13
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from sda_core.config import at_least, component, option, positive
from sda_core.guidance import GaussianLikelihood, LikelihoodGuidance
from sda_dps.linearized import Linearized, expand, isotropic_step


@component
class DiffPIR(LikelihoodGuidance):
    r"""x0' = argmin |y - A(x)|^2 / std^2 + weight (alpha / sigma)^2 |x - x0|^2, x0 = E[x_0 | x_t].

    With one std this is the paper's rho = weight std^2 / (sigma / alpha)^2; ``weight`` is its
    lambda. There is no backward pass through the network. The minimum is sought by Gauss-Newton
    steps, each solved by conjugate gradients with products of A alone; a member's step that does
    not lower its objective is not taken. One step is the minimum for a linear operator.

    The result is exact for a prior far wider than the noise and weight = 1.
    """

    exact_for_gaussian: ClassVar[bool] = False

    weight: float = option(default=1.0, check=positive, help="strength of the prior")
    newton_steps: int = option(default=2, check=at_least(1), help="Gauss-Newton steps")
    iterations: int = option(
        default=32, check=at_least(1), help="conjugate-gradient iterations at most, in each"
    )

    def likelihood_score(
        self,
        x_t: Tensor,
        denoise: Callable[[Tensor], Tensor],
        likelihood: GaussianLikelihood,
        alpha: Tensor,
        sigma: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Estimate grad log p(y | x_t), here the step to the minimum times alpha / sigma^2."""
        with torch.no_grad():
            x0 = denoise(x_t)
        variance = (sigma / alpha) ** 2 / self.weight

        def objective(x: Tensor) -> Tensor:
            misfit = likelihood.residual(x) ** 2 / likelihood.variance(x)
            return misfit.sum(1) + ((x - x0) ** 2 / variance).flatten(1).sum(1)

        x = x0
        for _ in range(self.newton_steps):
            A = Linearized(likelihood, x)
            # The minimum for A linearized at x, while the prior stays centred on x0.
            z = A.residual + A.push(x - x0)
            x_new = x0 + isotropic_step(A, variance, self.iterations, z)
            better = (objective(x_new) < objective(x)).detach()
            x = torch.where(expand(better, x), x_new, x)
        return x0, alpha / sigma**2 * (x - x0)
