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
from sda_core.guidance.strength import Strength
from sda_core.noise import GaussianNoise, NoiseModel


@attrs.frozen(kw_only=True, eq=False)
class Likelihood:
    r"""p(y | x) for trajectories in model space, for guidance as if it were Gaussian.

    Guidance sees a residual r with independent entries and their variance v; which Gaussian that is
    depends on x where the noise is not Gaussian (see :mod:`sda_core.noise.base`). Correlated errors
    are whitened in r.

    Attributes:
        operator: A, (B, L, C, \*S) -> (B, \*obs).
        y: The observation, (\*obs), or one for each member of the batch, (B, \*obs).
        noise: The error model of flattened observations.
    """

    operator: Callable[[Tensor], Tensor]
    y: Tensor
    noise: NoiseModel

    @classmethod
    def gaussian(cls, operator: Callable[[Tensor], Tensor], y: Tensor, std: Tensor) -> Likelihood:
        r"""N(y; A(x), std^2) with ``std`` of shape (\*obs)."""
        noise = GaussianNoise(scale=std.double().flatten())
        return cls(operator=operator, y=y, noise=noise)

    def residual(self, x: Tensor) -> Tensor:
        """W (y - A(x)), flattened to (B, n)."""
        return self.noise.whiten((self.y.to(x) - self.operator(x)).reshape(len(x), -1))

    def variance(self, x: Tensor, spread: Tensor | None = None) -> Tensor:
        r"""v, (B, n), without a gradient.

        Args:
            x: Trajectories, (B, L, C, \*S).
            spread: Variance of each entry of A(x) before y is known, (B, n), where x is an
                estimate.
        """
        with torch.no_grad():
            return self.noise.variance(*self._flat(x), spread)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(y | x), (B,)."""
        return self.noise.log_prob(*self._flat(x))

    def _flat(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.operator(x)
        return self.y.to(x).expand_as(mean).reshape(len(x), -1), mean.reshape(len(x), -1)


class Guidance(ABC):
    """Turns the denoiser of the prior into a denoiser of the posterior.

    Class attributes:
        exact_for_gaussian: Whether the result is exact for a Gaussian prior and a linear operator.
        uses_std: Whether the observation's noise scale plays a part. Then an observation without
            information (std towards infinity) leaves the prior as it is.
        strength: The field that can be "auto", if there is one.
    """

    sda_kind: ClassVar[str] = "guidance"
    exact_for_gaussian: ClassVar[bool] = False
    uses_std: ClassVar[bool] = True
    strength: ClassVar[Strength | None] = None

    @abstractmethod
    def __call__(self, prior: Denoiser, likelihood: Likelihood) -> Denoiser:
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
        likelihood: Likelihood,
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

    def __call__(self, prior: Denoiser, likelihood: Likelihood) -> Denoiser:
        """Make the denoiser of the posterior."""
        return GuidedDenoiser(prior, likelihood, self.likelihood_score)

    @abstractmethod
    def likelihood_score(
        self,
        x_t: Tensor,
        denoise: Callable[[Tensor], Tensor],
        likelihood: Likelihood,
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
