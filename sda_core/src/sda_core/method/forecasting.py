r"""Autoregressive forecasts: from the last states of each member to those that follow.

References:
    - Shysheya et al., "On Conditional Diffusion Models for PDE Simulations", 2024,
      https://arxiv.org/abs/2410.16415 (autoregressive sampling of a joint model by guidance)
    - Rozet & Louppe, "Score-based Data Assimilation", 2023, https://arxiv.org/abs/2306.10574
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sda_core.denoiser import MarkovBlanketDenoiser
from sda_core.errors import AssimilationError
from sda_core.method.base import PriorModel
from sda_core.method.conditional import ConditionalSampler, Constraint
from sda_core.random import seeded_generator

if TYPE_CHECKING:
    from sda_core.guidance.base import Guidance
    from sda_core.sampler.base import Sampler


def forecast(
    model: PriorModel,
    sampler: Sampler,
    guidance: Guidance,
    states: Tensor,
    horizon: int,
    *,
    seed: int,
    condition: int = 1,
    length: int | None = None,
    std: float = 0.03,
    batch_size: int | None = None,
) -> Tensor:
    r"""Sample x_1:horizon given the states up to x_0, each member from its own.

    Pieces of ``length`` states are sampled one after another. The first ``condition`` of a piece
    are the last known ones, held by guidance as if they had been observed with a small error,

        p(x | x_1:C) ~ p(x) N(x_1:C; known, std^2),

    and the others are new. Guidance that is exact for Gaussians is so here, up to ``std``. The
    other way, to put the known states with fresh noise in place of the first ones in every step,
    is not: both measured in docs/design/experiments.md.

    Args:
        model: The model of the prior.
        sampler: The sampler.
        guidance: What holds the known states.
        states: Known states, the newest last, (M, C', C, \*S) with C' >= condition, physical units.
        horizon: How many states to sample.
        seed: Source of all randomness; a member depends on it and on its number alone.
        condition: How many known states a piece begins with; 1 says all of a Markov state.
        length: States in a piece; None for the window of the model, or for one piece if it has
            none.
        std: Error that the known states are held with, in standardized units. Smaller than a few
            of the schedule's smallest sigma / alpha only makes the guidance stiff.
        batch_size: Members at once; None for all.

    Returns:
        The states that follow, (M, horizon, C, \*S), physical units.

    Raises:
        AssimilationError: There are fewer known states than ``condition``, they are not finite, a
            piece would have no new state, or members diverge however often they are drawn.
    """
    sampling = ConditionalSampler(
        model=model, sampler=sampler, guidance=guidance, batch_size=batch_size
    )
    x, _ = extend(sampling, states, horizon, seed, condition, length, std)
    return x


def extend(
    sampling: ConditionalSampler,
    states: Tensor,
    horizon: int,
    seed: int,
    condition: int,
    length: int | None,
    std: float,
) -> tuple[Tensor, float]:
    """What :func:`forecast` gives, and evaluations of the prior per member."""
    length = length or piece_length(sampling.model, condition + horizon)
    if not 1 <= condition < length:
        raise AssimilationError(
            f"condition = {condition} must lie between 1 and {length - 1}: a piece of {length} "
            "states begins with the known ones, and continues with at least one that is new"
        )
    if horizon < 1:
        raise AssimilationError(f"horizon = {horizon}: ask for at least 1 state")
    if states.shape[1] < condition:
        raise AssimilationError(
            f"condition = {condition}, but only {states.shape[1]} states are known: give more of "
            "them, or condition on fewer"
        )
    if not states.isfinite().all():
        raise AssimilationError("the known states are not finite: there is nothing to start from")
    scaling = sampling.model.standardization
    known, evaluations, new = scaling.to_model(states[:, -condition:].float()), 0.0, []
    for piece in range(-(-horizon // (length - condition))):
        shape = (len(states), length, *states.shape[2:])
        own = seeded_generator(seed, piece).initial_seed()
        x, spent = sampling.draw(shape, own, [Constraint.held(known, std)])
        new.append(x[:, condition:])
        known, evaluations = x[:, -condition:], evaluations + spent
    return scaling.to_physical(torch.cat(new, 1)[:, :horizon]), evaluations


def piece_length(model: PriorModel, default: int) -> int:
    """The window of a model that has one: the longest piece that costs one evaluation of it."""
    prior = model.trajectory_denoiser()
    return prior.window if isinstance(prior, MarkovBlanketDenoiser) else default
