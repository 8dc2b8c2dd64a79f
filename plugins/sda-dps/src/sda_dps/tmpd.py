r"""Tweedie moment projected diffusion.

References:
    - Boys et al., "Tweedie Moment Projected Diffusions for Inverse Problems", 2024,
      https://arxiv.org/abs/2310.06721, section 3.1 (row sums in place of the matrix)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from sda_core.config import component
from sda_core.guidance import Likelihood, LikelihoodGuidance
from sda_dps.linearized import Linearized, safe_step


@component
class TMPD(LikelihoodGuidance):
    r"""p(y | x_t) = N(y; A(x0), std^2 + diag(A V A^T 1)), V = sigma^2/alpha dx0/dx_t.

    The matrix A V A^T of :class:`sda_dps.mmps.MMPS` is replaced by its row sums, which one backward
    pass gives; a second one gives the step. It is exact for a Gaussian prior where A V A^T is
    diagonal. Row sums below zero count as zero, and the step is bounded as that of MMPS.
    """

    exact_for_gaussian: ClassVar[bool] = False

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
        A = Linearized(likelihood, x0, sigma**2 / (alpha**2 + sigma**2))
        ratio = sigma**2 / alpha

        def covariance(w: Tensor) -> Tensor:
            """V B^T w."""
            (gradient,) = torch.autograd.grad(x0, x_t, A.pull(w), retain_graph=True)
            return ratio * gradient

        # B has the units of the errors taken out; B std and B / std put them back.
        sums = A.push(covariance(A.std)) / A.std
        step = covariance(A.residual / (1 + sums.clamp_min(0)))
        sound = torch.ones(len(x_t), dtype=torch.bool, device=x_t.device)
        return x0, safe_step(A, step, A.push(step), sound, alpha, sigma) / ratio
