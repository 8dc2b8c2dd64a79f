"""What every method promises."""

from __future__ import annotations

import functools
from typing import Any

import attrs
import torch
from torch import Tensor

from sda_core.method import Execution, Method, Problem
from sda_core.sampler import DDPM
from sda_core.testing.chain import GaussianProblem, gaussian_problem
from sda_core.testing.gaussian import ExactGuidance
from sda_core.testing.promises import keep, require, require_close


@functools.cache
def _problem() -> GaussianProblem:
    return gaussian_problem(length=6)


def draw(method: Method, problem: Problem, members: int, seed: int, **given: Any) -> Tensor:
    r"""What a method draws, with what it is given.

    Args:
        method: The method.
        problem: The problem.
        members: Number M of members.
        seed: The seed.
        **given: ``model``, ``sampler`` and ``guidance`` for a method that needs them, and whatever
            an :class:`~sda_core.method.Execution` has.

    Returns:
        Trajectories in physical units, (M, L, C, \*S).
    """
    parts = {k: given.pop(k) for k in ("model", "sampler", "guidance") if k in given}
    if not method.needs_guidance:
        parts.pop("guidance", None)
    if method.needs_model:
        configuration: Any = method
        method = attrs.evolve(configuration, **parts)
    return method.draw(problem, members, seed, Execution(**given))


def _draw(method: Method, members: int, seed: int, **execution: Any) -> Tensor:
    problem = _problem()
    return draw(
        method,
        problem.problem,
        members,
        seed,
        model=problem.model,
        sampler=DDPM(steps=96, grid="log-snr"),
        guidance=ExactGuidance(),
        **execution,
    )


def _shape(method: Method, tolerance: float) -> None:
    r"""An ensemble (M, L, C, \*S) comes out, finite, on the CPU, without a graph."""
    ensemble, shape = _draw(method, 3, 0), (3, *_problem().problem.shape)
    require(ensemble.shape == shape, f"{tuple(ensemble.shape)} instead of {shape}")
    require(bool(ensemble.isfinite().all()), "it is not finite")
    require(ensemble.device.type == "cpu" and not ensemble.requires_grad, "it is not")
    same = torch.equal(ensemble[0], ensemble[1])
    said = "a point estimate has members that differ" if not same else "two members are the same"
    require(same == method.point_estimate, said)


def _seed(method: Method, tolerance: float) -> None:
    """The seed is all the randomness there is."""
    state = torch.get_rng_state()
    first, second, other = (_draw(method, 3, seed) for seed in (1, 1, 2))
    require(torch.equal(first, second), "one seed gives two ensembles")
    require(torch.equal(torch.get_rng_state(), state), "it drew from torch's global state")
    if not method.point_estimate:
        require(not torch.equal(first, other), "two seeds give the same ensemble")


def _members(method: Method, tolerance: float) -> None:
    """A member does not depend on how many are drawn."""
    many, few = _draw(method, 5, 0), _draw(method, 2, 0)
    require_close(few, many[:2], "the first 2 of 5 members", rtol=1e-4, atol=1e-4)


def _progress(method: Method, tolerance: float) -> None:
    """on_step hears (steps done, number of steps), rising to the end."""
    heard: list[tuple[int, int]] = []
    _draw(method, 3, 0, on_step=lambda i, n: heard.append((i, n)))
    require(heard, "it heard nothing")
    done = [i / n for i, n in heard]
    require(done == sorted(done) and done[-1] == 1, f"it heard {heard}")


def _smoother(method: Method, tolerance: float) -> None:
    """Mean and spread are those of the exact (RTS) smoother, up to the declared tolerance."""
    if method.point_estimate:
        return
    problem, members = _problem(), 1024
    ensemble = _draw(method, members, 0).double()
    error = ((ensemble.mean(0) - problem.mean) / problem.std).abs().max()
    require(float(error) < tolerance, f"a mean is {float(error):.3f} std off, {tolerance} allowed")
    error = (ensemble.std(0) / problem.std - 1).abs().max()
    require(float(error) < tolerance, f"a std is {float(error):.1%} off, {tolerance:.0%} allowed")


PROMISES = (_shape, _seed, _members, _progress, _smoother)

#: Allowed error of mean and std, in units of the std, with 1,024 members.
DEFAULT_TOLERANCE = 0.15


def check_method(method: Method, tolerance: float = DEFAULT_TOLERANCE) -> None:
    """Check what every method promises, on a linear-Gaussian problem.

    Methods that need a model get the exact one, with exact guidance.

    Args:
        method: The method.
        tolerance: Allowed error of the posterior's mean and standard deviation, in units of the
            standard deviation, for 1,024 members (about 0.1 for independent ones).

    Raises:
        AssertionError: A promise is broken; says which, and how.
    """
    keep(PROMISES, method, tolerance)
