r"""Diffusion posterior sampling.

References:
    - Chung et al., "Diffusion Posterior Sampling for General Noisy Inverse Problems", 2023,
      https://arxiv.org/abs/2209.14687, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sda_core.config import component, option, positive
from sda_core.guidance import Likelihood, LikelihoodGuidance, Strength, allow_auto, require_number


@component
class DPS(LikelihoodGuidance):
    r"""grad log p(y | x_t) = -zeta grad |y - A(x0)|^2 / |y - A(x0)|, x0 = E[x_0 | x_t].

    The norm is each member's own: taken over the whole batch, as in several public codes, a
    member's result would depend on the others. ``std`` of the observations plays no part.
    """

    exact_for_gaussian: ClassVar[bool] = False
    uses_std: ClassVar[bool] = False
    strength: ClassVar[Strength] = Strength(field="zeta", weakest=0.1, strongest=100.0, power=-1)

    zeta: float | Literal["auto"] = option(
        default=1.0, check=allow_auto(positive), help='strength of the guidance, or "auto"'
    )

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
        square = likelihood.residual(x0).square().sum(-1)
        (gradient,) = torch.autograd.grad(square.sum(), x_t)
        # An observation that is met exactly has no gradient, and needs no step.
        norm = square.detach().sqrt().clamp_min(torch.finfo(square.dtype).tiny)
        norm = norm.reshape(-1, *(1,) * (x_t.ndim - 1))
        return x0, -require_number(self.zeta) * gradient / norm
