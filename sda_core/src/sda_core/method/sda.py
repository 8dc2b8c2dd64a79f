r"""Score-based data assimilation.

References:
    - Rozet & Louppe, "Score-based Data Assimilation", 2023, https://arxiv.org/abs/2306.10574
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from sda_core.config import at_least, component, option, positive
from sda_core.denoiser import Denoiser, MarkovBlanketDenoiser
from sda_core.errors import AssimilationError
from sda_core.guidance.base import GaussianLikelihood
from sda_core.method.base import Method, PriorModel, Problem, Toolbox
from sda_core.method.lost_members import Watch, redraw
from sda_core.method.memory_plan import plan_memory
from sda_core.random import MemberNoise

if TYPE_CHECKING:
    from sda_core.sampler.base import Sampler


@component
class SDA(Method):
    """Samples trajectories from the composed score, guided by the observation.

    Members are sampled in batches, and each depends on (seed, its number) alone. How many members
    and windows go at once is chosen so that they fit the memory; see
    :mod:`sda_core.method.memory_plan`. ``model.chunk_size``, where set, is kept.
    """

    needs_model: ClassVar[bool] = True

    batch_size: int | None = option(
        default=None,
        check=at_least(1),
        help="members sampled at once; as many as the memory holds if not set",
    )
    memory: float | None = option(
        default=None,
        check=positive,
        units="GiB",
        help="memory to use on the device; half of what is free if not set",
    )

    def assimilate(self, problem: Problem, members: int, seed: int, tools: Toolbox) -> Tensor:
        """Sample the posterior.

        Raises:
            AssimilationError: Model, sampler or guidance is missing, one window of one member does
                not fit the memory, or members are lost, however often they are drawn.
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
        return sample_members(
            model,
            sampler,
            (members, *problem.shape),
            seed,
            guide=lambda prior: guidance(prior, likelihood),
            batch_size=self.batch_size,
            memory=self.memory,
            announce=tools.announce,
            on_step=tools.on_step,
        )


def sample_members(
    model: PriorModel,
    sampler: Sampler,
    shape: Sequence[int],
    seed: int,
    *,
    guide: Callable[[Denoiser], Denoiser] | None = None,
    batch_size: int | None = None,
    memory: float | None = None,
    announce: Callable[[str], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    r"""Sample trajectories in batches that fit the memory.

    A member that becomes non-finite or runs away is drawn again from noise that depends on (seed,
    its number, attempt) alone, and an ``AssimilationWarning`` tells at which noise level it was
    lost. So what is returned are samples given that they are not lost, which is sound as long as
    few are.

    Args:
        model: The model of the prior.
        sampler: The sampler.
        shape: (M, L, C, \*S), M members.
        seed: Source of all randomness.
        guide: Makes the denoiser that is sampled from the prior's; None to sample the prior.
        batch_size: Members at once; None for as many as fit.
        memory: Budget in GiB; None for half of what is free.
        announce: Called with the plan, in one line, before sampling.
        on_step: Called with (steps done, number of steps).

    Returns:
        Trajectories in physical units, (M, L, C, \*S), in host memory.

    Raises:
        AssimilationError: One window of one member does not fit the memory, or members are lost:
            more than half of them at first, or some however often they are drawn.
    """
    members, *rest = shape
    prior = model.trajectory_denoiser()

    def some_steps(prior: Denoiser) -> None:
        noise = MemberNoise(seed, [0], device=model.device)
        z = noise.normal((1, *rest))  # kept throughout, as by Sampler.sample
        times = sampler.times(prior.schedule)
        # From all over the grid: early steps, or those at some noise levels, may hold less.
        few = torch.linspace(0, len(times) - 1, min(len(times), 8)).long()
        with torch.no_grad():
            for _ in sampler.walk(guide(prior) if guide else prior, 1.0 * z, times[few], noise):
                pass

    plan = plan_memory(
        prior,
        shape,
        some_steps,
        device=model.device,
        gradients=guide is not None,
        batch_size=batch_size,
        memory=memory,
    )
    if announce:
        announce(str(plan))
    if isinstance(prior, MarkovBlanketDenoiser):
        prior.chunk_size = plan.chunk_size
    denoiser = guide(prior) if guide else prior
    ensemble = torch.empty(tuple(shape))

    def draw(
        numbers: Tensor, seed: int, on_step: Callable[[int, int], None] | None = None
    ) -> Tensor:
        batches = numbers.split(plan.batch_size)
        levels = []
        for i, batch in enumerate(batches):

            def batch_step(step: int, steps: int, i: int = i) -> None:
                if on_step:
                    on_step(i * steps + step, len(batches) * steps)

            noise = MemberNoise(seed, batch.tolist(), device=model.device)
            watch = Watch(denoiser.schedule)
            x = sampler.sample(denoiser, (len(batch), *rest), noise, batch_step, watch)
            ensemble[batch] = model.standardization.to_physical(x).cpu()
            levels.append(watch.levels.cpu())
        return torch.cat(levels)

    redraw(draw, draw(torch.arange(members), seed, on_step), seed)
    return ensemble
