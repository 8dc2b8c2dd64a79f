r"""A particle filter over blocks of states that a trained model draws.

References:
    - Del Moral, Doucet & Jasra, "Sequential Monte Carlo samplers", 2006,
      https://doi.org/10.1111/j.1467-9868.2006.00553.x
    - Kitagawa, "Monte Carlo filter and smoother for non-Gaussian nonlinear state space models",
      1996, https://doi.org/10.2307/1390750: whole paths are kept, so that they are smoothed ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch
from torch import Generator, Tensor, nn

from sda_core.config import at_least, between, component, option, part
from sda_core.data import Standardization
from sda_core.denoiser import Conditional
from sda_core.errors import AssimilationError, AssimilationWarning
from sda_core.method.base import Execution, Method, Problem
from sda_core.method.resampling import (
    check_members,
    effective_sample_size,
    systematic_resampling,
)
from sda_core.random import GeneratorNoise, seeded_generator
from sda_core.sampler.base import Sampler
from sda_core.sampler.dpm_solver import DPMSolver

#: An effective number of particles below which the ensemble cannot be trusted.
_FEW = 10.0
#: Steps of DPM-Solver++ where no sampler is given.
_STEPS = 16


class BlockDenoiser(Protocol):
    """What draws blocks, such as :class:`sda_core.denoiser.ForecastDenoiser`."""

    past: int

    @property
    def block(self) -> int:
        """Number of states that a forecast gives."""
        ...

    def conditional(self, past: Tensor | None, shape: Sequence[int]) -> Conditional:
        """The distribution of the next states given those before, or that of the first ones."""
        ...


class BlockModel(Protocol):
    """A model whose denoiser draws blocks, such as a :class:`sda_core.model.TrainedModel`."""

    @property
    def denoiser(self) -> BlockDenoiser:
        """What draws blocks."""
        ...

    @property
    def standardization(self) -> Standardization:
        """The map between physical units and model space."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...


