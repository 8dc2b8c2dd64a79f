r"""Twisted diffusion sampling: sequential Monte Carlo that corrects any guidance.

References:
    - Wu et al., "Practical and Asymptotically Exact Conditional Sampling in Diffusion Models",
      2023, https://arxiv.org/abs/2306.17775, algorithm 1
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sda_core.config import Check, at_least, between, component, option
from sda_core.denoiser import Denoiser, MarkovBlanketDenoiser
from sda_core.errors import AssimilationError, AssimilationWarning
from sda_core.guidance import Likelihood
from sda_core.method import (
    Ensemble,
    Execution,
    GuidedMethod,
    Posterior,
    Problem,
    Progress,
    plan_memory,
)
from sda_core.method.resampling import check_members
from sda_core.random import MemberNoise, seeded_generator
from sda_core.threads import ThreadTuner
from sda_dps.ancestral import AncestralWalk
from sda_dps.particles import Particles
from sda_dps.twist import GivesLogLikelihood, log_twist

#: Below this share of the particles, an effective sample size is worth a warning. Few ancestors are
#: not: each step's fresh noise sets particles apart that were one when all was noise.
FEW = 0.1
#: Entries of trajectories on which the mean square error of estimates is measured, or of one.
ENTRIES = 2**18


@component
class TwistedSMC(GuidedMethod):
    r"""Particles go down the sampler's grid by guided steps, and are weighted for what is wrong.

    A step draws x_s from q(x_s | x_t), Gaussian with the mean of an ancestral step at the guided
    estimate and its variance, and multiplies the weight by

        p(x_s | x_t) psi_s(x_s) / (psi_t(x_t) q(x_s | x_t)),

    where p is the same step at the prior's estimate and psi_t ~ p(y | x_t) a twisting function
    (:mod:`sda_dps.twist`; a guidance may bring its own). At the end psi is p(y | x_0) itself, for
    noise of any kind. Particles are resampled (systematically) where their effective sample size
    falls below ``threshold`` times their number; members are drawn from them at the end.

    So guidance and psi decide how many particles are needed, not what they converge to: the
    posterior under the prior that these steps draw from without guidance. With few steps that prior
    is itself somewhat off, but less so than under other samplers, as the variance of each step is
    the best one (:mod:`sda_dps.ancestral`).

    Of the sampler only its grid and ``denoise_final`` are used. Evaluations of the network: one
    guided one a step and particle, and one a step of ``calibration`` samples of the prior.

    Good values: as many particles as the effective sample size asks for. It is reported, with the
    number of initial particles that the final ones descend from, and low in hundreds of dimensions
    unless the guidance is good.
    """

    particles: int = option(default=256, check=at_least(2), help="number of particles")
    eta: float = option(
        default=1.0,
        check=Check("above 0, up to 1", lambda v: 0 < v <= 1),
        help="share of fresh noise in each step; 1 is ancestral sampling",
    )
    threshold: float = option(
        default=0.5,
        check=between(0, 1),
        help="resample where the effective sample size is below this share of the particles",
    )
    calibration: int = option(
        default=64,
        check=at_least(2),
        help="samples of the prior on which the error of its estimates is measured",
    )

    def draw(
        self, problem: Problem, members: int, seed: int, execution: Execution = Execution()
    ) -> Tensor:
        """Move, weight and resample particles, then draw ``members`` of them.

        Raises:
            AssimilationError: Model, sampler or guidance is missing, there are more members than
                particles, one window of one particle does not fit the memory, or no particle is
                left with a weight.
        """
        check_members(members, self.particles)
        posterior = self.posterior(problem, seed, execution)
        sampler, guidance, likelihood = posterior.sampler, posterior.guidance, posterior.likelihood
        ensemble = execution.ensemble or Ensemble((members, *problem.shape))
        before, settings = ensemble.begin() or ({}, {})
        settings = self._sizes(settings, posterior, problem, execution)
        walk = _walk(posterior, settings, self.eta)
        last = len(walk.times) - 1
        own = guidance if isinstance(guidance, GivesLogLikelihood) else None
        particles = Particles(self.particles, problem.shape, float(walk.scales(0)[1]), seed)
        if before:
            errors, variances = before["errors"], before["variances"]
            particles.load_state_dict(before)
            if execution.announce:
                execution.announce(f"resuming after {particles.step} of {last} steps")
        else:
            errors, variances = self._errors(walk, likelihood, sampler.denoise_final, problem, seed)

        def progress() -> Progress:
            state = particles.state_dict() | {"errors": errors, "variances": variances}
            return state, settings

        tuner = ThreadTuner(fixed=walk.device.type != "cpu")
        with ensemble.checkpoints() as checkpoint, tuner:
            for i in range(particles.step, last):
                tuner.before_step(partial(walk.guide, particles.x, i))
                began = time.perf_counter()
                x0, x0_y = walk.guide(particles.x, i)
                sound = x0.flatten(1).isfinite().all(1)
                x0[~sound] = 0.0  # a particle that is not finite has no weight from now on
                psi = (
                    own.log_likelihood(x0, likelihood, *walk.scales(i)).double()
                    if own
                    else log_twist(likelihood, x0, errors[i])
                )
                self._weigh(particles, psi, sound, i, last)
                if particles.sizes[-1] < self.threshold * len(particles):
                    chosen = particles.resample()
                    x0, x0_y = x0[chosen], x0_y[chosen]
                carry, gain, ddim = walk.coefficients(i)
                std = torch.sqrt(ddim**2 + gain**2 * variances[i])
                # A step with z from the guided mean is one with z + shift from the prior's. Where
                # guidance is not a number, the prior's step does, and the weight is still right.
                shift = torch.nan_to_num(gain / std * (x0_y - x0))
                z = particles.noise.normal(x0.shape)
                moved = carry * particles.x + gain * x0 + std * (z + shift)
                particles.x = torch.nan_to_num(moved)
                step_w = (shift * (z + shift / 2)).flatten(1).double().sum(1)
                particles.log_w = particles.log_w - step_w
                particles.step = i + 1
                tuner.after_step(time.perf_counter() - began)
                if execution.on_step:
                    execution.on_step(i + 1, last + 1)
                checkpoint(progress)
        if sampler.denoise_final:
            particles.x = walk.denoise(particles.x, last)
        sound = particles.x.flatten(1).isfinite().all(1)
        self._weigh(particles, likelihood.log_prob(particles.x.double()), sound, last, last)
        particles.resample()
        if execution.on_step:
            execution.on_step(last + 1, last + 1)
        self._report(particles, execution, tuner.threads)
        x = posterior.model.standardization.to_physical(particles.draw(members))
        ensemble.write(torch.arange(members), x)
        return ensemble.values

    def _weigh(
        self, particles: Particles, psi: Tensor, sound: Tensor, step: int, steps: int
    ) -> None:
        if not particles.weigh(psi, sound):
            raise AssimilationError(
                f"twisted-smc: none of {self.particles} particles is finite and compatible "
                f"with the observations at step {step} of {steps}. Use more steps or particles, a "
                "weaker guidance, or check the observations' units and std"
            )

    def _sizes(
        self,
        settings: Mapping[str, Any],
        posterior: Posterior,
        problem: Problem,
        execution: Execution,
    ) -> Mapping[str, Any]:
        """How many particles and windows at once fit the memory; as before, if that was asked."""
        prior, device = posterior.model.trajectory_denoiser(), posterior.model.device
        asked = {
            "batch_size": self.batch_size,
            "chunk_size": prior.chunk_size if isinstance(prior, MarkovBlanketDenoiser) else None,
            "memory": self.memory,
            "device": device.type,
        }
        if settings.get("asked") == asked:
            return settings
        times = posterior.sampler.times(prior.schedule)

        def some_steps(prior: Denoiser) -> None:
            x, denoiser = torch.zeros(1, *problem.shape, device=device), posterior.guide(prior)
            for t in times[:: max(1, len(times) // 8)]:
                denoiser(x, t.to(x))

        plan = plan_memory(
            prior,
            (self.particles, *problem.shape),
            some_steps,
            device=device,
            gradients=True,
            batch_size=self.batch_size,
            memory=self.memory,
        )
        if execution.announce:
            execution.announce(str(plan))
        return {"asked": asked, "particles": plan.batch_size, "windows": plan.chunk_size}

    def _errors(
        self,
        walk: AncestralWalk,
        likelihood: Likelihood,
        denoise_final: bool,
        problem: Problem,
        seed: int,
    ) -> tuple[Tensor, Tensor]:
        r"""How far samples of the prior are from their estimates x0, at each time but the last.

        Returns:
            A(x_0) - A(x0), (times, K, n), and E (x_0 - x0)^2 by variable, (times, C, 1, ...).
        """
        last, shape = len(walk.times) - 1, (self.calibration, *problem.shape)
        few = max(1, ENTRIES // math.prod(problem.shape))  # samples, for the mean over all entries
        noise = MemberNoise(seeded_generator(seed, 0, 1).initial_seed(), range(self.calibration))
        x = float(walk.scales(0)[1]) * noise.normal(shape)
        residuals, estimates = [], []
        for i in range(last):
            x0 = walk.denoise(x, i)
            residuals.append(likelihood.residual(x0).double())
            estimates.append(x0[:few].clone())
            carry, gain, std = walk.coefficients(i)
            x = carry * x + gain * x0 + std * noise.normal(shape)
        x = walk.denoise(x, last) if denoise_final else x
        errors = [residual - likelihood.residual(x).double() for residual in residuals]
        axes = (0, 1, *range(3, x.ndim))
        variances = [(x[:few] - x0).square().mean(axes, keepdim=True)[0, 0] for x0 in estimates]
        return torch.stack(errors), torch.stack(variances)

    def _report(self, particles: Particles, execution: Execution, threads: int | None) -> None:
        sizes, lost = particles.sizes, particles.lost
        families = len(particles.ancestors.unique())
        line = (
            f"twisted-smc: effective sample size {min(sizes):.1f} at the least, {sizes[-1]:.1f} at "
            f"the end, of {self.particles} particles, which descend from {families} of the first "
            f"({lost} lost on the way)"
        )
        if execution.announce:
            execution.announce(line)
        if execution.record:
            execution.record(
                {
                    "ess": sizes,
                    "ess_min": min(sizes),
                    "ess_final": sizes[-1],
                    "particles": self.particles,
                    "ancestors": families,
                    "lost": lost,
                    "threads": threads,
                }
            )
        if min(sizes) < FEW * self.particles:
            warnings.warn(
                f"{line}: the ensemble says little about the spread. Use more particles, a better "
                "guidance, or more steps",
                AssimilationWarning,
                stacklevel=3,
            )


def _walk(posterior: Posterior, settings: Mapping[str, Any], eta: float) -> AncestralWalk:
    """The steps, in batches of these sizes."""
    prior = posterior.model.trajectory_denoiser()
    if isinstance(prior, MarkovBlanketDenoiser):
        prior.chunk_size = settings["windows"]
    return AncestralWalk(
        prior=prior,
        guided=posterior.guide(prior),
        times=posterior.sampler.times(prior.schedule),
        eta=eta,
        batch_size=settings["particles"],
        device=posterior.model.device,
    )
