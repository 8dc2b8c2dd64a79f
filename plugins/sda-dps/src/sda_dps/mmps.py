r"""Moment matching posterior sampling.

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

from sda_core.config import at_least, component, one_of, option
from sda_core.denoiser import Denoiser
from sda_core.errors import AssimilationError
from sda_core.guidance import Likelihood, LikelihoodGuidance
from sda_dps.linearized import Linearized, safe_step
from sda_dps.solvers import Solution, conjugate_gradients, direct, gmres


@component
class MMPS(LikelihoodGuidance):
    r"""p(y | x_t) = N(y; A(x0), std^2 + A V A^T), V = Cov[x_0 | x_t] = sigma^2/alpha dx0/dx_t.

    V is Tweedie's covariance, so that the result is exact for a Gaussian prior and a linear
    operator. A network's derivative is not quite a covariance: directions in which it is negative
    are left out, and the step is bounded by what the widest admissible prior allows
    (:func:`sda_dps.linearized.safe_step`). Neither changes anything for a Gaussian prior.

    ``direct`` takes one backward pass per observed value, which suits up to a few hundred; ``cg``
    (conjugate gradients) and ``gmres`` take one per iteration, and are exact with as many
    iterations as there are observed values, or fewer. Heavy-tailed errors take twice as many.
    """

    exact_for_gaussian: ClassVar[bool] = True

    solver: str = option(
        default="direct",
        check=one_of("direct", "cg", "gmres"),
        help="how the linear system is solved",
    )
    iterations: int = option(default=8, check=at_least(1), help="of cg and gmres")
    max_observations: int = option(
        default=512, check=at_least(1), help="refuse to form a larger matrix than this, squared"
    )

    def __call__(self, prior: Denoiser, likelihood: Likelihood) -> Denoiser:
        """Make the denoiser of the posterior.

        Raises:
            AssimilationError: The solver is direct, and there are more observed values than
                ``max_observations``.
        """
        n = len(likelihood.noise.std)
        if self.solver == "direct" and n > self.max_observations:
            raise AssimilationError(
                f"guidance 'mmps' takes one backward pass per observed value, and there are {n} "
                f"(max_observations = {self.max_observations}). Set guidance.solver to 'cg', "
                "observe less, or raise guidance.max_observations"
            )
        return super().__call__(prior, likelihood)

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

        def product(w: Tensor) -> tuple[Tensor, Tensor]:
            (gradient,) = torch.autograd.grad(x0, x_t, A.pull(w), retain_graph=True)
            return A.push(ratio * gradient), ratio * gradient

        def solve(z: Tensor) -> Solution:
            if self.solver == "direct":
                return direct(product, z)
            krylov = conjugate_gradients if self.solver == "cg" else gmres
            return krylov(product, z, self.iterations)

        return x0, safe_step(A, *A.solve(solve), alpha, sigma) / ratio
