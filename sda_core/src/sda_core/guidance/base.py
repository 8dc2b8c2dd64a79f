r"""Guidance: from the denoiser of the prior to the denoiser of the posterior.

By Bayes' rule the score of the posterior is that of the prior plus grad log p(y | x_t), so

    E[x_0 | x_t, y] = E[x_0 | x_t] + (sigma^2 / alpha) grad log p(y | x_t).

Methods differ in how they approximate the likelihood p(y | x_t), which is an integral over
p(x_0 | x_t). A guidance takes a denoiser and gives a denoiser, never a sampler: every guidance
runs under every sampler.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from sda_core.denoiser.base import Denoiser


@attrs.frozen(kw_only=True, eq=False)
class GaussianLikelihood:
    r"""p(y | x) = N(y; A(x), std^2) for trajectories in model space.

    Attributes:
        operator: A, (B, L, C, \*S) -> (B, \*obs).
        y: The observation, (\*obs).
        std: Noise standard deviation, (\*obs).
    """

    operator: Callable[[Tensor], Tensor]
    y: Tensor
    std: Tensor

    def residual(self, x: Tensor) -> Tensor:
        """y - A(x), flattened to (B, n)."""
        return (self.y.to(x) - self.operator(x)).reshape(len(x), -1)

    def variance(self, x: Tensor) -> Tensor:
        """std^2, flattened to (n,), with the type and device of x."""
        return self.std.to(x).reshape(-1) ** 2


class Guidance(ABC):
    """Turns the denoiser of the prior into a denoiser of the posterior.

    Class attributes:
        exact_for_gaussian: Whether the result is exact for a Gaussian prior and a linear operator.
        uses_std: Whether the observation's noise scale plays a part. Then an observation without
            information (std towards infinity) leaves the prior as it is.
    """

    sda_kind: ClassVar[str] = "guidance"
    exact_for_gaussian: ClassVar[bool] = False
    uses_std: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, prior: Denoiser, likelihood: GaussianLikelihood) -> Denoiser:
        """Make the denoiser of the posterior.

        Args:
            prior: E[x_0 | x_t].
            likelihood: p(y | x_0).

        Returns:
            (An approximation of) E[x_0 | x_t, y], with the schedule of the prior.
        """


class GuidedDenoiser(Denoiser):
    """A denoiser of the posterior whose method gives grad log p(y | x_t).

    Args:
        prior: E[x_0 | x_t].
        likelihood: p(y | x_0).
        likelihood_score: See :meth:`LikelihoodGuidance.likelihood_score`.
    """

    def __init__(
        self,
        prior: Denoiser,
        likelihood: GaussianLikelihood,
        likelihood_score: Callable[..., tuple[Tensor, Tensor]],
    ) -> None:
        super().__init__(prior.schedule)
        self.prior = prior
        self.likelihood = likelihood
        self.likelihood_score = likelihood_score

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t, y]; no graph is kept."""
        alpha, sigma = self.scales(x_t, t)
        with torch.enable_grad():
            x0, score = self.likelihood_score(
                x_t.detach(), lambda x: self.prior(x, t), self.likelihood, alpha, sigma
            )
        return x0.detach() + sigma**2 / alpha * score.detach()


class LikelihoodGuidance(Guidance):
    """A guidance given by its estimate of grad log p(y | x_t)."""

    def __call__(self, prior: Denoiser, likelihood: GaussianLikelihood) -> Denoiser:
        """Make the denoiser of the posterior."""
        return GuidedDenoiser(prior, likelihood, self.likelihood_score)

    @abstractmethod
    def likelihood_score(
        self,
        x_t: Tensor,
        denoise: Callable[[Tensor], Tensor],
        likelihood: GaussianLikelihood,
        alpha: Tensor,
        sigma: Tensor,
    ) -> tuple[Tensor, Tensor]:
        r"""Estimate grad log p(y | x_t); called with gradients enabled.

        Args:
            x_t: Noised states, (B, L, C, \*S), a leaf without gradient.
            denoise: The prior's denoiser at this noise level, x_t -> E[x_0 | x_t].
            likelihood: p(y | x_0).
            alpha: Signal scale, broadcastable against x_t.
            sigma: Noise scale, likewise.

        Returns:
            E[x_0 | x_t] and grad log p(y | x_t), both of x_t's shape.
        """
