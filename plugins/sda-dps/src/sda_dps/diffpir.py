r"""Denoising diffusion for plug-and-play image restoration, as guidance.

References:
    - Zhu et al., "Denoising Diffusion Models for Plug-and-Play Image Restoration", 2023,
      https://arxiv.org/abs/2305.08995, eq. 12b and 13
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sda_core.config import at_least, component, option, positive
from sda_core.guidance import Likelihood, LikelihoodGuidance, Strength, allow_auto, require_number
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

    strength: ClassVar[Strength] = Strength(field="weight", weakest=100.0, strongest=0.1)

    weight: float | Literal["auto"] = option(
        default=1.0, check=allow_auto(positive), help='strength of the prior, or "auto"'
    )
    newton_steps: int = option(default=2, check=at_least(1), help="Gauss-Newton steps")
    iterations: int = option(
        default=32, check=at_least(1), help="conjugate-gradient iterations at most, in each"
    )

    def likelihood_score(
        self,
        x_t: Tensor,
        denoise: Callable[[Tensor], Tensor],
        likelihood: Likelihood,
        alpha: Tensor,
        sigma: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Estimate grad log p(y | x_t), here the step to the minimum times alpha / sigma^2."""
        with torch.no_grad():
            x0 = denoise(x_t)
        variance = (sigma / alpha) ** 2 / require_number(self.weight)

        A = Linearized(likelihood, x0, variance)
        step, _, _ = A.solve(lambda z: isotropic_step(A, variance, self.iterations, z))
        errors = A.std**2

        def objective(x: Tensor) -> Tensor:
            misfit = likelihood.residual(x) ** 2 / errors
            return misfit.sum(1) + ((x - x0) ** 2 / variance).flatten(1).sum(1)

        x = x0
        for i in range(self.newton_steps):
            if i:
                # The minimum for A linearized at x, while the prior stays centred on x0.
                at_x = Linearized(likelihood, x, variance, errors)
                z = at_x.residual + at_x.push(x - x0)
                step, _, _ = isotropic_step(at_x, variance, self.iterations, z)
            better = (objective(x0 + step) < objective(x)).detach()
            x = torch.where(expand(better, x), x0 + step, x)
        return x0, alpha / sigma**2 * (x - x0)
