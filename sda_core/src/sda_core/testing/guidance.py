"""What every guidance promises."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from sda_core.denoiser import Denoiser
from sda_core.guidance import Guidance
from sda_core.noise import GaussianNoise
from sda_core.schedule import VE, VP, Schedule
from sda_core.testing.chain import GaussianProblem, gaussian_problem
from sda_core.testing.promises import keep, normal, require, require_close

_TIMES = (0.05, 0.3, 0.6, 0.9)


def _problem(std: float = 0.4, schedule: Schedule | None = None) -> GaussianProblem:
    return gaussian_problem(length=5, std=std, schedule=schedule)


def _guide(guidance: Guidance, problem: GaussianProblem) -> Denoiser:
    return guidance(problem.model.denoiser, problem.likelihood)


def _noised(problem: GaussianProblem, t: float, members: int = 4) -> Tensor:
    """Members of the prior at noise level t."""
    prior = problem.model.denoiser
    alpha, sigma = prior.scales(prior.mean, torch.tensor(t, dtype=torch.float64))
    z = normal(2, members, prior.mean.numel(), seed=1)
    x = prior.mean.flatten() + z[0] @ torch.linalg.cholesky(prior.covariance).T
    return (alpha * x + sigma * z[1]).reshape(members, *prior.mean.shape)


def _time(t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


def _denoiser(guidance: Guidance) -> None:
    """A denoiser comes out, with the prior's schedule."""
    problem = _problem()
    posterior = _guide(guidance, problem)
    require(isinstance(posterior, Denoiser), f"it is {type(posterior).__name__}")
    require(posterior.schedule is problem.model.denoiser.schedule, "the schedule is another one")


def _shape(guidance: Guidance) -> None:
    """It keeps shape and type, and takes one time for all members or one for each."""
    problem = _problem()
    posterior, x = _guide(guidance, problem), _noised(problem, 0.3)
    for dtype in (torch.float32, torch.float64):
        out = posterior(x.to(dtype), _time(0.3).to(dtype))
        require(
            out.shape == x.shape and out.dtype == dtype,
            f"{tuple(x.shape)}, {dtype} became {tuple(out.shape)}, {out.dtype}",
        )
        require(bool(out.isfinite().all()), f"the result in {dtype} is not finite")
    each = posterior(x, _time(0.3).expand(len(x)))
    require_close(each, posterior(x, _time(0.3)), "with one time for each", rtol=1e-8, atol=1e-10)


def _graph(guidance: Guidance) -> None:
    """No graph is kept, the argument is left alone, and autograd may be off."""
    problem = _problem()
    posterior, x = _guide(guidance, problem), _noised(problem, 0.3)
    before = x.clone()
    with torch.no_grad():
        out = posterior(x, _time(0.3))
    require(not posterior(x, _time(0.3)).requires_grad, "the result requires gradients")
    require(not x.requires_grad, "the argument was made to require gradients")
    require(torch.equal(x, before), "the argument was changed")
    require_close(out, posterior(x, _time(0.3)), "under no_grad", rtol=1e-12, atol=1e-12)


def _members(guidance: Guidance) -> None:
    """A member does not depend on its batch mates."""
    problem = _problem()
    posterior = _guide(guidance, problem)
    for t in _TIMES:
        x = _noised(problem, t)
        alone = posterior(x[1:2], _time(t))
        require_close(
            alone, posterior(x, _time(t))[1:2], f"member 1 alone, t = {t}", rtol=1e-7, atol=1e-9
        )


def _direction(guidance: Guidance) -> None:
    """The estimate is moved towards the observation."""
    problem = _problem()
    prior, posterior = problem.model.denoiser, _guide(guidance, problem)
    for t in _TIMES:
        x = _noised(problem, t)
        x0 = prior(x, _time(t)).requires_grad_()
        distance = problem.likelihood.residual(x0).square().sum()
        (uphill,) = torch.autograd.grad(distance, x0)
        moved = (posterior(x, _time(t)) - x0.detach()).flatten(1)
        require(
            bool(((moved * uphill.flatten(1)).sum(1) < 0).all()),
            f"at t = {t} a member is moved away from it",
        )


def _uninformative(guidance: Guidance) -> None:
    """With std towards infinity the prior is left as it is, if std plays a part (uses_std)."""
    problem = _problem()
    posterior = _guide(guidance, problem)
    noise = GaussianNoise(scale=problem.likelihood.noise.std * 1e8)
    vague = attrs.evolve(problem.likelihood, noise=noise)
    without = guidance(problem.model.denoiser, vague)
    for t in _TIMES:
        x = _noised(problem, t)
        if guidance.uses_std:
            # Guidance whose variance has other terms than std goes to the prior more slowly.
            require_close(
                without(x, _time(t)), problem.model.denoiser(x, _time(t)), f"t = {t}", atol=1e-6
            )
        else:
            require_close(
                without(x, _time(t)),
                posterior(x, _time(t)),
                f"uses_std is false, but at t = {t}",
                atol=1e-12,
            )


def _exact(guidance: Guidance) -> None:
    """If exact_for_gaussian, it is exact for a Gaussian prior and a linear operator."""
    if not guidance.exact_for_gaussian:
        return
    for schedule in (VP(), VE()):
        for std in (0.02, 0.4):
            problem = _problem(std=std, schedule=schedule)
            posterior, exact = _guide(guidance, problem), problem.posterior_denoiser
            for t in _TIMES:
                x = _noised(problem, t)
                require_close(
                    posterior(x, _time(t)),
                    exact(x, _time(t)),
                    f"{type(schedule).__name__}, std = {std}, t = {t}",
                    rtol=1e-6,
                    atol=1e-6,
                )


PROMISES = (_denoiser, _shape, _graph, _members, _direction, _uninformative, _exact)


def check_guidance(guidance: Guidance) -> None:
    """Check what every guidance promises.

    Raises:
        AssertionError: A promise is broken; says which, and how.
    """
    keep(PROMISES, guidance)
