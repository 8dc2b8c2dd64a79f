r"""Score-based data assimilation.

References:
    - Rozet & Louppe, "Score-based Data Assimilation", 2023, https://arxiv.org/abs/2306.10574
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from sda_core.config import at_least, component, option, positive
from sda_core.errors import AssimilationError
from sda_core.guidance.base import Likelihood
from sda_core.method.base import Method, Problem, Toolbox
from sda_core.method.sampling import sample_members
from sda_core.method.tuning import tuned


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
        tools = tuned(self, problem, seed, tools)
        model, sampler, guidance = tools.model, tools.sampler, tools.guidance
        if model is None or sampler is None or guidance is None:
            raise AssimilationError(
                "method 'sda' needs a trained model, a sampler and a guidance: train a model first "
                "(sda train), and give [sampler] and [guidance]"
            )
        scaling, observation = model.standardization, problem.observation
        likelihood = Likelihood(
            operator=lambda x: observation.operator(scaling.to_physical(x)),
            y=problem.y,
            noise=observation.noise,
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
            ensemble=tools.ensemble,
        )
