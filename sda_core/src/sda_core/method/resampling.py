"""Resampling of weighted particles."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from sda_core.errors import AssimilationError


def check_members(members: int, particles: int) -> None:
    """Refuse to draw more members than there are particles.

    Raises:
        AssimilationError: There are more.
    """
    if members > particles:
        raise AssimilationError(
            f"{members} members cannot be drawn from {particles} particles: raise "
            "method.particles or ask for fewer members"
        )


def systematic_resampling(log_w: Tensor, generator: Generator, count: int | None = None) -> Tensor:
    """Numbers of the particles that are kept, with systematic resampling.

    Args:
        log_w: Log weights, (N,), not normalized; what is not finite has no weight.
        generator: Source of randomness.
        count: How many are drawn; None for as many as there are.

    Returns:
        Indices, (count,), in order.
    """
    count = len(log_w) if count is None else count
    weights = torch.softmax(log_w.double().nan_to_num(-torch.inf, -torch.inf, -torch.inf), 0)
    cumulative = weights.cumsum(0)
    u = torch.rand((), generator=generator, dtype=torch.float64)
    points = (torch.arange(count, dtype=torch.float64) + u) / count
    return torch.searchsorted(cumulative, points * cumulative[-1]).clamp_max(len(log_w) - 1)


def effective_sample_size(log_w: Tensor) -> float:
    """(sum w)^2 / sum w^2."""
    return float(torch.exp(2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)))
