r"""Solve (I + M) w = z for each member, with M = B V B^T known by products only.

A product gives M p and the state-space vector V B^T p it was made from, so that the step
d = V B^T w and a = M w come with the solution and cost no further products. A member's result
never depends on its batch mates.

References:
    - Saad, "Iterative Methods for Sparse Linear Systems", 2003,
      https://www-users.cse.umn.edu/~saad/IterMethBook_2ndEd.pdf, sections 6.5 and 6.7
    - Steihaug, "The Conjugate Gradient Method and Trust Regions in Large Scale Optimization", 1983,
      https://doi.org/10.1137/0720042 (stopping at negative curvature)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: p -> (M p, V B^T p): (B, n) -> (B, n) and (B, *S).
Product = Callable[[Tensor], tuple[Tensor, Tensor]]
#: d (B, *S), a = B d (B, n), and which members' solution is sound (B,).
Solution = tuple[Tensor, Tensor, Tensor]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1, keepdim=True)


def _negative(curvature: Tensor, square: Tensor) -> Tensor:
    """Whether a curvature p . M p is below zero by more than rounding."""
    return ~(curvature >= -(torch.finfo(square.dtype).eps ** 0.5) * square)


def _where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition.reshape(-1, *(1,) * (a.ndim - 1)), a, b)


def conjugate_gradients(product: Product, z: Tensor, iterations: int) -> Solution:
    """Conjugate gradients.

    A member stops where it has converged, and where p . M p is negative or not finite: M is then
    no covariance, and p and what would follow are left out. Of its iterates it keeps the one of
    smallest residual. It is unsound if it stopped before the first.
    """
    r = p = z
    square = _dot(r, r)
    enough = (10 * torch.finfo(z.dtype).eps) ** 2 * square
    active = square > 0
    sound = torch.ones_like(active)
    smallest = torch.full_like(square, torch.inf)
    d: Tensor | None = None
    a, best_a = torch.zeros_like(z), torch.zeros_like(z)
    for k in range(iterations):
        Mp, u = product(p)
        if d is None:
            d = best_d = torch.zeros_like(u)
        curvature = _dot(p, Mp)
        stop = _negative(curvature, _dot(p, p)) | ~Mp.isfinite().all(1, keepdim=True)
        if k == 0:
            sound = ~stop
        active = active & ~stop
        length = _where(active, square / (_dot(p, p) + curvature), torch.zeros_like(square))
        d = _where(active, d + length.reshape(-1, *(1,) * (u.ndim - 1)) * u, d)
        a = _where(active, a + length * Mp, a)
        r = _where(active, r - length * (p + Mp), r)
        previous, square = square, _dot(r, r)
        better = active & (square < smallest)
        best_d, best_a = _where(better, d, best_d), _where(better, a, best_a)
        smallest = torch.where(better, square, smallest)
        active = active & (square > enough)
        if not active.any():
            break
        p = _where(active, r + square / previous * p, p)
    return best_d, best_a, sound.squeeze(1)


def gmres(product: Product, z: Tensor, iterations: int) -> Solution:
    """The generalized minimal residual method; M need not be symmetric.

    A member is unsound if M is not finite, or negative along the solution.
    """
    n = min(iterations, z.shape[1])
    norm = z.norm(dim=1, keepdim=True)
    tiny = 10 * torch.finfo(z.dtype).eps
    basis, images, states = [_unit(z, norm, torch.zeros_like(norm))], [], []
    H = z.new_zeros(len(z), n + 1, n)
    for k in range(n):
        Mv, u = product(basis[k])
        images.append(Mv)
        states.append(u)
        w = basis[k] + Mv
        size = w.norm(dim=1, keepdim=True)
        for i, v in enumerate(basis):
            H[:, i, k] = (w * v).sum(1)
            w = w - H[:, i, k, None] * v
        rest = w.norm(dim=1, keepdim=True)
        H[:, k + 1, k] = rest.squeeze(1)
        # Nothing is left once the space is spanned; rounding must not be taken for a direction.
        basis.append(_unit(w, rest, tiny * size))
    sound = H.isfinite().all(2).all(1)
    H = _where(sound, H, torch.zeros_like(H))
    y = torch.linalg.pinv(H, rtol=torch.finfo(z.dtype).eps)[:, :, 0] * norm
    d = torch.einsum("bk,kb...->b...", y, torch.stack(states))
    a = torch.einsum("bk,kbn->bn", y, torch.stack(images))
    w = torch.einsum("bk,kbn->bn", y, torch.stack(basis[:n]))
    return d, a, sound & ~_negative(_dot(w, a), _dot(w, w)).squeeze(1)


def _unit(w: Tensor, norm: Tensor, least: Tensor) -> Tensor:
    return torch.where(norm > least, w / norm, 0.0)


def direct(product: Product, z: Tensor) -> Solution:
    """Form M row by row, one product each, and solve exactly.

    M is made symmetric, and directions in which it is negative are left out. A member is unsound
    if nothing is left.
    """
    unit = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    pairs = [product(e.expand_as(z)) for e in unit]
    M = torch.stack([image for image, _ in pairs], 1)
    finite = M.isfinite().all(2).all(1)
    M = _where(finite, M, torch.zeros_like(M))
    eigenvalues, vectors = torch.linalg.eigh((M + M.mT) / 2)
    left_out = _negative(eigenvalues, torch.ones_like(eigenvalues))
    filtered = torch.where(left_out, 0.0, 1 / (1 + eigenvalues.clamp_min(0)))
    w = (vectors @ (filtered[..., None] * (vectors.mT @ z[..., None]))).squeeze(-1)
    d = torch.einsum("bn,nb...->b...", w, torch.stack([state for _, state in pairs]))
    a = torch.einsum("bn,bnm->bm", w, M)
    return d, a, finite & ~left_out.all(1)
