r"""Moment matching posterior sampling, with an exact solve.

References:
    - Rozet et al., "Learning Diffusion Priors from Observations by Expectation Maximization",
      2024, https://arxiv.org/abs/2405.13712, section 4.2
    - Boys et al., "Tweedie Moment Projected Diffusions for Inverse Problems", 2024,
      https://arxiv.org/abs/2310.06721
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from sda_core.config import at_least, component, option
from sda_core.denoiser import Denoiser
from sda_core.errors import AssimilationError
from sda_core.guidance import GaussianLikelihood, LikelihoodGuidance


@component
class MMPS(LikelihoodGuidance):
    r"""p(y | x_t) = N(y; A(x0), std^2 + A V A^T), V = Cov[x_0 | x_t] = sigma^2/alpha dx0/dx_t.

    V is Tweedie's covariance, so that the result is exact for a Gaussian prior and a linear
    operator. A V A^T is formed row by row, one backward pass per observed value, and the system is
    solved exactly after it is made symmetric and its negative eigenvalues, which only an imperfect
    network has, are set to zero. That suits up to a few hundred observed values.
    """

    exact_for_gaussian: ClassVar[bool] = True

    max_observations: int = option(
        default=512, check=at_least(1), help="refuse to form a larger matrix than this, squared"
    )

    def __call__(self, prior: Denoiser, likelihood: GaussianLikelihood) -> Denoiser:
        """Make the denoiser of the posterior.

        Raises:
            AssimilationError: There are more observed values than ``max_observations``.
        """
        n = likelihood.y.numel()
        if n > self.max_observations:
            raise AssimilationError(
                f"guidance 'mmps' takes one backward pass per observed value, and there are {n} "
                f"(max_observations = {self.max_observations}). Observe less, use another guidance "
                "such as 'gaussian', or raise guidance.max_observations"
            )
        return super().__call__(prior, likelihood)

    def likelihood_score(
        self,
        x_t: Tensor,
        denoise: Callable[[Tensor], Tensor],
        likelihood: GaussianLikelihood,
        alpha: Tensor,
        sigma: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Estimate grad log p(y | x_t)."""
        x_t.requires_grad_()
        x0 = denoise(x_t)
        # A is linearized at x0, and pulled back to x_t: the rows of A dx0/dx_t.
        x0_leaf = x0.detach().requires_grad_()
        residual = likelihood.residual(x0_leaf)
        n = residual.shape[1]
        rows_A = [_vjp(-residual[:, i], x0_leaf, retain=True) for i in range(n)]
        rows_AJ = [_vjp(x0, x_t, retain=i < n - 1, cotangent=r) for i, r in enumerate(rows_A)]
        A = torch.stack(rows_A, 1).flatten(2)  # (B, n, d)
        AJ = torch.stack(rows_AJ, 1).flatten(2)  # (B, n, d)
        V = (sigma**2 / alpha).reshape(-1, 1, 1) * (AJ @ A.mT)
        eigenvalues, vectors = torch.linalg.eigh((V + V.mT) / 2)
        V = vectors @ (eigenvalues.clamp_min(0)[..., None] * vectors.mT)
        covariance = V + torch.diag(likelihood.variance(x0))
        weights = torch.linalg.solve(covariance, residual.detach()[..., None])
        return x0, (AJ.mT @ weights).reshape(x_t.shape)


def _vjp(output: Tensor, x: Tensor, *, retain: bool, cotangent: Tensor | None = None) -> Tensor:
    cotangent = torch.ones_like(output) if cotangent is None else cotangent
    (gradient,) = torch.autograd.grad(output, x, cotangent, retain_graph=retain)
    return gradient
