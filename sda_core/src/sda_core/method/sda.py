r"""Score-based data assimilation.

References:
    - Rozet & Louppe, "Score-based Data Assimilation", 2023, https://arxiv.org/abs/2306.10574
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import attrs
from torch import Tensor

from sda_core.config import Check, at_least, component, option, part
from sda_core.denoiser import Denoiser
from sda_core.errors import AssimilationError
from sda_core.guidance.base import Guidance, Likelihood
from sda_core.method.base import Execution, Method, PriorModel, Problem
from sda_core.method.sampling import EnsembleSampler
from sda_core.method.tuning import tune_strength
from sda_core.observation import Operator
from sda_core.sampler.base import Sampler

if TYPE_CHECKING:
    from sda_core.data import Standardization


@attrs.frozen(kw_only=True, eq=False)
class InModelSpace:
    """An operator on states in physical units, as one on states in model space.

    Attributes:
        operator: A, on physical units.
        scaling: The map between the two.
    """

    operator: Operator
    scaling: Standardization

    def __call__(self, x: Tensor) -> Tensor:
        """A(x), given x in model space."""
        return self.operator(self.scaling.to_physical(x))


@attrs.frozen(kw_only=True, eq=False)
class Posterior:
    """A prior, guided by observations, and the sampler of it.

    Attributes:
        model: The model of the prior.
        sampler: The sampler.
        guidance: The guidance, its strength a number.
        likelihood: p(y | x) for trajectories in model space.
    """

    model: PriorModel
    sampler: Sampler
    guidance: Guidance
    likelihood: Likelihood

    def guide(self, prior: Denoiser) -> Denoiser:
        """The denoiser of the posterior."""
        return self.guidance(prior, self.likelihood)


@component
class GuidedMethod(Method):
    """A method that samples a trained model under a guidance, in batches that fit the memory.

    Attributes:
        model: The model of the prior.
        sampler: The sampler.
        guidance: The guidance.
    """

    needs_model: ClassVar[bool] = True

    model: PriorModel | None = part(default=None, kw_only=False)
    sampler: Sampler | None = part(default=None)
    guidance: Guidance | None = part(default=None)
    batch_size: int | None = option(
        default=None,
        check=at_least(1),
        help="members sampled at once; as many as the memory holds if not set",
    )
    memory: float | None = option(
        default=None,
        check=Check("greater than 0, at most 1e6", lambda v: 0 < v <= 1e6),
        units="GiB",
        help="memory to use on the device; half of what is free if not set",
    )

    def posterior(self, problem: Problem, seed: int, execution: Execution) -> Posterior:
        """The posterior that is sampled, its guidance of the strength that suits it, if "auto".

        Raises:
            AssimilationError: Model, sampler or guidance is missing, or no strength is found.
        """
        model, sampler = self.model, self.sampler
        if model is None or sampler is None or self.guidance is None:
            raise AssimilationError(
                f"{type(self).__name__} needs a trained model, a sampler and a guidance: train a "
                "model first (sda train), and give [sampler] and [guidance]; in Python, as in "
                f"{type(self).__name__}(model, sampler=DDPM(), guidance=...)"
            )
        plain = SDA(
            model,
            sampler=sampler,
            guidance=self.guidance,
            batch_size=self.batch_size,
            memory=self.memory,
        )
        guidance = tune_strength(plain, problem, seed, execution)
        observation = problem.observation
        operator = InModelSpace(operator=observation.operator, scaling=model.standardization)
        likelihood = Likelihood(operator=operator, y=problem.y, noise=observation.noise)
        return Posterior(model=model, sampler=sampler, guidance=guidance, likelihood=likelihood)


@component
class SDA(GuidedMethod):
    """Samples trajectories from the composed score, guided by the observation.

    Members are sampled in batches, and each depends on (seed, its number) alone. How many members
    and windows go at once is chosen so that they fit the memory; see
    :mod:`sda_core.method.memory_plan`. ``model.chunk_size``, where set, is kept.

    On a cluster, batches are tasks; see :class:`~sda_core.method.EnsembleSampler`. A strength of
    "auto" is found before, in this process.
    """

    spreads: ClassVar[bool] = True

    def draw(
        self, problem: Problem, members: int, seed: int, execution: Execution = Execution()
    ) -> Tensor:
        """Sample the posterior.

        Raises:
            AssimilationError: Model, sampler or guidance is missing, one window of one member does
                not fit the memory, or members diverge, however often they are drawn.
        """
        posterior = self.posterior(problem, seed, execution)
        sampling = EnsembleSampler(
            model=posterior.model,
            sampler=posterior.sampler,
            shape=(members, *problem.shape),
            seed=seed,
            guide=posterior.guide,
            batch_size=self.batch_size,
            memory=self.memory,
        )
        return sampling.sample(execution)
