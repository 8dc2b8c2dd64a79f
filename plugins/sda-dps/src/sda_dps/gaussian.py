r"""The Gaussian likelihood score of the SDA paper.

References:
    - Rozet & Louppe, "Score-based Data Assimilation", 2023, https://arxiv.org/abs/2306.10574,
      section 3.2, eq. 15 and algorithm 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sda_core.config import component, non_negative, one_of, option
from sda_core.guidance import Likelihood, LikelihoodGuidance, Strength, allow_auto, require_number


@component
class GaussianGuidance(LikelihoodGuidance):
    r"""p(y | x_t) = N(y; A(x0), std^2 + gamma (sigma / alpha)^2), x0 = E[x_0 | x_t].

    The term gamma (sigma / alpha)^2 stands for the uncertainty of x0. With ``detach`` the gradient
    does not go through the network, which saves the backward pass and is less accurate; dx0/dx_t is
    then 1 / alpha, as at a fixed noise estimate (the original code's), or with ``slope = "prior"``
    alpha / (alpha^2 + sigma^2), that of a standard normal prior.

    Good values: gamma = 0.03 for Lorenz-63 and 0.01 for Kolmogorov flow (the paper's). These are
    for observations in standardized units: the term is in the squared units of A(x), so for a
    variable observed in physical units multiply gamma by its squared standardization. With "auto"
    it is found from the observations (:mod:`sda_core.method.tuning`).
    """

    exact_for_gaussian: ClassVar[bool] = False
    strength: ClassVar[Strength] = Strength(field="gamma", weakest=1.0, strongest=1e-4, power=2)

    gamma: float | Literal["auto"] = option(
        default=0.03,
        check=allow_auto(non_negative),
        help='Var x0 / (sigma / alpha)^2, or "auto"',
    )
    detach: bool = option(default=False, help="take no gradient through the network")
    slope: str = option(
        default="noise", check=one_of("noise", "prior"), help="dx0/dx_t where detach is set"
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
        if self.detach:
            with torch.no_grad():
                x0 = denoise(x_t)
            wrt = x0.requires_grad_()
            scale = 1 / alpha if self.slope == "noise" else alpha / (alpha**2 + sigma**2)
        else:
            wrt = x_t.requires_grad_()
            x0 = denoise(x_t)
            scale = torch.ones_like(alpha)
        residual = likelihood.residual(x0)
        spread = require_number(self.gamma) * (sigma / alpha) ** 2
        spread = spread.reshape(-1, 1).expand_as(residual)
        variance = likelihood.variance(x0, spread) + spread
        log_p = -0.5 * (residual**2 / variance).sum()
        (gradient,) = torch.autograd.grad(log_p, wrt)
        return x0, scale * gradient
