r"""Score-based data assimilation.

References:
    - Rozet & Louppe, "Score-based Data Assimilation", 2023, https://arxiv.org/abs/2306.10574
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from sda_core.config import at_least, component, option
from sda_core.errors import AssimilationError
from sda_core.guidance.base import GaussianLikelihood
from sda_core.method.base import Method, Problem, Toolbox
from sda_core.random import MemberNoise


@component
class SDA(Method):
    """Samples trajectories from the composed score, guided by the observation.

    Members are sampled in batches, and each depends on (seed, its number) alone.
    """

    needs_model: ClassVar[bool] = True

    batch_size: int = option(default=64, check=at_least(1), help="members sampled at once")

    def assimilate(self, problem: Problem, members: int, seed: int, tools: Toolbox) -> Tensor:
        """Sample the posterior.

        Raises:
            AssimilationError: Model, sampler or guidance is missing, or members are not finite.
        """
        model, sampler, guidance = tools.model, tools.sampler, tools.guidance
        if model is None or sampler is None or guidance is None:
            raise AssimilationError(
                "method 'sda' needs a trained model, a sampler and a guidance: train a model first "
                "(sda train), and give [sampler] and [guidance]"
            )
        scaling, observation = model.standardization, problem.observation
        likelihood = GaussianLikelihood(
            operator=lambda x: observation.operator(scaling.to_physical(x)),
            y=problem.y,
            std=observation.std,
        )
        denoiser = guidance(model.trajectory_denoiser(), likelihood)
        batches = []
        starts = range(0, members, self.batch_size)
        for batch, first in enumerate(starts):
            numbers = range(first, min(first + self.batch_size, members))

            def on_step(step: int, steps: int, batch: int = batch) -> None:
                if tools.on_step:
                    tools.on_step(batch * steps + step, len(starts) * steps)

            noise = MemberNoise(seed, numbers, device=model.device)
            x = sampler.sample(denoiser, (len(numbers), *problem.shape), noise, on_step)
            batches.append(scaling.to_physical(x).cpu())
        ensemble = torch.cat(batches)
        lost = (~torch.isfinite(ensemble)).flatten(1).any(1).nonzero().flatten().tolist()
        if lost:
            raise AssimilationError(
                f"{len(lost)} of {members} members are not finite (first: {lost[:8]}). The "
                "guidance is too strong for the number of steps: use more steps, a larger gamma, "
                "or a smaller tau for corrections"
            )
        return ensemble
