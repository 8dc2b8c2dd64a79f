r"""The observation linearized at an estimate, and steps taken from it.

With B = Sigma^-1/2 A'(x0) and z = Sigma^-1/2 (y - A(x0)), the Gaussian N(x0, V) conditioned on the
observation has the mean x0 + d with

    d = V B^T (I + B V B^T)^-1 z.

A step is d together with a = B d, what it does to the observed values. A' is never formed: B^T is
a backward pass through A, and B a backward pass through that (no network takes part in either).

Where errors are not Gaussian, Sigma depends on how uncertain A(x0) is before y is known (see
:mod:`sda_core.noise.base`). It starts from the entry's own variance with V = v I, and is adapted
once to the step that follows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sda_core.guidance import Likelihood
from sda_core.random import seeded_generator
from sda_dps.solvers import Solution, conjugate_gradients

#: Products with A' and A'^T that estimate how uncertain its values are.
PROBES = 4


class Linearized:
    r"""A at x0, in units of the observation's error.

    Args:
        likelihood: p(y | x_0).
        x0: Where, (B, L, C, \*S).
        variance: v, how uncertain x0 is, broadcastable against it.
        errors: Variance of the errors, (B, n), where it is known.

    Attributes:
        residual: z, (B, n).
        std: Standard deviation of the errors, (B, n).
    """

    def __init__(
        self,
        likelihood: Likelihood,
        x0: Tensor,
        variance: Tensor,
        errors: Tensor | None = None,
    ) -> None:
        self._noise = likelihood.noise
        with torch.enable_grad():
            self._x0 = x0.detach().requires_grad_()
            self._negative = -likelihood.residual(self._x0)
            self._weights = torch.zeros_like(self._negative, requires_grad=True)
            (self._pulled,) = torch.autograd.grad(
                self._negative, self._x0, self._weights, create_graph=True
            )
        self.std = torch.ones_like(self._weights).detach()
        known = errors is not None or self._noise.gaussian
        self._spread = None if known else self._diagonal(variance)
        self._set(likelihood.variance(x0, self._spread) if errors is None else errors)

    def _set(self, errors: Tensor) -> None:
        self.std = errors.sqrt()
        self.residual = -self._negative.detach() / self.std

    def _diagonal(self, variance: Tensor) -> Tensor:
        """The diagonal of v A' A'^T, by random signs: exact where it is a diagonal matrix."""
        signs = torch.randint(0, 2, (PROBES, self.std.shape[1]), generator=seeded_generator(0))
        total = torch.zeros_like(self.std)
        for sign in 2 * signs.to(self.std) - 1:
            total += sign * self.push(variance * self.pull(sign.expand_as(total)))
        return total.clamp_min(0) / PROBES

    def pull(self, w: Tensor) -> Tensor:
        r"""B^T w: (B, n) -> (B, L, C, \*S)."""
        (u,) = torch.autograd.grad(self._negative, self._x0, w / self.std, retain_graph=True)
        return u

    def push(self, u: Tensor) -> Tensor:
        r"""B u: (B, L, C, \*S) -> (B, n). B^T w is linear in w; its derivative is B."""
        (w,) = torch.autograd.grad(self._pulled, self._weights, u, retain_graph=True)
        return w / self.std

    def solve(self, solver: Callable[[Tensor], Solution]) -> Solution:
        """The step z -> (d, a, sound) by a solver; taken twice where errors are heavy-tailed.

        The second has their variance from the squared residual that the first expects.
        """
        solution = solver(self.residual)
        if self._spread is None:
            return solution
        errors = self.std**2
        _, moved, sound = solution
        rest = (self.residual - moved) ** 2 * errors
        square = rest + errors / (errors + self._spread) * self._spread
        # A step that will not be taken says nothing of the errors.
        adapted = torch.where(sound[:, None], self._noise.adapt(errors, square), errors)
        if torch.equal(adapted, errors):
            return solution
        self._set(adapted)
        return solver(self.residual)


def expand(values: Tensor, x: Tensor) -> Tensor:
    """Let one value per member, (B,), broadcast against x of shape (B, ...)."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))


def isotropic_step(A: Linearized, variance: Tensor, iterations: int, z: Tensor) -> Solution:
    r"""The step for V = v I. No network takes part.

    Args:
        A: The linearized observation.
        variance: v, broadcastable against x0.
        iterations: Conjugate-gradient iterations at most.
        z: The residual, (B, n), where it is not that of ``A``.
    """

    def product(w: Tensor) -> tuple[Tensor, Tensor]:
        u = variance * A.pull(w)
        return A.push(u), u

    return conjugate_gradients(product, z, iterations)


def safe_step(
    A: Linearized, step: Tensor, moved: Tensor, sound: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    r"""Bound a step that was made with a network's covariance.

    A step is cut to s d with the s in [0, 1] that minimizes, along d, what the widest admissible
    prior N(x0, v I), v = (sigma / alpha)^2, would minimize:

        |z - s B d|^2 + s^2 |d|^2 / v.

    The covariance of x_0 given x_t is between 0 and v I whenever the prior is log-concave, Gaussian
    priors among them. For every such V the exact step has s >= 1 and is left as it is. From
    a = B d = M w with w = (I + M)^-1 z and M = B V B^T follows (z - a) . a = w . M w, which is at
    least |d|^2 / v since V^2 <= v V; and that is s >= 1.

    Members whose step is not finite, is marked as unsound or moves away from the observation take
    the step of a prior with unit variance instead, V = sigma^2 / (alpha^2 + sigma^2) I.

    Args:
        A: The linearized observation.
        step: d, (B, L, C, \*S).
        moved: B d, (B, n).
        sound: Which members' step is to be kept, (B,).
        alpha: Signal scale, broadcastable against x0.
        sigma: Noise scale, likewise.
    """
    z = A.residual
    v = ((sigma / alpha) ** 2).reshape(-1)
    progress = (z * moved).sum(1)
    # Rounding may turn the sign of a step that does nothing; that is no reason to replace it.
    tolerance = torch.finfo(z.dtype).eps ** 0.5 * z.square().sum(1)
    sound = sound & step.flatten(1).isfinite().all(1) & (progress >= -tolerance)
    curvature = moved.square().sum(1) + step.flatten(1).square().sum(1) / v
    share = torch.where(curvature > 0, progress / curvature, 1.0).clamp(0, 1)
    step = expand(share, step) * step
    if sound.all():
        return step
    plain, _, _ = isotropic_step(A, sigma**2 / (alpha**2 + sigma**2), 16, z)
    return torch.where(expand(sound, step), step, plain)
