r"""Denoisers of windows: a kernel, a schedule and a parameterization, and their loss.

The network F sees c_in x_t, and x0 = c_skip x_t + c_out F(c_in x_t, t). A parameterization is the
choice of the three coefficients:

    ======  ===========================  ==============================  =========================
    name    c_in                         c_skip                          c_out
    ======  ===========================  ==============================  =========================
    eps     1                            1 / alpha                       -sigma / alpha
    x0      1                            0                               1
    edm     1 / sqrt(alpha^2 + sigma^2)  alpha / (alpha^2 + sigma^2)     sigma c_in
    ======  ===========================  ==============================  =========================

The loss is the mean square error of F, that is |x0 - x_0|^2 / c_out^2: of the noise for ``eps``
(Ho et al., 2020, https://arxiv.org/abs/2006.11239, eq. 14), of the clean state for ``x0``, of a
target with unit variance at every noise level for ``edm`` (Karras et al., 2022,
https://arxiv.org/abs/2206.00364, table 1, with sigma_data = 1 in model space and carried over to
any alpha).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from sda_core.denoiser.base import Denoiser, expand_time
from sda_core.schedule.base import Schedule

ParameterizationName = Literal["eps", "x0", "edm"]
Coefficients = tuple[Tensor, Tensor, Tensor]
Network = Callable[[Tensor, Tensor], Tensor]


def _eps(alpha: Tensor, sigma: Tensor) -> Coefficients:
    return torch.ones_like(alpha), 1 / alpha, -sigma / alpha


def _x0(alpha: Tensor, sigma: Tensor) -> Coefficients:
    return torch.ones_like(alpha), torch.zeros_like(alpha), torch.ones_like(alpha)


def _edm(alpha: Tensor, sigma: Tensor) -> Coefficients:
    c_in = (alpha**2 + sigma**2).rsqrt()
    return c_in, alpha * c_in**2, sigma * c_in


PARAMETERIZATIONS: dict[str, Callable[[Tensor, Tensor], Coefficients]] = {
    "eps": _eps,
    "x0": _x0,
    "edm": _edm,
}


class WindowDenoiser(Denoiser):
    r"""E[x_0 | x_t] of windows (B, W, C, \*S).

    Args:
        kernel: The network, ``kernel(x, t)``; see :class:`sda_core.kernel.Kernel`.
        schedule: The noise schedule.
        window: The width W that the kernel was built for.
        parameterization: What the network's output means; see the module docstring.
        context: Static fields that the network is given with every window, (K, \*S).
    """

    context: Tensor | None

    def __init__(
        self,
        kernel: nn.Module,
        schedule: Schedule,
        window: int,
        parameterization: ParameterizationName = "eps",
        context: Tensor | None = None,
    ) -> None:
        super().__init__(schedule)
        self.kernel = kernel
        self.window = window
        self.parameterization = parameterization
        self.register_buffer("context", context)

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        """(c_in, c_skip, c_out) at the given scales."""
        return PARAMETERIZATIONS[self.parameterization](alpha, sigma)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        r"""E[x_0 | x_t]: (B, W, C, \*S), () or (B,) -> (B, W, C, \*S)."""
        c_in, c_skip, c_out = self.coefficients(*self.scales(x_t, t))
        return c_skip * x_t + c_out * self.network(c_in * x_t, t.expand(len(x_t)))

    def network(self, x: Tensor, t: Tensor) -> Tensor:
        r"""The kernel's output, with context where it has one: (B, W, C, \*S), (B,)."""
        if self.context is None:
            return self.kernel(x, t)
        return self.kernel(x, t, self.context)

    def draw(self, x: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        r"""Times and noise for the loss of a batch.

        Args:
            x: Clean windows in model space, (B, W, C, \*S).
            generator: Source of the random numbers; they are drawn on its device, best x's.

        Returns:
            t, uniform in [0, 1] and stratified over the batch, (B,), and eps, of x's shape.
        """
        n, device = len(x), generator.device
        # One time in each of n equal parts of [0, 1]: uniform, with less variance than n draws.
        offset = torch.rand(n, generator=generator, device=device)
        t = (torch.randperm(n, generator=generator, device=device) + offset) / n
        eps = torch.randn(x.shape, generator=generator, device=device)
        return t.to(x), eps.to(x)

    def loss(self, x: Tensor, generator: Generator, weights: Tensor | None = None) -> Tensor:
        r"""Denoising loss at random times with random noise.

        Args:
            x: Clean windows in model space, (B, W, C, \*S).
            generator: Source of the times and the noise, as for :meth:`draw`.
            weights: Per-variable weights, (C,); they are divided by their mean.

        Returns:
            The mean loss, ().
        """
        return self.loss_at(x, *self.draw(x, generator), weights)

    def loss_at(
        self,
        x: Tensor,
        t: Tensor,
        eps: Tensor,
        weights: Tensor | None = None,
        network: Network | None = None,
    ) -> Tensor:
        r"""Denoising loss at given times with given noise; see :meth:`losses_at`."""
        return self.losses_at(x, t, eps, weights, network)[0]

    def losses_at(
        self,
        x: Tensor,
        t: Tensor,
        eps: Tensor,
        weights: Tensor | None = None,
        network: Network | None = None,
    ) -> tuple[Tensor, Tensor]:
        r"""Denoising loss at given times with given noise, and that of each window.

        Args:
            x: Clean windows in model space, (B, W, C, \*S).
            t: Times, (B,).
            eps: Standard normal noise, of x's shape.
            weights: Per-variable weights, (C,); they are divided by their mean.
            network: What to evaluate instead of :meth:`network`, such as a compiled form of it.

        Returns:
            The mean loss, (), and the loss of each window, (B,), without a gradient.
        """
        error = self.errors_at(x, t, eps, network)
        if weights is not None:
            error = self.weighted(error, weights)
        return error.mean(), error.detach().flatten(1).mean(1)

    def errors_at(
        self, x: Tensor, t: Tensor, eps: Tensor, network: Network | None = None
    ) -> Tensor:
        """The squared errors of the network, of x's shape; see :meth:`losses_at`."""
        alpha, sigma = self.scales(x, t)
        x_t = alpha * x + sigma * eps
        c_in, c_skip, c_out = self.coefficients(alpha, sigma)
        target = ((1 - c_skip * alpha) * x - c_skip * sigma * eps) / c_out
        evaluate = self.network if network is None else network
        return (evaluate(c_in * x_t, t) - target).square()

    def weighted(self, error: Tensor, weights: Tensor) -> Tensor:
        """Errors times the weights of the variables, (C,), divided by their mean."""
        return error * expand_time(weights / weights.mean(), error[0, 0])