@component
class BlockSMC(Method):
    r"""Draws the trajectory block by block, and keeps the particles that the observations favour.

    A model that was trained to forecast (``model.levels``) draws the next states of each particle
    given its last ones; particles are weighted by p(y | x) of these states, and whole paths are
    resampled (systematically) when the effective number of them falls below ``threshold`` of all.
    For the model's prior it is exact in the limit of many particles, and its estimate of p(y) is
    unbiased. Its price does not depend on how far the posterior is from the prior over the whole
    trajectory, only within a block.

    Attributes:
        model: The model.
        sampler: What draws the blocks; None for DPM-Solver++ in 16 steps.

    Good values: 8,192 particles for systems of few variables. For many variables weights
    degenerate, as those of every particle filter; use 'sda' there.
    """

    needs_model: ClassVar[bool] = True
    needs_guidance: ClassVar[bool] = False

    model: BlockModel | None = part(default=None, kw_only=False)
    sampler: Sampler | None = part(default=None)
    particles: int = option(default=8192, check=at_least(2), help="number of particles")
    first: int = option(
        default=4,
        check=at_least(1),
        help="particles of the first block, in multiples of `particles`; the best are kept",
    )
    threshold: float = option(
        default=0.5,
        check=between(0, 1),
        help="effective number of particles, as a share of all, below which they are resampled",
    )
    forecast: bool = option(
        default=False,
        help="draw from the Gaussian forecast of the model alone, without the sampler: right where "
        "a block is one state and the next one is almost normal given it, and much faster",
    )
    batch_size: int = option(default=2048, check=at_least(1), help="particles drawn at once")

    def draw(
        self, problem: Problem, members: int, seed: int, execution: Execution = Execution()
    ) -> Tensor:
        """Filter, then draw ``members`` of the surviving paths.

        Raises:
            AssimilationError: The model cannot forecast, there are more members than particles,
                errors at different times are correlated, or no particle is compatible with the
                observations.
        """
        model = self._checked(members)
        generator, scaling = seeded_generator(seed), model.standardization
        last = problem.observation.last_times(problem.shape[1:])
        log_evidence, least = 0.0, float(self.particles)
        # A whole window of the prior, whose last states are those before the first block.
        window = self._drawn(model, None, problem.shape[1:], self.first * self.particles, generator)
        past = window[:, -model.denoiser.past :]
        paths = past.new_empty(0)
        log_w = torch.zeros(len(past), dtype=torch.float64)
        for start in range(0, problem.length, model.denoiser.block):
            stop = min(start + model.denoiser.block, problem.length)
            block = self._drawn(model, past, problem.shape[1:], len(past), generator)[
                :, : stop - start
            ]
            paths = torch.cat((paths, block), dim=1) if start else block
            before = log_w.logsumexp(0)
            log_w = log_w + _log_likelihood(problem, paths, scaling, last, start)
            if not bool(log_w.isfinite().any()):
                raise AssimilationError(
                    f"block-smc: no particle is compatible with the observations of the states "
                    f"{start} to {stop - 1}. Use more particles (now {self.particles}) or check "
                    "the observations' units and std"
                )
            log_evidence += float(log_w.logsumexp(0) - before)
            size = effective_sample_size(log_w)
            least = min(least, size)
            past = torch.cat((past, block), dim=1)[:, -model.denoiser.past :]
            if size < self.threshold * self.particles or len(paths) > self.particles:
                index = systematic_resampling(log_w, generator, self.particles)
                paths, past = paths[index], past[index]
                log_w = torch.zeros(self.particles, dtype=torch.float64)
            if execution.on_step:
                execution.on_step(stop, problem.length)
        index = systematic_resampling(log_w, generator, self.particles)
        chosen = index[torch.randperm(self.particles, generator=generator)[:members]]
        if execution.record:
            execution.record({"log_evidence": log_evidence, "least_effective_size": least})
        if least < _FEW:
            warnings.warn(
                f"block-smc: the effective number of particles fell to {least:.1f} of "
                f"{self.particles}: the ensemble says little about the spread. Use more particles, "
                "or method 'sda' for many variables",
                AssimilationWarning,
                stacklevel=2,
            )
        return scaling.to_physical(paths[chosen])

    def _checked(self, members: int) -> BlockModel:
        """The model, which must be able to forecast."""
        model = self.model
        if model is None:
            raise AssimilationError(
                "block-smc needs a trained model: train one first (sda train); in Python, "
                "BlockSMC(model)"
            )
        if not hasattr(model.denoiser, "conditional"):
            raise AssimilationError(
                "block-smc: the model cannot forecast. Train one with model.levels = ['joint', "
                "'forecast'] and parameterization = 'edm', or use method 'sda'"
            )
        check_members(members, self.particles)
        if isinstance(model.denoiser, nn.Module):
            model.denoiser.eval()
        return model

    def _drawn(
        self,
        model: BlockModel,
        past: Tensor | None,
        state: Sequence[int],
        rows: int,
        generator: Generator,
    ) -> Tensor:
        r"""Blocks after some states, or whole windows, in model space, (rows, K, C, \*S)."""
        parts, sampler = [], self.sampler or DPMSolver(steps=_STEPS)
        noise = GeneratorNoise(generator, model.device)
        with torch.no_grad():
            for index in torch.arange(rows).split(self.batch_size):
                before = None if past is None else past[index].to(model.device)
                of = model.denoiser.conditional(before, (len(index), *state))
                if self.forecast and past is not None:
                    z = noise.normal(of.mean.shape)
                else:
                    z = sampler.sample(of.denoiser, of.mean.shape, noise)
                parts.append(of.to_states(z).cpu())
        return torch.cat(parts)


def _log_likelihood(
    problem: Problem, paths: Tensor, scaling: Standardization, last: Tensor, start: int
) -> Tensor:
    r"""log p(y | x) of the observations that the states from ``start`` on complete, (N,).

    Args:
        problem: The problem.
        paths: All states so far in model space, (N, stop, C, \*S).
        scaling: The map to physical units.
        last: The last time that each observation depends on, (n,).
        start: Time index.
    """
    observation, y, stop = problem.observation, problem.y, paths.shape[1]
    if observation.times is None:
        x = scaling.to_physical(paths).double()
        log_p = [observation.log_prob_between(start, stop, y, x, last)]
    else:  # the operator sees one state at a time, which is faster
        x = scaling.to_physical(paths[:, start:]).double()
        log_p = [observation.log_prob_at(start + i, y, x[:, i]) for i in range(stop - start)]
    total = torch.zeros(len(paths), dtype=torch.float64)
    for given in log_p:
        if given is not None:
            total += given.double().nan_to_num(-torch.inf, -torch.inf, -torch.inf)
    return total
