r"""The Rauch-Tung-Striebel smoother, recursive, as an answer independent of joint covariances.

References:
    - Rauch, Tung & Striebel, "Maximum Likelihood Estimates of Linear Dynamic Systems", 1965,
      https://doi.org/10.2514/3.3166
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from sda_core.system import LinearGaussian


@attrs.frozen(eq=False)
class Smoothed:
    """p(x_i | y_1:L) of a linear-Gaussian chain.

    Attributes:
        mean: Means, (L, n).
        covariance: Covariances, (L, n, n).
        cross_covariance: Cov(x_i, x_i+1 | y), (L - 1, n, n).
    """

    mean: Tensor
    covariance: Tensor
    cross_covariance: Tensor


def rts_smoother(
    system: LinearGaussian,
    observations: Sequence[tuple[Tensor, Tensor, Tensor] | None],
    transitions: int = 1,
) -> Smoothed:
    """Smooth a chain with a Kalman filter forwards and an RTS pass backwards.

    Args:
        system: A linear-Gaussian system.
        observations: For each time 1..L, (H, y, R) with y = H x_i + N(0, R), or None.
        transitions: Number of transitions from the prior to x_1.
    """
    m, P, F, b, Q = system.linear_gaussian()
    for _ in range(transitions):
        m, P = F @ m + b, F @ P @ F.T + Q
    forecasts, filtered = [], []
    for i, observation in enumerate(observations):
        if i:
            m, P = F @ m + b, F @ P @ F.T + Q
        forecasts.append((m, P))
        if observation is not None:
            H, y, R = observation
            K = P @ H.T @ torch.linalg.inv(H @ P @ H.T + R)
            m, P = m + K @ (y - H @ m), P - K @ H @ P
        filtered.append((m, P))
    means, covariances, crosses = [m], [P], []
    backwards = zip(reversed(filtered[:-1]), reversed(forecasts[1:]), strict=True)
    for (m_f, P_f), (m_next, P_next) in backwards:
        G = P_f @ F.T @ torch.linalg.inv(P_next)
        crosses.append(G @ P)
        m, P = m_f + G @ (m - m_next), P_f + G @ (P - P_next) @ G.T
        means.append(m)
        covariances.append(P)
    return Smoothed(
        torch.stack(means[::-1]),
        torch.stack(covariances[::-1]),
        torch.stack(crosses[::-1]) if crosses else P.new_zeros(0, *P.shape),
    )
